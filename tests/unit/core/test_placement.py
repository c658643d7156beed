"""Which models must leave so that another one fits."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.core.identifiers import GpuId
from llmux.core.placement import Occupant, Price, Use, fits, free_memory, give, price_of, victims
from tests.support.examples import examples

ONE, TWO = GpuId("local", "1"), GpuId("local", "2")


def test_free_memory_is_capacity_less_what_is_held():
    assert free_memory({ONE: 10, TWO: 10}, [{ONE: 3}, {ONE: 2, TWO: 10}]) == {ONE: 5, TWO: 0}


def test_fits_checks_every_gpu():
    assert fits({ONE: 5, TWO: 1}, {ONE: 5, TWO: 1})
    assert not fits({ONE: 5, TWO: 1}, {ONE: 9})
    assert fits({}, {})


SLEEPER = Occupant("sleeper", {ONE: 2}, Price(Use.NONE, 0.0, 1.0))
IDLE = Occupant("idle", {ONE: 6}, Price(Use.IDLE, 0.0, 1.0))
BUSY = Occupant("busy", {ONE: 4}, Price(Use.BUSY, 0.0, 1.0))
OLDER_BUSY = Occupant("older", {ONE: 4}, Price(Use.BUSY, 0.0, 0.0))
ELSEWHERE = Occupant("elsewhere", {TWO: 10}, Price(Use.NONE, 0.0, 0.0))


@pytest.mark.parametrize(
    ("needed", "free", "occupants", "expected"),
    [
        ({ONE: 1}, {ONE: 1}, [IDLE], ()),
        ({ONE: 3}, {ONE: 1}, [IDLE, SLEEPER, BUSY], ("sleeper",)),
        ({ONE: 7}, {ONE: 1}, [IDLE, SLEEPER, BUSY], ("idle",)),
        ({ONE: 8}, {ONE: 1}, [IDLE, SLEEPER, BUSY], ("sleeper", "idle")),
        ({ONE: 4}, {ONE: 0}, [BUSY, OLDER_BUSY], ("older",)),
        ({ONE: 2}, {ONE: 0, TWO: 0}, [ELSEWHERE, IDLE], ("idle",)),
        ({ONE: 20}, {ONE: 1}, [IDLE, SLEEPER, BUSY], None),
        ({ONE: 1}, {ONE: -1}, [SLEEPER], ("sleeper",)),
    ],
)
def test_victims_are_few_and_cheap(needed, free, occupants, expected):
    assert names(victims(needed, free, occupants)) == expected


def names(occupants):
    return None if occupants is None else tuple(occupant.model for occupant in occupants)


sizes = st.dictionaries(st.sampled_from((ONE, TWO)), st.integers(1, 8), min_size=1)
prices = st.builds(Price, st.sampled_from(Use), st.sampled_from((0.0, 0.1, 1.0, 5.0)), st.floats(0.0, 9.0))
occupied = st.lists(st.tuples(sizes, prices), max_size=6).map(
    lambda found: [Occupant(str(number), frees, price) for number, (frees, price) in enumerate(found)]
)


def is_enough(needed, free, leaving):
    left = dict(free)
    for occupant in leaving:
        give(left, occupant.frees)
    return fits(needed, left)


@examples(300)
@given(needed=sizes, free=st.fixed_dictionaries({ONE: st.integers(-2, 8), TWO: st.integers(0, 8)}), occupants=occupied)
def test_victims_are_enough_none_of_them_is_needless_and_none_is_in_use_where_others_would_do(needed, free, occupants):
    sets = [
        leaving
        for count in range(len(occupants) + 1)
        for leaving in combinations(occupants, count)
        if is_enough(needed, free, leaving)
    ]
    found = victims(needed, free, occupants)
    assert (found is not None) == bool(sets)
    if found is None:
        return
    assert is_enough(needed, free, found)
    assert not any(is_enough(needed, free, [one for one in found if one is not other]) for other in found)
    best = min(sets, key=price_of)
    assert max((one.price.use for one in found), default=0) == max((one.price.use for one in best), default=0)
