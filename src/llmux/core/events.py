"""What can happen to the scheduler. Outcomes name their instance, so that those of an older one are ignored."""

from dataclasses import dataclass
from typing import TypeAlias

from llmux.core.eviction import Eviction
from llmux.core.identifiers import InstanceId, Seconds
from llmux.core.request import Request
from llmux.core.states import Asleep, Cold
from llmux.errors import FailureReason


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A client asks for a model."""

    request: Request


@dataclass(frozen=True, slots=True)
class RequestGone:
    """A waiting client left."""

    request: Request


@dataclass(frozen=True, slots=True)
class RequestDone:
    """An admitted request ended; ``completed`` when the engine answered it to the end."""

    request: Request
    completed: bool = True


@dataclass(frozen=True, slots=True)
class RequestReturned:
    """An admitted request lost its engine before any of its answer was sent on: it is to be tried again."""

    request: Request
    reason: FailureReason


@dataclass(frozen=True, slots=True)
class WakeDone:
    """The outcome of a ``Wake``. With an ``error`` the instance's processes are gone.

    ``out_of_memory``: the GPU had too little memory, perhaps because of what sleepers still hold there.
    ``is_mismatch``: its output differs from what it was before it left. ``can_freeze``: it can suspend requests.
    """

    instance: InstanceId
    error: FailureReason | None = None
    out_of_memory: bool = False
    is_mismatch: bool = False
    can_freeze: bool = False


@dataclass(frozen=True, slots=True)
class EvictDone:
    """The outcome of an ``Evict``: where the instance is now, or an ``error`` when it still holds the GPU."""

    instance: InstanceId
    residency: Asleep | Cold
    error: FailureReason | None = None


@dataclass(frozen=True, slots=True)
class InstanceExited:
    """An engine ended, or stopped answering, by itself; its memory is not known to be free yet."""

    instance: InstanceId
    reason: FailureReason


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time of the last ``SetTimer`` has come. A stale one does no harm: settling looks at what is due."""


@dataclass(frozen=True, slots=True)
class ModeChanged:
    """The operator chose automatic or manual switching; a pin is dropped either way."""

    manual: bool


@dataclass(frozen=True, slots=True)
class SwitchRequested:
    """The operator wants a model on the GPU. ``pin``: and only this model served from now on."""

    command: int
    model: str
    pin: bool = False


@dataclass(frozen=True, slots=True)
class WakeRequested:
    """The operator wants a model on the GPU, the mode untouched."""

    command: int
    model: str


@dataclass(frozen=True, slots=True)
class SleepRequested:
    """The operator wants a model off the GPU, by ``eviction`` or by its own."""

    command: int
    model: str
    eviction: Eviction | None = None


@dataclass(frozen=True, slots=True)
class EvictionChanged:
    """The operator overrides how a model leaves the GPU, from its next eviction on."""

    model: str
    eviction: Eviction


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """llmux is to stop: refuse what waits, drain for at most ``drain_seconds``, stop every engine."""

    drain_seconds: Seconds


Event: TypeAlias = (
    RequestArrived
    | RequestGone
    | RequestDone
    | RequestReturned
    | WakeDone
    | EvictDone
    | InstanceExited
    | TimerFired
    | ModeChanged
    | SwitchRequested
    | WakeRequested
    | SleepRequested
    | EvictionChanged
    | ShutdownRequested
)
