"""Samples of a server become a timeline and switches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from llmux.core.eviction import STOP
from llmux.core.model import Transition
from llmux.core.states import Auto, Cold, Serving, State, Waking
from llmux.runtime.operations import ModelStatus, Status
from llmux.simulation.demo.state import ModelSample, Monitor
from llmux.simulation.residency import Phase


@dataclass
class FakeOperator:
    """One model, ``m``, whose clock and history the test writes."""

    time: float = 100.0
    in_flight: int = 0
    transitions: list[Transition] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    def status(self) -> Status:
        model = ModelStatus("m", self.in_flight, 2, Cold(), STOP, None, 1.5)
        return Status(None, None, Auto(), (model,))

    def history(self, name: str) -> Sequence[Transition]:
        return list(self.transitions)

    def becomes(self, state: State) -> None:
        before = self.transitions[-1].after if self.transitions else Cold()
        self.transitions.append(Transition(self.time, "Event", before, state))


def test_a_monitor_reads_states_and_switches() -> None:
    operator = FakeOperator()
    monitor = Monitor(operator)
    assert monitor.sample()[0].phase is Phase.NOT_STARTED
    operator.time = 101.0
    operator.becomes(Waking(101.0, None))
    monitor.sample()
    operator.time = 103.0
    operator.becomes(Serving(103.0))
    operator.in_flight = 4
    seen = monitor.sample()
    assert seen == monitor.models == (ModelSample("m", Phase.SERVING, 103.0, 4, 2, 1.5),)
    assert [(switch.model, switch.wake_seconds) for switch in monitor.switches] == [("m", 2.0)]
    shares = monitor.timeline.shares(monitor.elapsed_seconds)
    assert (shares.switching, shares.draining, shares.serving, shares.idle) == pytest.approx((2 / 3, 0, 0, 1 / 3))
