from llmux.simulation.engine.latency import Timings


def test_the_first_token_waits_for_the_prompt_and_the_others_for_each_other() -> None:
    timings = Timings(first_token_seconds=0.5, token_seconds=0.1, prefill_tokens_per_second=100)
    assert [timings.before_token(index, prompt_tokens=200) for index in range(3)] == [2.5, 0.1, 0.1]


def test_no_prefill_rate_means_that_prompts_cost_nothing() -> None:
    assert Timings(first_token_seconds=0.5).before_token(0, prompt_tokens=10**6) == 0.5
