import math
import random

import pytest

from llmux.core.identifiers import GpuId
from llmux.core.settings import ModelSpec, Placement
from llmux.simulation import lower_bound as module
from llmux.simulation.lower_bound import STEP_SECONDS_MIN, Side, alone, least_waiting, lower_bound, most_waiting
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.costs import SwitchCost
from llmux.simulation.virtual.engine import EngineSpeed
from tests.support.skips import replaces_compiled_code

SPEED = EngineSpeed(prefill=1000.0, decode_alone=40.0, decode_full=20.0)
COSTS = dict.fromkeys("abc", SwitchCost(1.0, 1.0, 9.0))
COUNT = 50
REQUESTS = [TrafficRequest(float(number), "ab"[number % 2], 100, 10) for number in range(COUNT)]


def alone_mean(requests: list[TrafficRequest]) -> float:
    """Of models that never have to leave."""
    own = ([request for request in requests if request.model == name] for name in "abc")
    found = [entry for some in own for entry in alone(some, SPEED, 256, COSTS["a"].least_wake)]
    return sum(entry.first_token_at - entry.arrived_at for entry in found) / len(requests)


def cost(side: Side, left: int, back: int) -> float:
    """The waiting of requests that become ready in their side's absence, and are then prefilled one after the other."""
    begins, total = float(back), 0.0
    for at, seconds in zip(side.ready_at, side.prefill_seconds, strict=True):
        if left < at <= back:
            total += begins - at
            begins += seconds
    return total


def exact(first: Side, second: Side) -> float:
    """The least waiting on a grid of whole seconds, by trying every end of every residence."""
    sides = (first, second)
    end = int(max(*first.ready_at, *second.ready_at)) + 1
    longest = int(max(side.switch_seconds + side.residence_seconds_min for side in sides))
    ahead: dict[tuple[int, int], float] = {}
    for left_at in range(end, -2 * longest - 1, -1):
        for number, side in enumerate(sides):
            other = sides[1 - number]
            if not any(at > left_at for at in side.ready_at):
                ahead[number, left_at] = 0.0
                continue
            shortest = int(other.switch_seconds + other.residence_seconds_min)
            ahead[number, left_at] = min(
                cost(side, left_at, turn_ends + int(side.switch_seconds)) + ahead.get((1 - number, turn_ends), 0.0)
                for turn_ends in range(left_at + shortest, end + shortest + 1)
            )
    return min(ahead[0, -2 * longest], ahead[1, -2 * longest])


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 12))])
def test_it_is_below_the_best_sequence_of_turns_but_not_far(seed: int) -> None:
    chance = random.Random(seed)
    end = 60

    def side() -> Side:
        count = chance.randint(1, 25)
        ready_at = sorted(float(chance.randrange(end)) for _ in range(count))
        prefills = [chance.choice((0.0, 0.1, 1.0)) for _ in range(count)]
        return Side(ready_at, float(chance.randint(1, 4)), float(chance.randint(0, 5)), prefills)

    first, second = side(), side()
    best = exact(first, second)
    bound = least_waiting(first, second)
    # Switches may begin between whole seconds too, so the best on the grid may be a little above the very best.
    assert bound <= best + 1e-6
    assert bound >= 0.75 * best - 25 * 2 * 2 * STEP_SECONDS_MIN
    assert bound <= most_waiting(first, second) <= 1.1 * best + 0.1  # its steps do not divide whole seconds


def test_a_side_alone_does_not_wait() -> None:
    assert least_waiting(Side([1.0, 2.0], 2.0, 5.0), Side([], 2.0, 5.0)) == 0.0


def test_two_simultaneous_requests_cost_one_switch() -> None:
    bound = least_waiting(Side([10.0], 2.0, 0.0), Side([10.0], 3.0, 0.0))
    assert bound == pytest.approx(2.0, abs=0.05)


def test_the_shortest_residence_counts() -> None:
    busy = [number / 2 for number in range(1, 201)]

    def bound(residence_seconds_min: float) -> float:
        return least_waiting(Side(busy, 2.0, residence_seconds_min), Side([50.0], 2.0, residence_seconds_min))

    # Away from 48 to 52, there at 50: those who come at 48.5 to 52 wait 3.5 + 3 + ... + 0.5.
    assert bound(0.0) == pytest.approx(14.0, abs=0.2)
    # Away for 9 s would cost 76.5 s: rather let the one wait until the busy ones have come, 52 s.
    assert bound(5.0) == pytest.approx(52.0, abs=0.2)


