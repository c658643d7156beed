import pytest

from llmux.core.eviction import STOP, Eviction
from llmux.simulation.virtual.costs import CostError, SwitchCost, default_cost, parse_costs

DEFAULTS = {"a": SwitchCost(1.0, 2.0, 3.0), "org/b:7": SwitchCost(4.0, 5.0, 6.0)}


def test_without_any_the_defaults_stay() -> None:
    assert parse_costs([], DEFAULTS) == DEFAULTS


def test_a_number_is_a_switch_half_to_leave_and_half_to_wake() -> None:
    assert set(parse_costs(["2"], DEFAULTS).values()) == {SwitchCost(1.0, 1.0, 1.0)}


def test_parts_can_be_given_and_a_start_costs_what_a_wake_does() -> None:
    assert parse_costs(["evict=0.5,wake=1.5"], DEFAULTS)["a"] == SwitchCost(0.5, 1.5, 1.5)
    assert parse_costs(["evict=0.5"], DEFAULTS)["a"] == SwitchCost(0.5, 2.0, 3.0)
    assert parse_costs(["cold=30"], DEFAULTS)["a"] == SwitchCost(1.0, 2.0, 30.0)


def test_a_models_own_costs_take_precedence() -> None:
    costs = parse_costs(["org/b:7:wake=9", "2"], DEFAULTS)
    assert costs == {"a": SwitchCost(1.0, 1.0, 1.0), "org/b:7": SwitchCost(1.0, 9.0, 9.0)}


def test_costs_of_an_eviction_are_for_all_that_leave_by_it_and_yield_to_a_models_own() -> None:
    offload, discard = Eviction.parse("offload+keep_running"), Eviction.parse("discard+keep_running")
    evictions = {"a": offload, "b": offload, "c": discard}
    texts = ["b:wake=9", "offload+keep_running:evict=2,wake=3", "1"]
    costs = parse_costs(texts, dict.fromkeys("abc", default_cost(STOP)), evictions)
    assert costs == {"a": SwitchCost(2, 3, 3), "b": SwitchCost(2, 9, 9), "c": SwitchCost(0.5, 0.5, 0.5)}


def test_coming_back_from_a_deeper_sleep_costs_what_that_eviction_does() -> None:
    offload, discard = Eviction.parse("offload+keep_running"), Eviction.parse("discard+keep_running")

    def costs(*texts: str) -> SwitchCost:
        return parse_costs(texts, {"a": default_cost(offload)}, {"a": offload}, {"a": [discard]})["a"]

    assert costs().coming(offload) == default_cost(offload).wake
    assert costs().coming(discard) == default_cost(discard).wake
    assert costs().coming(None) == default_cost(offload).cold
    assert costs("2", "discard+keep_running:wake=9").coming(discard) == 9
    assert costs("2").coming(discard) == 1
    assert costs("a:2").coming(discard) == default_cost(discard).wake, "that is about its own eviction"
    assert costs("discard+keep_running:wake=0.1").least_wake == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c:2", "the model 'c' is not configured; there are a, org/b:7"),
        ("sleep=2", "'sleep' is none of evict, wake, cold"),
        ("evict=x", "'x' is not a number of seconds"),
        ("-1", "'-1' is not a number of seconds"),
        ("nan", "'nan' is not a number of seconds"),
        ("", "'' is not a number of seconds"),
    ],
)
def test_what_cannot_be_read_is_explained(text: str, message: str) -> None:
    with pytest.raises(CostError, match=message):
        parse_costs([text], DEFAULTS)


def test_the_default_depends_on_how_the_model_leaves() -> None:
    quick, reread, start, image = (
        default_cost(Eviction.parse(text))
        for text in ("offload+keep_running", "discard+keep_running", "retain+stop", "offload+checkpoint")
    )
    assert quick.wake < reread.wake < start.wake
    assert image.evict > quick.evict
