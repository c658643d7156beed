"""What a policy may see of the scheduler: one decision's candidates, and what is in their way."""

from collections.abc import Iterator, Sequence
from itertools import islice

from llmux.core import leasing
from llmux.core.identifiers import GpuId, Seconds
from llmux.core.lifecycle import freezes
from llmux.core.model import Model
from llmux.core.placement import Plan
from llmux.core.policies.base import Candidate, Incumbent, Waiting, WaitingModel
from llmux.core.settings import Placement
from llmux.core.states import Serving
from llmux.core.vacating import PlacementPlan, Room
from llmux.core.world import World

CANDIDATES_MAX = 8
"""Candidates that a policy chooses among. Bounds the cost of a decision: with 1,000 models waiting it is at most a
third more than with 4 (bench/switch/decisions.py)."""


class SchedulerView:
    """The ``PolicyView`` of one decision. What policies ask it changes nothing in the world.

    While the decision goes on, models that it has dealt with are excluded one after the other, with the memory that
    they will need.
    """

    __slots__ = (
        "_incumbents",
        "_is_sampled",
        "_kept_from_leases",
        "_room",
        "_world",
        "closed",
        "dealt_with",
    )

    def __init__(self, world: World) -> None:
        self._world = world
        self._room = Room(world)
        self._kept_from_leases: set[GpuId] = set()
        self.dealt_with: dict[str, None] = {}
        """Models that this decision has brought already, or keeps free what they wait for."""
        self._is_sampled = False
        self._incumbents: dict[int, Sequence[Incumbent]] = {}
        world.candidates.passed = 0
        self.closed = self._room.closed
        """GPUs to which nothing may come any more."""

    def oldest(self) -> Candidate | None:
        name = self.first_available()
        return None if name is None else self._candidate(name)

    def candidates(self) -> Iterator[Candidate]:
        candidates = self._world.candidates
        available = filter(self.is_available, candidates.models(candidates.passed))
        return map(self._candidate, islice(available, CANDIDATES_MAX))

    def in_the_way(self, candidate: Candidate) -> Sequence[Incumbent]:
        model, rules = self._world.models[candidate.model], self._world.rules
        if model.held or (rules.are_any and not rules.is_like_others(model)):
            return self._in_the_way(model)
        # Most models need the same memory and hold none of it: the same incumbents are in their way. With 100 models
        # waiting, a decision of time_slice makes a third of the calls for this.
        incumbents = self._incumbents.get(model.need_number)
        if incumbents is None:
            incumbents = self._incumbents[model.need_number] = self._in_the_way(model)
        return incumbents

    def _in_the_way(self, model: Model) -> Sequence[Incumbent]:
        found = self.best_placement(model)
        if found is None:
            return ()
        models = self._world.models
        return [self.incumbent(models[name]) for name in found.plan.victims if isinstance(models[name].state, Serving)]

    def waiting_for(self, leaving: str) -> Waiting:
        """GPU leases left out."""
        world = self._world
        gpus = world.models[leaving].awake.keys()
        patience = world.limits.request_timeout_seconds
        requests = 0.0
        each: list[WaitingModel] = []
        for name in world.candidates:
            one = world.models[name]
            if one.spec.is_gpu_lease or one.possible_gpus.isdisjoint(gpus):
                continue
            since = one.head_since
            assert since is not None
            requests += one.spec.weight * (one.queue.size + len(one.frozen))
            each.append(WaitingModel(since, patience, one.estimates.stay_seconds))
            if len(each) == CANDIDATES_MAX:
                break
        return Waiting(len(each), requests, tuple(each))

    def cost(self, leaving: str, coming: str) -> Seconds:
        return self._world.costs.direction(leaving, coming)

    def known_cost(self, leaving: str, coming: str) -> Seconds | None:
        return self._world.costs.known(leaving, coming)

    def is_available(self, name: str) -> bool:
        """Whether the model may still be chosen: it has not been dealt with, and room could be made for it."""
        if name in self.dealt_with or name in self._world.switches:
            return False
        model = self._world.models[name]
        return bool(self._open_to_lease(model)) if model.spec.is_gpu_lease else self._room.is_open(model)

    def is_leased_out(self, model: Model) -> bool:
        """Whether the model could come nowhere before GPU leases end."""
        return leasing.is_leased_out(self._world, model)

    def _open_to_lease(self, model: Model) -> Sequence[Placement]:
        kept = self._kept_from_leases
        return [place for place in self._room.open_placements(model) if kept.isdisjoint(place.awake)]

    def first_available(self) -> str | None:
        """The candidate that is overdue first."""
        candidates = self._world.candidates
        return next(filter(self.is_available, candidates.models(candidates.passed)), None)

    def best_placement(self, model: Model) -> PlacementPlan | None:
        """Where the model would come, and who would leave for it."""
        if model.spec.is_gpu_lease:
            return self._room.best(model, self._open_to_lease(model))
        return self._room.best_open(model)

    def fits_now(self, model: Model) -> bool:
        """Whether the model could be woken at once where it is placed."""
        return self._room.fits_now(model, model.placement)

    def claim(self, model: Model, plan: Plan) -> None:
        """From here on nobody gets the memory that the model needs where it is placed, nor those that leave for it."""
        self._incumbents = {}
        self.dealt_with[model.name] = None
        self._room.claim(model, plan)

    def begin(self, model: Model, plan: Plan) -> None:
        """The same, because the model's switch begins."""
        self._incumbents = {}
        self.dealt_with[model.name] = None
        self._room.begin(model, plan)

    def keep_free(self, model: Model) -> None:
        """From here on nobody comes to the GPUs on which the model is placed."""
        self._incumbents = {}
        self.dealt_with[model.name] = None
        self._room.close(model)

    def keep_from_leases(self, model: Model) -> None:
        """From here on no GPU lease may begin on a GPU of the model's: one after the other they would starve it."""
        self._incumbents = {}
        self.dealt_with[model.name] = None
        self._kept_from_leases |= model.possible_gpus

    def sample(self) -> None:
        """Bring the estimates that a policy may read, those of serving models, up to date, once in a decision.

        A decision that asks no policy leaves them alone.
        """
        if not self._is_sampled:
            self._is_sampled = True
            for model in self._world.on_gpu.values():
                if type(model.state) is Serving:
                    model.sample()

    def _candidate(self, name: str) -> Candidate:
        model = self._world.models[name]
        head_since = model.head_since
        assert head_since is not None
        return Candidate(name, head_since, model.queue.size + len(model.frozen), model.spec.weight)

    def incumbent(self, model: Model) -> Incumbent:
        """What a policy sees of a serving model."""
        if not self._is_sampled:
            self.sample()
        state, estimates = model.state, model.estimates
        assert type(state) is Serving
        in_flight, queued = len(model.in_flight), model.queue.size
        return Incumbent(
            model.name,
            state.since,
            in_flight,
            queued,
            None if in_flight or queued else model.idle_since,
            can_freeze=model.can_freeze and freezes(self._world, model, model.eviction),
            weight=model.spec.weight,
            awaiting_first_token=len(model.awaiting_first_token),
            arrivals_per_second=estimates.arrivals_per_second,
            residence_seconds=estimates.residence_seconds,
            prefill_seconds=estimates.prefill_seconds,
            pause_seconds=estimates.pause_seconds,
        )
