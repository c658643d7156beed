"""What a policy may see of the scheduler: one decision's candidates, and what is in their way."""

from collections.abc import Iterator, Sequence
from itertools import islice

from llmux.core.identifiers import Footprint, GpuId, Seconds
from llmux.core.lifecycle import freezes
from llmux.core.model import Model
from llmux.core.policies.base import Candidate, Demand, Incumbent
from llmux.core.settings import Placement
from llmux.core.states import Serving
from llmux.core.vacating import best_placement
from llmux.core.world import World

CANDIDATES_MAX = 8
"""Candidates that a policy chooses among. Bounds the cost of a decision: with 1,000 models waiting it is at most 1.3
times that with 4 (bench/switch/decisions.py)."""


class SchedulerView:
    """The ``PolicyView`` of one decision. Asking it changes nothing in the world.

    While the decision goes on, models and GPUs that it has dealt with are excluded one after the other.
    """

    __slots__ = ("_excluded", "_incumbents", "_world", "reserved_gpus")

    def __init__(self, world: World, reserved_gpus: set[GpuId]) -> None:
        self._world = world
        self.reserved_gpus = reserved_gpus
        """GPUs that a switch is under way to, or that were given to a model in this decision."""
        self._excluded: set[str] = set()
        self._incumbents: dict[tuple[tuple[tuple[GpuId, int], ...], ...], Sequence[Incumbent]] = {}

    def oldest(self) -> Candidate | None:
        name = self.first_available()
        return None if name is None else self._candidate(name)

    def candidates(self) -> Iterator[Candidate]:
        return map(self._candidate, islice(filter(self.is_available, self._world.candidates), CANDIDATES_MAX))

    def in_the_way(self, candidate: Candidate) -> Sequence[Incumbent]:
        model = self._world.models[candidate.model]
        if model.held:
            return self._in_the_way(model)
        # Most models need the same memory and hold none of it: the same incumbents are in their way. With 100 models
        # waiting, a decision of time_slice makes a third of the calls for this.
        key = model.need
        incumbents = self._incumbents.get(key)
        if incumbents is None:
            incumbents = self._incumbents[key] = self._in_the_way(model)
        return incumbents

    def _in_the_way(self, model: Model) -> Sequence[Incumbent]:
        found = best_placement(self._world, model, self.open_placements(model))
        if found is None:
            return ()
        models = self._world.models
        return [self.incumbent(models[name]) for name in found.plan.victims if isinstance(models[name].state, Serving)]

    def cost(self, leaving: str, coming: str) -> Seconds:
        return self._world.costs.direction(leaving, coming)

    def known_cost(self, leaving: str, coming: str) -> Seconds | None:
        return self._world.costs.known(leaving, coming)

    def is_available(self, name: str) -> bool:
        """Whether the model may still be chosen: neither it nor the GPUs that it could be on have been dealt with."""
        if name in self._excluded or name in self._world.switches:
            return False
        return not self.reserved_gpus or any(True for _ in self.open_placements(self._world.models[name]))

    def open_placements(self, model: Model) -> Iterator[Placement]:
        """Where the model could come without a GPU that has been dealt with."""
        return (place for place in model.placements if self.reserved_gpus.isdisjoint(place.awake))

    def first_available(self) -> str | None:
        """The candidate that is overdue first."""
        return next(filter(self.is_available, self._world.candidates), None)

    def reserve(self, model: Model) -> None:
        """From here on neither the model is available nor the GPUs on which it is placed."""
        self._incumbents.clear()
        self._excluded.add(model.name)
        self.reserved_gpus.update(model.awake)

    def _candidate(self, name: str) -> Candidate:
        model = self._world.models[name]
        head_since = model.head_since
        assert head_since is not None
        return Candidate(name, head_since, len(model.queue) + len(model.frozen), model.spec.weight)

    def incumbent(self, model: Model) -> Incumbent:
        """What a policy sees of a serving model."""
        assert isinstance(model.state, Serving)
        estimates = model.estimates
        return Incumbent(
            model.name,
            model.state.since,
            len(model.in_flight),
            len(model.queue),
            model.idle_since if model.is_idle else None,
            can_freeze=freezes(self._world, model, model.eviction),
            awaiting_first_token=len(model.awaiting_first_token),
            arrivals_per_second=estimates.arrivals_per_second,
            residence_seconds=estimates.residence_seconds,
            prefill_seconds=estimates.prefill_seconds,
            drain_seconds=estimates.drain_seconds,
            demand=self._demand(model),
        )

    def _demand(self, model: Model) -> Demand:
        """What the model and those that share its GPUs, or wait for them, ask of them together."""
        resident, waiting = sharing(self._world, model.awake)
        load = arrivals = in_residence = 0.0
        for other in (*resident, *waiting):
            estimates = other.estimates
            load += estimates.load
            if estimates.residence_seconds is not None:
                arrivals += estimates.arrivals_per_second
                in_residence += estimates.arrivals_per_second * estimates.residence_seconds
        return Demand(load, in_residence / arrivals if arrivals else 0.0, len(waiting))


def sharing(world: World, needed: Footprint) -> tuple[list[Model], list[Model]]:
    """The models that are on any of these GPUs, and the first candidates for any of them."""
    gpus = needed.keys()
    resident = [model for model in world.on_gpu.values() if not gpus.isdisjoint(model.awake)]
    candidates = (world.models[name] for name in world.candidates)
    waiting = islice((model for model in candidates if not model.possible_gpus.isdisjoint(gpus)), CANDIDATES_MAX)
    return resident, list(waiting)
