"""Samples add up to shares of time and to strips of who was on the GPU."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from llmux.core.eviction import STOP, Eviction
from llmux.core.model import Transition
from llmux.core.states import Asleep, Auto, Cold, Draining, Evicting, Failed, Serving, State, Stuck, Waking
from llmux.runtime.operations import ModelStatus, Status
from llmux.simulation.demo.observation import ModelView, Observation, Phase, Sample, TimeShares, phase_of, strip

OFFLOAD = Eviction.parse("offload+keep_running")


@dataclass
class FakeOperator:
    """One model, ``m``, whose clock and history the test writes."""

    time: float = 100.0
    in_flight: int = 0
    transitions: list[Transition] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    def status(self) -> Status:
        model = ModelStatus("m", self.in_flight, 2, "", STOP, False, None, None, 1.5)
        return Status("", None, Auto(), (model,))

    def history(self, name: str) -> Sequence[Transition]:
        return list(self.transitions)

    def becomes(self, state: State) -> None:
        before = self.transitions[-1].after if self.transitions else Cold()
        self.transitions.append(Transition(self.time, "Event", before, state))


def sample(at: float, phase: Phase, in_flight: int = 0) -> Sample:
    return Sample(at, (ModelView("m", phase, 0.0, in_flight, 0, 0.0),))


@pytest.mark.parametrize(
    ("state", "in_flight", "phase"),
    [
        (Cold(), 0, Phase.NOT_STARTED),
        (Asleep(OFFLOAD), 0, Phase.ASLEEP),
        (Waking(1.0, None), 0, Phase.STARTING),
        (Waking(1.0, OFFLOAD), 0, Phase.WAKING),
        (Serving(1.0), 1, Phase.SERVING),
        (Serving(1.0), 0, Phase.IDLE),
        (Draining(1.0, 0.0, 9.0, OFFLOAD), 1, Phase.DRAINING),
        (Evicting(1.0, OFFLOAD), 0, Phase.LEAVING),
        (Failed("x", 9.0, True), 0, Phase.FAILED),
        (Stuck("x", 9.0), 0, Phase.FAILED),
    ],
)
def test_the_phase_of_every_state(state: State, in_flight: int, phase: Phase) -> None:
    assert phase_of(state, in_flight) is phase


def test_time_counts_as_what_the_sample_before_showed() -> None:
    shares = TimeShares()
    shares = shares.after(sample(0.0, Phase.SERVING, 1), 1.0)
    shares = shares.after(sample(1.0, Phase.DRAINING, 1), 2.0)
    shares = shares.after(sample(3.0, Phase.LEAVING), 4.0)
    shares = shares.after(sample(7.0, Phase.IDLE), 8.0)
    assert shares == TimeShares(serving=1.0, switching=6.0, idle=8.0, draining=2.0)
    assert shares.total == 15.0


def test_a_switch_outweighs_whoever_serves() -> None:
    both = Sample(0.0, (*sample(0.0, Phase.SERVING, 1).models, *sample(0.0, Phase.WAKING).models))
    assert TimeShares().after(both, 1.0) == TimeShares(switching=1.0)


def test_an_observation_reads_states_and_switches() -> None:
    operator = FakeOperator()
    observation = Observation(operator)
    assert observation.look().models[0].phase is Phase.NOT_STARTED
    operator.time = 101.0
    operator.becomes(Waking(101.0, None))
    observation.look()
    operator.time = 103.0
    operator.becomes(Serving(103.0))
    operator.in_flight = 4
    seen = observation.look()
    assert seen.models == (ModelView("m", Phase.SERVING, 103.0, 4, 2, 1.5),)
    assert [(switch.model, switch.wake_seconds) for switch in observation.switches] == [("m", 2.0)]
    assert observation.shares == TimeShares(switching=2.0, idle=1.0)


def test_a_strip_shows_the_longest_phase_of_each_part() -> None:
    samples = [
        sample(0.0, Phase.IDLE),
        sample(0.4, Phase.SERVING),
        sample(0.8, Phase.SERVING),
        sample(1.1, Phase.DRAINING),
        sample(1.6, Phase.LEAVING),
        sample(3.0, Phase.ASLEEP),
    ]
    cells = strip(samples, "m", -1.0, 5.0, 6)
    assert cells == [None, Phase.SERVING, Phase.LEAVING, Phase.LEAVING, Phase.ASLEEP, None]
