"""The state of the running demo: what its displays and its summary show."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from llmux.core.model import Transition
from llmux.core.states import Cold, State
from llmux.runtime.operations import Status
from llmux.simulation.client import LoadGenerator
from llmux.simulation.demo.scenarios import Scenario
from llmux.simulation.ledger import Ledger
from llmux.simulation.residency import Phase, Switch, SwitchLog, Timeline, phase_of


class Operator(Protocol):
    """The operations of a server that the demo uses."""

    def status(self) -> Status:
        """The present state of all models."""

    def now(self) -> float:
        """The clock of the histories."""

    def history(self, name: str) -> Sequence[Transition]:
        """A model's latest transitions."""


@dataclass(frozen=True, slots=True)
class ModelSample:
    """One model at one moment. ``since`` is when its state began, on the server's clock."""

    name: str
    phase: Phase
    since: float
    in_flight: int
    waiting: int
    oldest_wait_seconds: float
    gpus: tuple[str, ...] = ()
    """The GPUs on which it is, by their names; empty where models are not placed by memory."""


class Monitor:
    """Samples a server. Times of the timeline are seconds since the monitor was created."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._log = SwitchLog()
        self.started_at = operator.now()
        self.timeline = Timeline()
        self.models: tuple[ModelSample, ...] = ()
        """The latest sample."""
        self.sampled_at = self.started_at

    @property
    def elapsed_seconds(self) -> float:
        """Time since the monitor was created."""
        return self._operator.now() - self.started_at

    @property
    def switches(self) -> Sequence[Switch]:
        """All switches so far; their times are on the server's clock."""
        return self._log.switches

    def sample(self) -> tuple[ModelSample, ...]:
        """Sample all models. Must be called before a history drops transitions that are new since the last call."""
        now, status = self._operator.now(), self._operator.status()
        histories = {model.name: self._operator.history(model.name) for model in status.models}
        gpus = {model.name: tuple(model.gpu_mib) if model.on_gpu else () for model in status.models}
        self._log.read(histories, gpus)
        samples = []
        for model in status.models:
            history = histories[model.name]
            state: State = history[-1].after if history else Cold()
            phase = phase_of(state, is_busy=bool(model.in_flight))
            self.timeline.enter(model.name, phase, now - self.started_at)
            since = history[-1].at if history else self.started_at
            samples.append(
                ModelSample(
                    *(model.name, phase, since),
                    *(model.in_flight, model.queue_depth, model.oldest_wait_seconds),
                    gpus[model.name],
                )
            )
        self.models, self.sampled_at = tuple(samples), now
        return self.models


class Stage(StrEnum):
    """How far the demo is."""

    TRAFFIC = "clients come and go"
    LAST_ANSWERS = "the last answers"
    SERVING = "waiting for your requests"
    STOPPING = "stopping the engines"


@dataclass(slots=True)
class DemoState:
    """The running demo of a scenario. ``seconds`` is how long clients arrive; ``traffic`` is None if it only serves."""

    scenario: Scenario
    url: str
    monitor: Monitor
    ledgers: Sequence[Ledger]
    seconds: float
    traffic: LoadGenerator | None = None
    is_stopping: bool = False

    @property
    def stage(self) -> Stage:
        if self.is_stopping:
            return Stage.STOPPING
        if self.traffic is None:
            return Stage.SERVING
        return Stage.LAST_ANSWERS if self.traffic.all_sent else Stage.TRAFFIC