def test_the_first_request_waits_for_the_wake_and_prefills_run_one_after_the_other() -> None:
    found = alone([TrafficRequest(1.0, "a", 500, 1), TrafficRequest(1.1, "a", 500, 1)], SPEED, 8, 2.0)
    assert [entry.prefill_at for entry in found] == [3.0, 3.5]
    assert [entry.first_token_at for entry in found] == [3.5, 4.0]


def test_the_batch_limit_holds_and_a_full_batch_is_as_fast_as_a_lone_request() -> None:
    found = alone([TrafficRequest(0.0, "a", 0, 41)] * 5, SPEED, 2, 0.0)
    assert [entry.prefill_at for entry in found] == pytest.approx([0.0, 0.0, 1.0, 1.0, 2.0])


def test_no_requests() -> None:
    assert alone([], SPEED, 2, 0.0) == []
    assert lower_bound([], [ModelSpec("a")], COSTS, SPEED, 5.0).ttft_mean is None


def test_one_model_never_leaves() -> None:
    bound = lower_bound([TrafficRequest(0.0, "a", 100, 10)], [ModelSpec("a")], COSTS, SPEED, 5.0)
    assert bound.ttft_mean == pytest.approx(1.1)


def test_taking_turns_adds_to_the_mean() -> None:
    bound = lower_bound(REQUESTS, [ModelSpec("a"), ModelSpec("b")], COSTS, SPEED, 5.0).ttft_mean
    assert bound is not None and bound > alone_mean(REQUESTS) + 1.0


def test_models_that_fit_together_take_no_turns() -> None:
    gpu = GpuId("local", "0")
    specs = [ModelSpec(name, placements=(Placement({gpu: 40}),)) for name in "ab"]
    apart, together = (lower_bound(REQUESTS, specs, COSTS, SPEED, 5.0, {gpu: size}).ttft_mean for size in (79, 80))
    assert together == pytest.approx(alone_mean(REQUESTS))
    assert apart is not None and together is not None and apart > together


def test_longer_residences_and_switches_cost_more() -> None:
    specs = [ModelSpec("a"), ModelSpec("b")]
    means = [
        lower_bound(REQUESTS, specs, dict.fromkeys("ab", cost), SPEED, turn).ttft_mean or 0.0
        for cost, turn in ((COSTS["a"], 0.0), (COSTS["a"], 5.0), (SwitchCost(2.0, 4.0, 9.0), 5.0))
    ]
    assert means == sorted(means) and means[0] < means[1] < means[2]


def test_each_of_three_models_is_one_side_against_the_rest() -> None:
    requests = [TrafficRequest(float(number), "abc"[number % 3], 100, 10) for number in range(COUNT)]
    bound = lower_bound(requests, [ModelSpec(name) for name in "abc"], COSTS, SPEED, 5.0).ttft_mean
    assert bound is not None and bound > alone_mean(requests)


@replaces_compiled_code
def test_sides_are_only_looked_into_where_they_can_raise_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight models that take turns all together, one against seven that need no switches is far below."""
    requests = [TrafficRequest(float(number), "abcdefgh"[number % 8], 100, 10) for number in range(400)]
    specs = [ModelSpec(name) for name in "abcdefgh"]
    costs = dict.fromkeys("abcdefgh", SwitchCost(2.0, 2.0, 9.0))
    pairs: list[Side] = []

    def looked_into(first: Side, second: Side) -> float:
        pairs.append(first)
        return least_waiting(first, second)

    monkeypatch.setattr(module, "least_waiting", looked_into)
    bound = lower_bound(requests, specs, costs, SPEED, 0.0).ttft_mean
    assert bound is not None and not pairs
    monkeypatch.setattr(module, "most_waiting", lambda first, second: math.inf)
    assert lower_bound(requests, specs, costs, SPEED, 0.0).ttft_mean == bound and pairs
