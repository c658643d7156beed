"""The states of a model: each a frozen dataclass with exactly the data that is valid in it."""

from dataclasses import dataclass
from typing import TypeAlias

from llmux.core.eviction import Eviction
from llmux.core.identifiers import Seconds
from llmux.errors import FailureReason


@dataclass(frozen=True, slots=True)
class Cold:
    """No engine runs."""


@dataclass(frozen=True, slots=True)
class Asleep:
    """The engine is off the GPU and can be woken; ``eviction`` is how it left."""

    eviction: Eviction


@dataclass(frozen=True, slots=True)
class Waking:
    """On the way onto the GPU, whose memory it holds from the decision on. ``asleep`` is how it had left."""

    since: Seconds
    asleep: Eviction | None

    @property
    def from_cold(self) -> bool:
        """Whether the engine has to be started."""
        return self.asleep is None


@dataclass(frozen=True, slots=True)
class Serving:
    """On the GPU and admitting requests."""

    since: Seconds


@dataclass(frozen=True, slots=True)
class Draining:
    """On the GPU, admitting nothing; leaves when its requests have ended or at the deadline."""

    since: Seconds
    serving_since: Seconds
    deadline: Seconds
    eviction: Eviction


@dataclass(frozen=True, slots=True)
class Evicting:
    """On the way off the GPU, still holding its memory, or deeper asleep than ``asleep``, how it had left before.

    ``crash`` says why, if the engine died by itself.
    """

    since: Seconds
    eviction: Eviction
    crash: FailureReason | None = None
    asleep: Eviction | None = None


@dataclass(frozen=True, slots=True)
class Stuck:
    """Could not be brought off the GPU and still holds what it held; stopping it is tried again at ``retry_at``.

    ``asleep`` is how it had left before, if it was asleep already.
    """

    reason: FailureReason
    retry_at: Seconds
    asleep: Eviction | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """No engine runs because it failed; it is not started before ``retry_at``.

    ``refusing``: requests are refused until then, rather than queued.
    """

    reason: FailureReason
    retry_at: Seconds
    refusing: bool


State: TypeAlias = Cold | Asleep | Waking | Serving | Draining | Evicting | Stuck | Failed

ON_GPU = (Waking, Serving, Draining, Evicting, Stuck)
"""The states in which a model holds the memory of an awake one."""

LEAVING = frozenset((Draining, Evicting))
"""The states of a model that is on its way off the GPU."""

RESIDENT = (Serving, Draining)
"""The states in which requests may be in flight."""

BACKING_OFF = (Failed, Stuck)
"""The states in which something is tried again at ``retry_at``."""

ALLOWED: dict[type[State], tuple[type[State], ...]] = {
    Cold: (Waking,),
    Asleep: (Waking, Evicting),
    Waking: (Serving, Failed, Cold),
    Serving: (Draining, Evicting),
    Draining: (Draining, Serving, Evicting),
    Evicting: (Asleep, Cold, Failed, Stuck),
    Stuck: (Evicting,),
    Failed: (Waking,),
}
"""Every transition there is; ``World.set_state`` refuses any other. docs/architecture.md says what causes each."""


@dataclass(frozen=True, slots=True)
class Auto:
    """Requests decide which model is on the GPU."""


@dataclass(frozen=True, slots=True)
class Manual:
    """Only the operator switches. ``allowed`` is the one model that is served: the pinned one, else the active one."""

    pinned: str | None
    allowed: str | None


Mode: TypeAlias = Auto | Manual
