"""What the scheduler wants done. Each ``Wake`` and ``Evict`` is answered by exactly one outcome event."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from llmux.core.eviction import Eviction
from llmux.core.identifiers import EVERY_GPU, GpuId, InstanceId, Seconds
from llmux.core.request import Request
from llmux.errors import CommandFailed, RequestError


@dataclass(frozen=True, slots=True)
class Admit:
    """Let the request go to the instance."""

    request: Request
    instance: InstanceId


@dataclass(frozen=True, slots=True)
class Reject:
    """End a waiting request with an error of ours."""

    request: Request
    error: RequestError


@dataclass(frozen=True, slots=True)
class Revoke:
    """Take an admitted or frozen request's lease back, before anything else is done to its instance."""

    request: Request
    error: RequestError


@dataclass(frozen=True, slots=True)
class Freeze:
    """An admitted request is suspended with its instance, which is about to leave the GPU."""

    request: Request


@dataclass(frozen=True, slots=True)
class Hold:
    """A frozen request's instance is about to be woken: nothing of its answer is relayed before the ``Thaw``."""

    request: Request


@dataclass(frozen=True, slots=True)
class Thaw:
    """A frozen request resumes: its instance is back and its output is unchanged."""

    request: Request


@dataclass(frozen=True, slots=True)
class Wake:
    """Bring the instance onto the GPU: a cold start, or the undoing of how it left."""

    instance: InstanceId
    asleep: Eviction | None
    gpus: tuple[GpuId, ...] = (EVERY_GPU,)
    """Where it is to be; an engine that is not started anew is there already."""


@dataclass(frozen=True, slots=True)
class AbortWake:
    """Give up a ``Wake`` under way. Its outcome is still reported."""

    instance: InstanceId


@dataclass(frozen=True, slots=True)
class Evict:
    """Bring the instance off the GPU. Nothing of it is in flight; ``freeze``: it has requests to suspend."""

    instance: InstanceId
    eviction: Eviction
    freeze: bool = False


@dataclass(frozen=True, slots=True)
class AbortEvict:
    """Stop the engine instead of going on with an ``Evict`` under way; its outcome is still reported."""

    instance: InstanceId


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Send ``TimerFired`` at this time; replaces the former timer."""

    at: Seconds


@dataclass(frozen=True, slots=True)
class CommandDone:
    """An operator's command has ended."""

    command: int
    error: CommandFailed | None = None


@dataclass(frozen=True, slots=True)
class SwitchDone:
    """A model came onto the GPU: for the metrics and the log. ``previous`` is empty when nothing had to leave."""

    previous: str
    model: str
    cooldown_seconds: Seconds
    drain_seconds: Seconds
    sleep_seconds: Seconds
    wake_seconds: Seconds

    @property
    def total_seconds(self) -> Seconds:
        """From the wish for the switch to its end."""
        return sum((self.cooldown_seconds, self.drain_seconds, self.sleep_seconds, self.wake_seconds))


@dataclass(frozen=True, slots=True)
class SwitchFailed:
    """A model could not be brought onto the GPU: for the metrics and the log.

    ``mismatched_eviction``: how it had left, if its output differed afterwards.
    """

    model: str
    reason: str
    mismatched_eviction: Eviction | None = None


class StepDownReason(StrEnum):
    """Why a sleeping model goes deeper, or a model leaves by less than its eviction would keep."""

    HOST_MEMORY_MAX = "host_memory_max"
    HOST_MEMORY_RESERVE = "host_memory_reserve"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class SteppedDown:
    """A model keeps less from now on than ``before``: for the metrics and the log."""

    model: str
    before: Eviction
    eviction: Eviction
    reason: StepDownReason


@dataclass(frozen=True, slots=True)
class ShutdownDone:
    """Every engine has been stopped."""


RequestAction: TypeAlias = Admit | Reject | Revoke | Freeze | Hold | Thaw
"""What the scheduler decides about one request."""

Action: TypeAlias = (
    RequestAction
    | Wake
    | AbortWake
    | Evict
    | AbortEvict
    | SetTimer
    | CommandDone
    | SwitchDone
    | SwitchFailed
    | SteppedDown
    | ShutdownDone
)
