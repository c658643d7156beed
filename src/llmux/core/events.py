"""What can happen to the scheduler. Outcomes name their instance, so that those of an older one are ignored."""

from dataclasses import dataclass
from typing import TypeAlias

from llmux.core.eviction import Eviction
from llmux.core.gpu_lease import GpuLease
from llmux.core.identifiers import Footprint, InstanceId, Seconds
from llmux.core.request import Request
from llmux.core.settings import Placement
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
class GpuLeaseRequested:
    """A program wants GPU memory. The lease then lives as any request: it is gone, admitted, done."""

    lease: GpuLease


@dataclass(frozen=True, slots=True)
class MemoryPressure:
    """Programs that are not ours have taken GPU memory; told at each look while any is missing, and once it is not."""

    missing: Footprint
    """What idle models shall give up, in MiB; empty when it is over."""


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
    """The outcome of an ``Evict``: where the instance is now, or an ``error`` when it still holds the GPU.

    ``host_mib``: what its processes hold of host memory now; None where that was not measured.
    """

    instance: InstanceId
    residency: Asleep | Cold
    error: FailureReason | None = None
    host_mib: int | None = None


@dataclass(frozen=True, slots=True)
class NeedMeasured:
    """A model's engine was seen to hold another amount of GPU memory than was thought.

    ``placements``: where the model may be from now on. One of them has the GPUs on which its engine is.
    """

    instance: InstanceId
    placements: tuple[Placement, ...]


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
class Unpinned:
    """The operator has no model pinned any more: requests switch, and no model stays on the GPUs for ever."""


@dataclass(frozen=True, slots=True)
class SwitchRequested:
    """The operator wants a model on the GPU. ``pin``: and only this model served from now on."""

    command: int
    model: str
    pin: bool = False


@dataclass(frozen=True, slots=True)
class WakeRequested:
    """The operator wants a model on the GPU, the mode untouched. ``keep``: and it stays there, others beside it."""

    command: int
    model: str
    keep: bool = False


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
class DefaultChanged:
    """From now on this model comes back to the GPU when nobody needs what is in its way; None: no model does."""

    model: str | None


@dataclass(frozen=True, slots=True)
class HostMemoryShort:
    """The machine has so much less host memory available than it should keep."""

    missing_mib: int


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """llmux is to stop: refuse what waits, drain for at most ``drain_seconds``, stop every engine."""

    drain_seconds: Seconds


Event: TypeAlias = (
    RequestArrived
    | RequestGone
    | RequestDone
    | RequestReturned
    | GpuLeaseRequested
    | MemoryPressure
    | WakeDone
    | EvictDone
    | NeedMeasured
    | InstanceExited
    | TimerFired
    | ModeChanged
    | Unpinned
    | SwitchRequested
    | WakeRequested
    | SleepRequested
    | EvictionChanged
    | DefaultChanged
    | HostMemoryShort
    | ShutdownRequested
)
