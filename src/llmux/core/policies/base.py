"""The interface of switch policies: from a read-only view, switch to a model now, or stay."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from llmux.core.identifiers import Seconds


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that is wanted and not on the GPU. Frozen requests count as queued since they were frozen."""

    model: str
    head_arrived_at: Seconds
    queue_depth: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class WaitingModel:
    """One that waits: since when, how long its oldest request does before it times out, and how long it stays."""

    since: Seconds
    patience_seconds: Seconds
    last_stay_seconds: Seconds
    """How long it was on the GPU the last time; 0 if it has not been there."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Who waits for the GPUs on which a model is: how many models, and how many requests, each counted by its weight.

    Bounded as the candidates are.
    """

    models: int = 0
    requests: float = 0.0
    each: tuple[WaitingModel, ...] = ()
    """The models in the order in which they are overdue."""


@dataclass(frozen=True, slots=True)
class Incumbent:
    """A serving model that would have to leave. ``idle_since`` is None while it has work.

    ``awaiting_first_token``: how many of the requests in flight wait for their first token. ``prefill_seconds``: the
    engine time that a request takes until then; ``residence_seconds``: how long it is in flight; ``pause_seconds``: for
    how long its requests were frozen lately. None: unknown.
    """

    model: str
    since: Seconds
    in_flight: int
    queue_depth: int
    idle_since: Seconds | None
    can_freeze: bool = False
    weight: float = 1.0
    awaiting_first_token: int = 0
    arrivals_per_second: float = 0.0
    residence_seconds: Seconds | None = None
    prefill_seconds: Seconds | None = None
    pause_seconds: Seconds | None = None


@dataclass(frozen=True, slots=True)
class Bring:
    """Switch to the model now."""

    model: str


@dataclass(frozen=True, slots=True)
class Stay:
    """Do not switch yet; ask again at this time at the latest (infinity: only when something happens)."""

    until: Seconds


Choice: TypeAlias = Bring | Stay


class PolicyView(Protocol):
    """What a policy may look at."""

    def oldest(self) -> Candidate | None:
        """The candidate that is overdue first; None if there is none."""

    def candidates(self) -> Iterator[Candidate]:
        """The candidates that are overdue first, in that order; bounded, so that a decision's cost is."""

    def in_the_way(self, candidate: Candidate) -> Sequence[Incumbent]:
        """The models that would have to leave; empty if the candidate fits beside them."""

    def waiting_for(self, leaving: str) -> Waiting:
        """Who waits for the GPUs on which a serving model is."""

    def cost(self, leaving: str, coming: str) -> Seconds:
        """The expected time of a switch between the two; a guess while unknown."""

    def known_cost(self, leaving: str, coming: str) -> Seconds | None:
        """The same, or None while unknown."""


class Policy(Protocol):
    """Decides when to switch and to which model.

    Bounded wait, minimum times, drain, back-off, manual mode and memory are the core's and no policy's concern.
    """

    def choose(self, view: PolicyView, now: Seconds) -> Choice:
        """Called whenever a switch could be started; must not keep the view."""

    def quantum_seconds(self, leaving: Incumbent, coming: str, view: PolicyView, now: Seconds) -> Seconds:
        """How long a busy model stays on the GPU at least, overdue candidates or not; asked at every decision."""

    def quantum_max_seconds(self, longest_switch_seconds: Seconds, *, can_freeze: bool) -> Seconds:
        """The longest quantum of a model that can freeze, or of one that must drain, if no switch takes longer.

        Enters the wait bound.
        """


class NoQuantum:
    """Base of policies without a quantum: models stay for ``min_active_seconds``."""

    __slots__ = ()

    def quantum_seconds(self, leaving: Incumbent, coming: str, view: PolicyView, now: Seconds) -> Seconds:
        return 0.0

    def quantum_max_seconds(self, longest_switch_seconds: Seconds, *, can_freeze: bool) -> Seconds:
        return 0.0
