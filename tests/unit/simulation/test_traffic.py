import pytest

from llmux.simulation.traffic import Selection, Trace, TraceError, TrafficRequest, merge, models_of, select

REQUESTS = [TrafficRequest(float(number), "ab"[number % 2], 10, 100) for number in range(1000)]


def trace(*at_seconds: float, model: str = "m", dated: bool = False) -> Trace:
    return Trace(model, tuple(TrafficRequest(at, model, 1, 1) for at in at_seconds), dated)


def test_traces_are_merged_on_one_clock() -> None:
    merged = merge([trace(105.0, 107.0, model="a"), trace(100.0, 106.0, model="b")])
    assert [(request.at_seconds, request.model) for request in merged] == [
        (0.0, "b"),
        (5.0, "a"),
        (6.0, "b"),
        (7.0, "a"),
    ]


def test_traces_can_be_aligned() -> None:
    merged = merge([trace(105.0, 107.0, model="a"), trace(1e9, 1e9 + 1, model="b", dated=True)], align=True)
    assert [(request.at_seconds, request.model) for request in merged] == [
        (0.0, "a"),
        (0.0, "b"),
        (1.0, "b"),
        (2.0, "a"),
    ]


def test_clocks_that_cannot_be_combined_are_refused() -> None:
    with pytest.raises(TraceError, match="dates and some plain seconds.*--align"):
        merge([trace(1.0), trace(1e9, dated=True)])
    with pytest.raises(TraceError, match="begins 48 hours after the others end.*--align"):
        merge([trace(0.0, 10.0), trace(10.0 + 48 * 3600)])


def test_thinning_keeps_about_that_share_and_a_subset_of_a_greater_one() -> None:
    few, many = (select(REQUESTS, Selection(thin=share)) for share in (0.3, 0.6))
    assert 250 < len(few) < 350
    assert 550 < len(many) < 650
    assert set(few) < set(many)


def test_the_seed_decides() -> None:
    one, same, other = (select(REQUESTS, Selection(thin=0.5, stretch=1.5, seed=seed)) for seed in (1, 1, 2))
    assert one == same != other


def test_stretching_multiplies_output_tokens_on_average() -> None:
    assert {request.output_tokens for request in select(REQUESTS, Selection(stretch=4))} == {400}
    odd = select([TrafficRequest(0.0, "a", 1, 3)] * 4000, Selection(stretch=0.5))
    assert {request.output_tokens for request in odd} == {1, 2}
    assert sum(request.output_tokens for request in odd) / 4000 == pytest.approx(1.5, abs=0.05)


def test_a_part_of_the_time() -> None:
    part = select(REQUESTS, Selection(skip_seconds=100, seconds=50))
    assert (part[0].at_seconds, part[-1].at_seconds, len(part)) == (0.0, 49.0, 50)
    with pytest.raises(TraceError, match="nothing is left"):
        select(REQUESTS, Selection(skip_seconds=1e6))


def test_models_in_the_order_of_their_first_request() -> None:
    assert models_of(REQUESTS[1:]) == ["b", "a"]
