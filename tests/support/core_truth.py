"""The runtime's side of a test of the core: the truth about requests and engines, and what becomes of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from llmux.core.actions import Evict, Wake
from llmux.core.events import EvictDone
from llmux.core.eviction import Eviction
from llmux.core.gpu_lease import GpuLease
from llmux.core.identifiers import Footprint, GpuId
from llmux.core.request import Priority, Request
from llmux.core.settings import ModelSpec, Placement
from llmux.core.states import Asleep, Cold
from llmux.errors import FailureReason, RequestError


class Place(Enum):
    """Where a request is."""

    WAITING = auto()
    IN_FLIGHT = auto()
    FROZEN = auto()
    RETURNING = auto()
    ENDED = auto()


@dataclass
class TrackedRequest:
    """The truth about one request, beside the core's own ``record`` of it."""

    record: Request
    arrived_at: float
    place: Place = Place.WAITING
    has_first_token: bool = False
    """Whether its answer has begun, since it was admitted last."""
    attempts: int = 0
    comes_back: bool = True
    """Whether it returns when its engine dies, as one does that has sent its client nothing yet."""
    error: RequestError | None = None
    admitted_at: float | None = None
    frozen_at: float | None = None
    held: bool = False
    """Whether its engine is being woken, so that nothing may be relayed before it is thawed."""
    remaining: tuple[float, bool] | None = None
    """How much longer a frozen request takes once it resumes, and whether it completes."""

    @property
    def number(self) -> int:
        return self.record.id

    @property
    def model(self) -> str:
        return self.record.model

    @property
    def is_gpu_lease(self) -> bool:
        return isinstance(self.record, GpuLease)

    @property
    def priority(self) -> Priority:
        return self.record.priority

    @property
    def streams(self) -> bool:
        return self.record.streams


@dataclass
class Engine:
    """The truth about a model's engine. ``pending`` is the action whose outcome is still to come."""

    spec: ModelSpec
    generation: int = 0
    running: bool = False
    awake: bool = False
    asleep: Eviction | None = None
    dead: bool = False
    pending: Wake | Evict | None = None
    left_at: float = float("-inf")
    awake_since: float = float("-inf")
    keep_alive_seconds: float | None = None
    """What the last request said that it was given while awake."""
    wake_failures: int = 0
    host_mib: Mapping[Eviction, int] = field(default_factory=dict)
    """What it holds of host memory after each eviction; nothing is measured of others."""
    gpus: tuple[GpuId, ...] = ()
    """Where it was started last."""
    not_before: float = float("-inf")
    places: tuple[Placement, ...] = ()
    """Where its model may be since it was measured last; empty: as its specification says."""

    @property
    def placement(self) -> Placement:
        """Of those of its model, the one on these GPUs."""
        return next(place for place in self.places or self.spec.placements if tuple(place.awake) == self.gpus)

    @property
    def held_mib(self) -> int:
        """Host memory that it holds asleep."""
        is_asleep = self.asleep is not None and not isinstance(self.pending, Wake)
        return self.host_mib.get(self.asleep, 0) if is_asleep and self.asleep is not None else 0

    @property
    def is_on_gpu(self) -> bool:
        """Whether it is awake, or on its way there; not of one that needs no GPU."""
        return self.spec.uses_gpu and (self.awake or isinstance(self.pending, Wake))

    @property
    def held(self) -> Footprint:
        if self.awake or isinstance(self.pending, Wake):
            return self.placement.awake
        return {} if self.asleep is None else self.placement.residue(self.asleep)


class Fates:
    """How long things take and what becomes of them; None leaves an outcome to whoever drives."""

    longest_switch_seconds = 2.0
    longest_lease_seconds = 0.0

    def wake(self, action: Wake) -> tuple[float, str | None] | None:
        return (1.0, None)

    def evict(self, action: Evict) -> tuple[float, EvictDone] | None:
        return (1.0, evicted(action))

    def request(self, request: TrackedRequest) -> tuple[float, bool] | None:
        return (1.0, True)


class Held(Fates):
    """Nothing happens unless it is driven."""

    def wake(self, action: Wake) -> None:
        return None

    def evict(self, action: Evict) -> None:
        return None

    def request(self, request: TrackedRequest) -> None:
        return None


def evicted(action: Evict, residency: Asleep | Cold | None = None, error: str | None = None) -> EvictDone:
    """The outcome of an eviction: as asked, unless said otherwise."""
    as_asked: Asleep | Cold = Asleep(action.eviction) if action.eviction.keeps_process else Cold()
    return EvictDone(action.instance, residency or as_asked, None if error is None else FailureReason(error))
