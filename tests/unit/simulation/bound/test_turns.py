import random

import pytest

from llmux.simulation.bound.turns import STEP_SECONDS_MIN, Side, least_waiting


def cost(side: Side, left: int, back: int) -> float:
    """The waiting of those who wanted to begin while their side was away, which are then read one after the other."""
    begins, total = float(back), 0.0
    for at, seconds in zip(side.ready_at, side.prefill_seconds, strict=True):
        if left < at <= back:
            total += begins - at
            begins += seconds
    return total


def exact(first: Side, second: Side) -> float:
    """The least waiting on a grid of whole seconds, by trying every end of every turn."""
    sides = (first, second)
    end = int(max(*first.ready_at, *second.ready_at)) + 1
    longest = int(max(side.arriving_seconds + side.turn_seconds_min for side in sides))
    ahead: dict[tuple[int, int], float] = {}
    for left_at in range(end, -2 * longest - 1, -1):
        for number, side in enumerate(sides):
            other = sides[1 - number]
            if not any(at > left_at for at in side.ready_at):
                ahead[number, left_at] = 0.0
                continue
            shortest = int(other.arriving_seconds + other.turn_seconds_min)
            ahead[number, left_at] = min(
                cost(side, left_at, turn_ends + int(side.arriving_seconds)) + ahead.get((1 - number, turn_ends), 0.0)
                for turn_ends in range(left_at + shortest, end + shortest + 1)
            )
    return min(ahead[0, -2 * longest], ahead[1, -2 * longest])


@pytest.mark.parametrize("seed", range(12))
def test_it_is_below_the_best_sequence_of_turns_but_not_far(seed: int) -> None:
    chance = random.Random(seed)
    end = 60

    def side() -> Side:
        count = chance.randint(1, 25)
        ready_at = sorted(float(chance.randrange(end)) for _ in range(count))
        reading = [chance.choice((0.0, 0.1, 1.0)) for _ in range(count)]
        return Side(ready_at, float(chance.randint(1, 4)), float(chance.randint(0, 5)), reading)

    first, second = side(), side()
    best = exact(first, second)
    bound = least_waiting(first, second)
    # Switches may begin between whole seconds too, so the best on the grid may be a little above the very best.
    assert bound <= best + 1e-6
    assert bound >= 0.75 * best - 25 * 2 * 2 * STEP_SECONDS_MIN


def test_one_side_alone_waits_for_nobody() -> None:
    assert least_waiting(Side([1.0, 2.0], 2.0, 5.0), Side([], 2.0, 5.0)) == 0.0


def test_two_that_come_together_cost_one_switch() -> None:
    bound = least_waiting(Side([10.0], 2.0, 0.0), Side([10.0], 3.0, 0.0))
    assert bound == pytest.approx(2.0, abs=0.05)


def test_the_shortest_turn_counts() -> None:
    busy = [number / 2 for number in range(1, 201)]

    def bound(turn_seconds_min: float) -> float:
        return least_waiting(Side(busy, 2.0, turn_seconds_min), Side([50.0], 2.0, turn_seconds_min))

    # Away from 48 to 52, there at 50: those who come at 48.5 to 52 wait 3.5 + 3 + ... + 0.5.
    assert bound(0.0) == pytest.approx(14.0, abs=0.2)
    # Away for 9 s would cost 76.5 s: rather let the one wait until the busy ones have come, 52 s.
    assert bound(5.0) == pytest.approx(52.0, abs=0.2)
