"""What the scheduler must know about the models and the limits, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmux.core.eviction import STOP, Drain, Eviction
from llmux.core.identifiers import ALL_OF_IT, NOTHING, Footprint, Seconds


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One configured model. ``awake`` is what it holds while on the GPUs, ``asleep`` what remains per eviction."""

    name: str
    eviction: Eviction = STOP
    max_in_flight: int = 256
    drain: Drain = Drain.WAIT
    awake: Footprint = field(default_factory=lambda: ALL_OF_IT)
    asleep: Mapping[Eviction, Footprint] = field(default_factory=dict)
    begins_asleep: Eviction | None = None
    """How it left the GPU before llmux started, if it can be woken from there."""
    weight: float = 1.0
    """How much its waiting requests count with a policy that weighs."""
    max_wait_seconds: Seconds | None = None
    """When its oldest waiting request is overdue; None: as for all."""

    def residue(self, eviction: Eviction) -> Footprint:
        """What the model still holds on the GPUs after it left by ``eviction``."""
        if not eviction.leaves_the_gpu:
            return self.awake
        return self.asleep.get(eviction, NOTHING) if self.asleep else NOTHING


@dataclass(frozen=True, slots=True)
class Limits:
    """The times and bounds that belong to no policy."""

    request_timeout_seconds: Seconds = 300.0
    min_active_seconds: Seconds = 5.0
    max_wait_seconds: Seconds = 15.0
    drain_timeout_seconds: Seconds = 120.0
    backoff_first_seconds: Seconds = 2.0
    backoff_max_seconds: Seconds = 60.0
    queue_limit_requests: int = 10_000
    queue_limit_bytes: int = 1 << 30
    attempts_max: int = 2
    commands_max: int = 100

    def backoff_seconds(self, failures: int) -> Seconds:
        """How long to wait before the next try after so many failures in a row."""
        return min(self.backoff_max_seconds, self.backoff_first_seconds * 2.0 ** min(failures - 1, 32))
