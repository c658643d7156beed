"""What happened to an engine that was to be woken or evicted, as values: expected failures are not exceptions."""

from dataclasses import dataclass

from llmux.core.eviction import Eviction
from llmux.core.states import Asleep, Cold
from llmux.errors import FailureReason


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


@dataclass(frozen=True, slots=True)
class EvictOutcome:
    """Where the engine is now, unless there is an ``error``: then some of its processes may still hold the GPU."""

    residency: Asleep | Cold
    """How it left; with an ``error``, how it was meant to end."""
    fallback: str | None = None
    """What was done instead of what was asked, and why; None if nothing failed."""
    error: FailureReason | None = None

    def deviation_from(self, eviction: Eviction) -> str | None:
        """Why the engine did not leave as ``eviction`` asks; None if it did."""
        asked = Asleep(eviction) if eviction.keeps_process else Cold()
        if self.residency == asked:
            return None
        return self.fallback or f"the engine left by {self.residency} instead"
