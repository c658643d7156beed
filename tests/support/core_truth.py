"""The runtime's side of a test of the core: the truth about requests and engines, and what becomes of them."""

from dataclasses import dataclass
from enum import Enum, auto

from llmux.core.actions import Evict, Wake
from llmux.core.events import EvictDone
from llmux.core.eviction import Eviction
from llmux.core.identifiers import Footprint
from llmux.core.priority import Priority
from llmux.core.settings import ModelSpec
from llmux.core.states import Asleep, Cold
from llmux.errors import RequestError


class Place(Enum):
    """Where a request is."""

    WAITING = auto()
    IN_FLIGHT = auto()
    FROZEN = auto()
    RETURNING = auto()
    ENDED = auto()


@dataclass
class Request:
    """The truth about one request."""

    number: int
    model: str
    arrived_at: float
    size_bytes: int
    place: Place = Place.WAITING
    priority: Priority = Priority.INTERACTIVE
    answered: bool = False
    """Whether its answer has begun, since it was admitted last."""
    attempts: int = 0
    error: RequestError | None = None
    admitted_at: float | None = None
    frozen_at: float | None = None
    remaining: tuple[float, bool] | None = None
    """How much longer a frozen request takes once it goes on, and whether it completes."""

    @property
    def streams(self) -> bool:
        """Every fourth wants its answer in one piece."""
        return self.number % 4 != 0


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
    wake_failures: int = 0
    not_before: float = float("-inf")

    @property
    def held(self) -> Footprint:
        if self.awake or isinstance(self.pending, Wake):
            return self.spec.awake
        return {} if self.asleep is None else self.spec.residue(self.asleep)


class Fates:
    """How long things take and what becomes of them; None leaves an outcome to whoever drives."""

    longest_switch_seconds = 2.0

    def wake(self, action: Wake) -> tuple[float, str | None] | None:
        return (1.0, None)

    def evict(self, action: Evict) -> tuple[float, EvictDone] | None:
        return (1.0, evicted(action))

    def request(self, request: Request) -> tuple[float, bool] | None:
        return (1.0, True)


class Held(Fates):
    """Nothing happens unless it is driven."""

    def wake(self, action: Wake) -> None:
        return None

    def evict(self, action: Evict) -> None:
        return None

    def request(self, request: Request) -> None:
        return None


def evicted(action: Evict, residency: Asleep | Cold | None = None, error: str | None = None) -> EvictDone:
    """The outcome of an eviction: as asked, unless said otherwise."""
    as_asked: Asleep | Cold = Asleep(action.eviction) if action.eviction.keeps_process else Cold()
    return EvictDone(action.instance, residency or as_asked, error)
