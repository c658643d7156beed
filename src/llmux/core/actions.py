"""What the scheduler wants done. Each started ``Wake`` and ``Evict`` is answered by exactly one outcome event."""

from dataclasses import dataclass
from typing import TypeAlias

from llmux.core.eviction import Eviction
from llmux.core.identifiers import InstanceId, Seconds
from llmux.errors import CommandFailed, RequestError


@dataclass(frozen=True, slots=True)
class Admit:
    """Let the request go to the instance."""

    request: int
    instance: InstanceId


@dataclass(frozen=True, slots=True)
class Reject:
    """End a waiting request with an error of ours."""

    request: int
    error: RequestError


@dataclass(frozen=True, slots=True)
class Revoke:
    """Take an admitted request's lease back before anything else is done to its instance."""

    request: int
    error: RequestError


@dataclass(frozen=True, slots=True)
class Freeze:
    """An admitted request is suspended with its instance, which is about to leave the GPU."""

    request: int


@dataclass(frozen=True, slots=True)
class Thaw:
    """A frozen request goes on: its instance is back and says the same as before."""

    request: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Bring the instance onto the GPU: a cold start, or the undoing of how it left."""

    instance: InstanceId
    asleep: Eviction | None


@dataclass(frozen=True, slots=True)
class AbortWake:
    """Give up a ``Wake`` under way; its outcome is still reported."""

    instance: InstanceId


@dataclass(frozen=True, slots=True)
class Evict:
    """Bring the instance off the GPU; nothing of it is in flight any more. ``freeze``: it has requests to suspend."""

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


@dataclass(frozen=True, slots=True)
class SwitchFailed:
    """A model could not be brought onto the GPU: for the metrics and the log.

    ``unfaithful``: the way it had left, if it came back saying something else than before.
    """

    model: str
    reason: str
    unfaithful: Eviction | None = None


@dataclass(frozen=True, slots=True)
class ShutdownDone:
    """Every engine has been stopped."""


Action: TypeAlias = (
    Admit
    | Reject
    | Revoke
    | Freeze
    | Thaw
    | Wake
    | AbortWake
    | Evict
    | AbortEvict
    | SetTimer
    | CommandDone
    | SwitchDone
    | SwitchFailed
    | ShutdownDone
)
