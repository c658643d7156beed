"""What a switch policy is: from a read-only view, either stay for now or bring a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from llmux.core.identifiers import Seconds


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that is wanted and not on the GPU. Frozen requests count as queued, since when they were frozen."""

    model: str
    head_arrived_at: Seconds
    queue_depth: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What the models that share a GPU, and are there or wait to be, ask of it together.

    ``load``: the part of an engine's time that arrivals take until their answers begin; 1 or more where that is unknown
    of all, for nothing can be told to be left over then. ``residence_seconds``: how long requests are in flight on the
    average; 0 as long as nobody knows. ``waiting_models``: how many wait for their turn.
    """

    load: float
    residence_seconds: Seconds
    waiting_models: int = 1


NO_DEMAND = Demand(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Incumbent:
    """A model on the GPU that would have to leave. ``idle_since`` is None while it has work.

    ``awaiting_first_token``: how many of those in flight wait for their first token. ``prefill_seconds``: engine time
    that a request takes until then; ``residence_seconds``: how long it is in flight. None: not known yet.
    """

    model: str
    since: Seconds
    in_flight: int
    queue_depth: int
    idle_since: Seconds | None
    can_freeze: bool = False
    awaiting_first_token: int = 0
    arrivals_per_second: float = 0.0
    residence_seconds: Seconds | None = None
    prefill_seconds: Seconds | None = None
    drain_seconds: Seconds = 0.0
    demand: Demand = NO_DEMAND


@dataclass(frozen=True, slots=True)
class Bring:
    """Switch to the model now."""

    model: str


@dataclass(frozen=True, slots=True)
class Stay:
    """Switch to nobody yet; ask again at this time at the latest (infinity: only when something happens)."""

    until: Seconds


Choice: TypeAlias = Bring | Stay


class PolicyView(Protocol):
    """What a policy may look at."""

    def oldest(self) -> Candidate | None:
        """The candidate whose turn is next."""

    def candidates(self) -> Iterator[Candidate]:
        """The candidates whose turn is next, in turn order; not more than a policy can look at in one decision."""

    def in_the_way(self, candidate: Candidate) -> Sequence[Incumbent]:
        """The models that would have to leave; empty when there is room."""

    def cost(self, leaving: str, coming: str) -> Seconds:
        """What a switch between the two is expected to take."""

    def known_cost(self, leaving: str, coming: str) -> Seconds | None:
        """The same, or None as long as nobody knows."""


class Policy(Protocol):
    """Decides when to switch and to whom, within the bounds that the core keeps for every policy."""

    def choose(self, view: PolicyView, now: Seconds) -> Choice:
        """Called whenever something could be switched; must not keep the view."""

    def quantum_seconds(self, leaving: Incumbent, coming: str, view: PolicyView, now: Seconds) -> Seconds:
        """How long a model that has work stays on the GPU at least, overdue models or not; asked again and again."""

    def quantum_max_seconds(self, longest_switch_seconds: Seconds) -> Seconds:
        """The most that ``quantum_seconds`` ever says, if no switch takes longer than that."""


class NoQuantum:
    """For policies that leave it to ``min_active_seconds`` how long a model stays."""

    __slots__ = ()

    def quantum_seconds(self, leaving: Incumbent, coming: str, view: PolicyView, now: Seconds) -> Seconds:
        """See ``Policy``."""
        return 0.0

    def quantum_max_seconds(self, longest_switch_seconds: Seconds) -> Seconds:
        """See ``Policy``."""
        return 0.0
