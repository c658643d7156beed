"""Watching a server: samples of who is on the GPU, the shares of time they add up to, and the switches."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, assert_never

from llmux.core.model import Transition
from llmux.core.states import Asleep, Cold, Draining, Evicting, Failed, Serving, State, Stuck, Waking
from llmux.runtime.operations import ModelStatus, Status
from llmux.simulation.demo.switches import StoryReader, Switch, SwitchLog

SAMPLES_KEPT = 4_000


class Phase(Enum):
    """What a model is about, as far as the GPU is concerned."""

    NOT_STARTED = auto()
    ASLEEP = auto()
    FAILED = auto()
    STARTING = auto()
    WAKING = auto()
    SERVING = auto()
    IDLE = auto()
    DRAINING = auto()
    LEAVING = auto()


OFF_GPU = frozenset({Phase.NOT_STARTED, Phase.ASLEEP, Phase.FAILED})
SWITCHING = frozenset({Phase.STARTING, Phase.WAKING, Phase.DRAINING, Phase.LEAVING})


class Operator(Protocol):
    """What is asked of a server."""

    def status(self) -> Status:
        """Where everything is now."""

    def now(self) -> float:
        """The clock of the histories."""

    def history(self, name: str) -> Sequence[Transition]:
        """A model's latest transitions."""


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model at one moment. ``since`` is when its phase began."""

    name: str
    phase: Phase
    since: float
    in_flight: int
    waiting: int
    oldest_wait_seconds: float


@dataclass(frozen=True, slots=True)
class Sample:
    """All models at one moment."""

    at: float
    models: tuple[ModelView, ...]


@dataclass(frozen=True, slots=True)
class TimeShares:
    """How the time was spent, in seconds. ``draining`` is the part of ``switching`` in which answers still came."""

    serving: float = 0.0
    switching: float = 0.0
    idle: float = 0.0
    draining: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.serving + self.switching + self.idle

    def after(self, sample: Sample, seconds: float) -> "TimeShares":
        """With so many seconds more, spent as the sample shows."""
        phases = {model.phase for model in sample.models}
        if phases & SWITCHING:
            drained = seconds if any(m.phase is Phase.DRAINING and m.in_flight for m in sample.models) else 0.0
            return TimeShares(self.serving, self.switching + seconds, self.idle, self.draining + drained)
        if Phase.SERVING in phases:
            return TimeShares(self.serving + seconds, self.switching, self.idle, self.draining)
        return TimeShares(self.serving, self.switching, self.idle + seconds, self.draining)


class Observation:
    """Grows with each ``look``; times are the server's clock less that of the first look."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._histories = StoryReader()
        self._log = SwitchLog()
        self._started_at = operator.now()
        self._state_since: dict[str, float] = {}
        self.shares = TimeShares()
        self.samples: deque[Sample] = deque(maxlen=SAMPLES_KEPT)

    @property
    def switches(self) -> Sequence[Switch]:
        """All switches so far; their times are the server's clock."""
        return self._log.switches

    @property
    def now(self) -> float:
        """The server's clock."""
        return self._operator.now()

    @property
    def started_at(self) -> float:
        """When the observation began, on the server's clock."""
        return self._started_at

    def look(self) -> Sample:
        """Take a sample now."""
        now, status = self._operator.now(), self._operator.status()
        histories = {model.name: self._operator.history(model.name) for model in status.models}
        self._log.add(self._histories.read(histories))
        sample = Sample(now, tuple(_view(model, histories, self._started_at) for model in status.models))
        if self.samples:
            before = self.samples[-1]
            self.shares = self.shares.after(before, now - before.at)
        self.samples.append(sample)
        return sample


def _view(model: ModelStatus, histories: Mapping[str, Sequence[Transition]], started_at: float) -> ModelView:
    history = histories[model.name]
    state: State = history[-1].after if history else Cold()
    since = history[-1].at if history else started_at
    phase = phase_of(state, model.in_flight)
    return ModelView(model.name, phase, since, model.in_flight, model.queue_depth, model.oldest_wait_seconds)


def phase_of(state: State, in_flight: int) -> Phase:
    """The phase of a model in this state with so many requests at its engine."""
    match state:
        case Cold():
            return Phase.NOT_STARTED
        case Asleep():
            return Phase.ASLEEP
        case Waking(asleep=None):
            return Phase.STARTING
        case Waking():
            return Phase.WAKING
        case Serving():
            return Phase.SERVING if in_flight else Phase.IDLE
        case Draining():
            return Phase.DRAINING
        case Evicting():
            return Phase.LEAVING
        case Failed() | Stuck():
            return Phase.FAILED
        case _:
            assert_never(state)


def strip(samples: Iterable[Sample], model: str, start: float, end: float, cells: int) -> list[Phase | None]:
    """What the model was about in each of so many equal parts of the time; None where nobody has looked.

    Of several phases in one part the longest one counts, and the later one of two equally long ones.
    """
    counts: list[dict[Phase, int]] = [{} for _ in range(cells)]
    last = -1
    for sample in samples:
        cell = int((sample.at - start) / (end - start) * cells)
        if 0 <= cell < cells:
            phase = next(view.phase for view in sample.models if view.name == model)
            counts[cell][phase] = counts[cell].pop(phase, 0) + 1
            last = cell
    line: list[Phase | None] = [max(reversed(list(cell)), key=cell.__getitem__) if cell else None for cell in counts]
    for cell in range(1, last):
        line[cell] = line[cell] or line[cell - 1]
    return line
