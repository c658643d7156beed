"""The bench of placement: what it counts by, and a short form of its runs."""

import random
from collections.abc import Sequence

import pytest

from bench.placement.optimum import fewest_switches
from bench.placement.run import large_and_small, overlap, three_of_four, two_gpus

SIZES = {"a": 300, "b": 300, "c": 300, "d": 300, "large": 700}


@pytest.mark.parametrize(
    ("wanted", "fewest"),
    [
        ("", 0),
        ("abcabc", 3),
        ("abcd", 4),
        ("abcda", 4),  # b or c leaves for d, and is not missed
        ("abcdabcd", 5),  # c leaves for d, and comes back in the place of a or b
    ],
)
def test_the_fewest_switches_of_four_models_of_which_three_fit(wanted: str, fewest: int) -> None:
    assert fewest_switches(list(wanted), SIZES, 1000) == fewest


def test_the_fewest_switches_depend_on_sizes() -> None:
    assert fewest_switches(["a", "large", "a"], SIZES, 1000) == 2
    assert fewest_switches(["a", "b", "large", "a", "b"], SIZES, 1000) == 4, "one of the small ones may stay"


@pytest.mark.parametrize("seed", range(20))
def test_of_models_of_equal_size_the_one_that_is_wanted_last_leaves(seed: int) -> None:
    """Belady's rule, which needs no search."""
    wanted = random.Random(seed).choices("abcd", k=30)
    assert fewest_switches(wanted, SIZES, 1000) == belady(wanted, 3)


def belady(wanted: Sequence[str], places: int) -> int:
    there: set[str] = set()
    switches = 0
    for number, model in enumerate(wanted):
        if model not in there:
            switches += 1
            if len(there) == places:
                rest = list(wanted[number:])
                there.remove(max(sorted(there), key=lambda one: rest.index(one) if one in rest else len(rest)))
            there.add(model)
    return switches


@pytest.mark.parametrize(("one", "other", "seconds"), [((0, 2), (1, 5), 1), ((1, 5), (2, 3), 1), ((0, 1), (1, 2), 0)])
def test_how_long_two_spans_overlap(one: tuple[float, float], other: tuple[float, float], seconds: float) -> None:
    assert overlap(one, other) == overlap(other, one) == seconds


async def test_no_model_leaves_while_there_is_room() -> None:
    found = (await three_of_four(24)).figures
    assert found["left_early"] == 0
    assert found["fewest"] <= found["switches"] < found["requests"]


@pytest.mark.slow
async def test_two_gpus_make_no_switch_that_memory_does_not_force() -> None:
    found = (await two_gpus(3)).figures
    assert found["switches"] == found["forced"] == 12
    assert found["seconds_at_once"] > 0


@pytest.mark.slow
async def test_a_large_model_and_small_ones_share_two_gpus() -> None:
    found = await large_and_small(0.2, "fifo")
    assert found.figures["requests"] > 10
    assert found.figures["lost"] == found.figures["refused_by_ledger"] == 0
    assert found.figures["longest_wait_seconds"]["large"] > 0
