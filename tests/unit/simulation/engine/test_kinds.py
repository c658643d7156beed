import pytest

from llmux.simulation.engine.kinds import KINDS, choose


def test_the_first_flag_says_the_kind_and_the_rest_is_its_own() -> None:
    assert choose(["serve", "m"], {}) == (KINDS["vllm"], ["serve", "m"])
    assert choose(["--sim-kind", "ollama", "serve"], {}) == (KINDS["ollama"], ["serve"])
    assert choose(["--sim-kind=sglang", "--model-path", "m"], {}) == (KINDS["sglang"], ["--model-path", "m"])
    assert choose(["--listen"], {"LLMUX_SIM_KIND": "comfyui"}) == (KINDS["comfyui"], ["--listen"])
    assert choose(["--sim-kind", "images"], {"LLMUX_SIM_KIND": "comfyui"})[0] is KINDS["images"]


@pytest.mark.parametrize("words", [["--sim-kind"], ["--sim-kind", "other"], ["--sim-kind="]])
def test_an_unknown_kind(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        choose(words, {})
