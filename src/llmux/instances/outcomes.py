"""What happened to an engine that was to be woken or evicted, as values: expected failures are not exceptions."""

from dataclasses import dataclass

from llmux.core.eviction import Eviction
from llmux.core.states import Asleep, Cold
from llmux.errors import FailureReason


@dataclass(frozen=True, slots=True)
class SeenMemory:
    """What an engine was seen to hold of that of its GPUs of which it held most."""

    fingerprint: str
    """How the engine was started."""
    awake_mib: int
    residue_mib: int | None = None
    """What it still holds after its eviction; None if it holds nothing, or that was not measured."""
    is_told: bool = True
    """Whether the driver told it of the engine's processes: otherwise it is by how much the used memory grew, which is
    right only if nobody else was started there meanwhile."""


@dataclass(frozen=True, slots=True)
class WakeOutcome:
    """The engine serves, unless there is an ``error``: then its state is unknown, and ``Instance.end`` must follow."""

    error: FailureReason | None = None
    is_out_of_memory: bool = False
    """The error is that the GPU had too little free memory."""
    is_mismatch: bool = False
    """The error is that the engine answers differently than before it left."""
    can_freeze: bool = False
    """The engine can suspend its requests while it is off the GPU."""
    canary_seconds: float = 0.0
    """The part of the wake that was spent on checking the engine's answers."""
    seen: SeenMemory | None = None
    """What it holds after a cold start, where that was measured."""


@dataclass(frozen=True, slots=True)
class EvictOutcome:
    """Where the engine is now, unless there is an ``error``: then some of its processes may still hold the GPU."""

    residency: Asleep | Cold
    """How it left; with an ``error``, how it was meant to end."""
    fallback: str | None = None
    """What was done instead of what was asked, and why; None if nothing failed."""
    error: FailureReason | None = None
    host_mib: int | None = None
    """What its processes hold of host memory; None if none run, or that was not measured."""
    seen: SeenMemory | None = None
    """What it held before it left, and holds now, where that was measured."""

    def deviation_from(self, eviction: Eviction) -> str | None:
        """Why the engine did not leave as ``eviction`` asks; None if it did."""
        asked = Asleep(eviction) if eviction.keeps_process else Cold()
        if self.residency == asked:
            return None
        return self.fallback or f"the engine left by {self.residency} instead"
