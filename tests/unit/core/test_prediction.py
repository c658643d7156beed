import math

from hypothesis import given
from hypothesis import strategies as st

from llmux.core.prediction import DAY, FOLLOWERS_MAX, HOUR, Demand, DemandPredictor

MODELS = [f"m{number}" for number in range(FOLLOWERS_MAX + 4)]


def observed(models: str, *, every: float = 60.0, begin: float = 0.0) -> DemandPredictor:
    predictor = DemandPredictor(sorted(set(models)))
    for number, model in enumerate(models):
        predictor.observe(Demand(model, begin + number * every))
    return predictor


def test_what_followed_before_comes_next() -> None:
    predictor = observed("abcabcabca")
    assert [prediction.model for prediction in predictor.ranked(600.0)] == ["b", "c"]
    assert predictor.ranked(600.0)[0].share > 0.7


def test_a_new_habit_replaces_an_old_one() -> None:
    predictor = observed("ab" * 20 + "ac" * 12 + "a")
    assert predictor.ranked(0.0)[0].model == "c"


def test_the_time_of_day_decides_where_nothing_has_followed_yet() -> None:
    predictor = DemandPredictor(["morning", "evening", "new"])
    for day in range(5):
        predictor.observe(Demand("morning", day * DAY + 9 * HOUR))
        predictor.observe(Demand("evening", day * DAY + 20 * HOUR))
    predictor.observe(Demand("new", 5 * DAY))
    assert predictor.ranked(5 * DAY + 9.9 * HOUR)[0].model == "morning"
    assert predictor.ranked(5 * DAY + 10.5 * HOUR)[0].model == "morning", "an hour late"
    assert predictor.ranked(5 * DAY + 20 * HOUR)[0].model == "evening"


def test_times_of_day_fade() -> None:
    predictor = DemandPredictor(["old", "recent", "new"])
    for model, at in (("old", 0.0), ("recent", 30 * DAY), ("new", 30 * DAY + HOUR)):
        predictor.observe(Demand(model, at))
    shares = {prediction.model: prediction.share for prediction in predictor.ranked(31 * DAY)}
    assert shares["old"] < 0.01 < 0.99 < shares["recent"]


def test_the_present_model_and_unknown_ones_are_never_predicted() -> None:
    predictor = DemandPredictor(["a", "b"])
    for number, model in enumerate(["a", "gone", "b", "a", "a", "gone"]):
        predictor.observe(Demand(model, float(number)))
    assert [prediction.model for prediction in predictor.ranked(0.0)] == ["b"]


def test_nothing_is_predicted_from_nothing() -> None:
    assert DemandPredictor(["a", "b"]).ranked(0.0) == []


@given(st.lists(st.tuples(st.sampled_from(MODELS), st.floats(0, 3 * DAY))), st.floats(0, 40 * DAY))
def test_shares_are_shares_and_memory_is_bounded(demands: list[tuple[str, float]], at: float) -> None:
    predictors = [DemandPredictor(MODELS), DemandPredictor(reversed(MODELS))]
    now = 0.0
    for model, pause in demands:
        now += pause
        for predictor in predictors:
            predictor.observe(Demand(model, now))
    ranked, again = (predictor.ranked(at) for predictor in predictors)
    assert [one.model for one in ranked] == [one.model for one in again], "the order of the configuration is no matter"
    shares = [prediction.share for prediction in ranked]
    assert shares == sorted(shares, reverse=True)
    assert all(0.0 < share <= 1.0 for share in shares)
    assert math.fsum(shares) <= 1.0 + 1e-9
    for predictor in predictors:
        assert all(len(followers) <= FOLLOWERS_MAX for followers in predictor._followers.values())
