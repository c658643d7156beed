"""What the scheduler needs to know of the models and limits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmux.core.eviction import STOP, Drain, Eviction
from llmux.core.identifiers import ALL_OF_IT, NOTHING, Footprint, Seconds
from llmux.core.request import Priority


@dataclass(frozen=True, slots=True)
class Placement:
    """On which GPUs a model is, and how much of each it holds."""

    awake: Footprint
    """GPU memory that it holds while it is on the GPUs."""
    asleep: Mapping[Eviction, Footprint] = field(default_factory=dict)
    """GPU memory that it still holds after each eviction; nothing where it is not listed."""
    shrinks: bool = False
    """Whether the engine gives GPU memory back even by ``retain+keep_running``: all but its weights."""

    def frees_memory(self, eviction: Eviction) -> bool:
        """Whether any GPU memory is free after it has left by ``eviction``."""
        return eviction.leaves_the_gpu or self.shrinks

    def residue(self, eviction: Eviction) -> Footprint:
        """GPU memory that the model still holds after it left by ``eviction``."""
        if not self.frees_memory(eviction):
            return self.awake
        return self.asleep.get(eviction, NOTHING) if self.asleep else NOTHING


ALL_OF_EVERY_GPU = Placement(ALL_OF_IT)
"""Of a model whose need is not known."""
WITHOUT_GPU = Placement(NOTHING)


@dataclass(frozen=True, slots=True)
class RefuseAfter:
    """How long a request may be expected to wait when it comes, by its class; it is refused otherwise."""

    interactive_seconds: Seconds = math.inf
    batch_seconds: Seconds = math.inf

    def of(self, priority: Priority) -> Seconds:
        """The limit of a class; infinity where its requests wait."""
        return self.batch_seconds if priority is Priority.BATCH else self.interactive_seconds


NEVER_REFUSED = RefuseAfter()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One configured model."""

    name: str
    eviction: Eviction = STOP
    max_in_flight: int = 256
    drain: Drain = Drain.WAIT
    placements: tuple[Placement, ...] = (ALL_OF_EVERY_GPU,)
    """Where it may be, at least one. A cold start goes to the one for which least has to leave; an engine stays where
    it was started."""
    ladder: tuple[Eviction, ...] = (STOP,)
    """The evictions by which it may leave, or go deeper asleep, beside its own; those that keep most come first."""
    begins_asleep: Eviction | None = None
    """How it left the GPU before llmux started, if it can be woken from there."""
    weight: float = 1.0
    """How much its waiting requests count with policies that weigh candidates."""
    max_wait_seconds: Seconds | None = None
    """How long its oldest request waits until the model is overdue; None: as in ``Limits``."""
    refuse_after: RefuseAfter = NEVER_REFUSED
    idle_seconds: Seconds = math.inf
    """How long it stays on the GPU without a request, unless one says otherwise."""
    is_gpu_lease: bool = False
    """Whether it stands for a GPU lease. Its one request is never interrupted, it leaves as soon as that ends, and no
    switch to it is reported: metrics know only what the configuration names."""
    keep: bool = False
    """Whether it stays on the GPUs once it is there, whoever else is asked for."""

    @property
    def uses_gpu(self) -> bool:
        """Whether it holds any GPU memory while it is awake."""
        return bool(self.placements[0].awake)

    def frees_memory(self, eviction: Eviction) -> bool:
        """Whether any GPU memory is free after it has left by ``eviction``, wherever it is."""
        return self.placements[0].frees_memory(eviction)


@dataclass(frozen=True, slots=True)
class Limits:
    """Times and bounds that hold under every policy. docs/configuration.md explains those that can be configured."""

    request_timeout_seconds: Seconds = 300.0
    request_timeout_covers_starts: bool = True
    """False: while a request's own model is started cold, the request does not time out. The start ends by itself."""
    min_active_seconds: Seconds = 5.0
    max_wait_seconds: Seconds = 15.0
    default_returns_seconds: Seconds = 300.0
    """How long what is in the default model's way must have been idle, where it has no time of its own."""
    drain_timeout_seconds: Seconds = 120.0
    host_memory_max_mib: int | None = None
    """What sleeping models may hold of host memory together; None: whatever there is."""
    sleep_deeper_after_seconds: Seconds = math.inf
    """How long a model sleeps in one way before it goes one step deeper."""
    backoff_first_seconds: Seconds = 2.0
    backoff_max_seconds: Seconds = 60.0
    queue_limit_requests: int = 10_000
    queue_limit_bytes: int = 1 << 30
    attempts_max: int = 2
    """A request that was at two engines when they died may be what killed them."""
    gpu_leases_max: int = 16
    """GPU leases that are held or waited for: people and nightly jobs ask for them, and each has a connection."""
    commands_max: int = 100
    """Operator commands are performed one after the other; more than this is a runaway script."""

    def backoff_seconds(self, failures: int) -> Seconds:
        """The pause before the next attempt after a number of failures in a row; doubles up to the maximum."""
        return min(self.backoff_max_seconds, self.backoff_first_seconds * 2.0 ** min(failures - 1, 32))
