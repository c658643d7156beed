"""Which models must leave so that another one fits."""

import pytest

from llmux.core.identifiers import GpuId
from llmux.core.placement import Occupant, fits, free_memory, victims

ONE, TWO = GpuId("local", "1"), GpuId("local", "2")


def test_free_memory_is_capacity_less_what_is_held():
    assert free_memory({ONE: 10, TWO: 10}, [{ONE: 3}, {ONE: 2, TWO: 10}]) == {ONE: 5, TWO: 0}


def test_fits_checks_every_gpu():
    assert fits({ONE: 5, TWO: 1}, {ONE: 5, TWO: 1})
    assert not fits({ONE: 5, TWO: 1}, {ONE: 9})
    assert fits({}, {})


SLEEPER = Occupant("sleeper", {ONE: 2}, (0, 1.0))
IDLE = Occupant("idle", {ONE: 6}, (1, 1.0))
BUSY = Occupant("busy", {ONE: 4}, (2, 1.0))
OLDER_BUSY = Occupant("older", {ONE: 4}, (2, 0.0))
ELSEWHERE = Occupant("elsewhere", {TWO: 10}, (0, 0.0))


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
    assert victims(needed, free, occupants) == expected
