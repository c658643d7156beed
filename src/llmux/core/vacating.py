"""Freeing GPU memory for a model: what is free or will be, who could give up more, and having them leave."""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import Footprint, GpuId, Seconds
from llmux.core.known_plans import KnownPlan, PlanPrice, use_of
from llmux.core.lifecycle import begin_drain, begin_evict, begin_freeze, finish_drain, freezes
from llmux.core.model import Model, Need
from llmux.core.placement import (
    LEAST_SECONDS_UNUSED,
    Occupant,
    Plan,
    Price,
    Use,
    fits,
    give,
    helps,
    less,
    price_of,
    take,
    victims,
    would_fit,
)
from llmux.core.settings import Placement
from llmux.core.states import LEAVING, Asleep, Serving, Waking
from llmux.core.switch import Switch
from llmux.core.switch_costs import UNKNOWN_SECONDS
from llmux.core.world import World

COST_EXPONENT = 0.25
"""How much the cost of bringing a model back counts beside the time for which it has not been used. With 0 only the
time would; with 1 the dear models stay so long that the others take turns. Among six simulated models, 1/4 spent 3 to
25 % less on wakes than 0 where they differ a hundredfold, 11 % less to 1 % more where eightfold, and up to 12 % more
where they are alike."""


@dataclass(frozen=True, slots=True)
class PlacementPlan:
    """Where a model could come, and who leaves for it."""

    placement: Placement
    plan: Plan


_PricedPlan: TypeAlias = tuple[Plan, PlanPrice]
"""A plan for one placement, and what it costs."""


class _Places:
    """What a decision knows of the placements of one need, as long as nothing is claimed."""

    __slots__ = ("known", "need", "open", "plans")

    def __init__(self, need: Need) -> None:
        self.need = need
        self.open: dict[int, None] = {}
        """The numbers of those that are open, in order."""
        self.known: list[KnownPlan | None] = []
        """What is known of each; empty until it is asked for."""
        self.plans: dict[int, _PricedPlan | None] = {}
        """Who would leave for each, as far as it has been asked for."""


class Room:
    """What is left for the next model of a decision.

    Switches under way have claimed their targets' memory, and what leaves for them. A decision adds the claims of the
    models that it brings, or that are to come later, one after the other: whoever is next gets none of that.

    Engines look at what is free while they start, and take a share of it or refuse. So nothing else comes to a GPU on
    which one is started cold, and none is started where something is on its way. Engines that only have to wake come
    to one GPU at the same time.
    """

    __slots__ = (
        "_claimed",
        "_leave_residue",
        "_listed",
        "_places",
        "_reachable",
        "_spoken_for",
        "_world",
        "closed",
        "expected",
        "taken",
    )

    def __init__(self, world: World, switches: Iterable[Switch] | None = None) -> None:
        """``switches``: those that go first, if not all of them."""
        self._world = world
        self.expected = dict(world.gpus.expected)
        """What will be free of each GPU when all that is leaving has left and all that is coming has come, in MiB."""
        self.closed: set[GpuId] = set()
        """GPUs to which nothing may come: an engine starts there, or an overdue model waits for them."""
        self.taken: set[GpuId] = set()
        """Other GPUs to which something comes, so that no engine may be started there meanwhile."""
        self._claimed: set[GpuId] = set()
        """More GPUs of which less will be free, or fewer may leave, than the world says: plans known of them do not
        hold."""
        self._spoken_for: dict[str, bool] = {}
        """Those that come, or wait for their GPUs (true), and those that leave for them (false)."""
        self._listed: dict[tuple[GpuId, bool], dict[str, Occupant]] = {}
        """Who could leave each GPU, and (true) at the price of being stopped; as far as it has been asked for."""
        self._leave_residue = False
        """Whether stopping a model would free more than having it leave as it is configured to."""
        self._places: dict[int, _Places] = {}
        """By the number of the need: with 1,000 models that wait and need the same, their places are looked at once. As
        long as nothing is claimed; what is closed is taken out."""
        self._reachable: dict[GpuId, int] | None = None
        """``expected``, and what could be had by stopping all that may leave; None until it is asked for."""
        for switch in world.switches.values() if switches is None else switches:
            target = world.models[switch.target]
            self._spoken_for[switch.target] = True
            awake = target.placement.awake
            (self.closed if target.starts_engine else self.taken).update(awake)
            if switch.wake_began_at is None:
                for gpu, size in lacks(target, target.placement).items():
                    self.expected[gpu] -= size
                if target.held:
                    self._claimed.update(target.held)

    def fits_now(self, model: Model, placement: Placement) -> bool:
        """Whether a model can be woken there at once: the memory is free, and nobody before it counts on it."""
        needed = lacks(model, placement)
        if not (fits(needed, self._world.gpus.free) and fits(needed, self.expected)):
            return False
        return are_gone(self._world, self._world.rules.rivals(model.name))

    def is_open(self, model: Model) -> bool:
        """Whether a model could come anywhere if all left that may."""
        places = self._places.get(model.need_number) or self._find_places(model)
        return bool(places.open) and not (self._world.rules.are_any and self._waits_for_rivals(model))

    def open_placements(self, model: Model) -> list[Placement]:
        """Where a model could come if all left that may."""
        if self._waits_for_rivals(model):
            return []
        places = self._places.get(model.need_number) or self._find_places(model)
        return [model.placements[number] for number in places.open]

    def _waits_for_rivals(self, model: Model) -> bool:
        """Whether any of its rivals comes, or waits for its GPUs."""
        for rival in self._world.rules.rivals(model.name):
            if self._spoken_for.get(rival, False) or rival in self._world.switches:
                return True
        return False

    def _find_places(self, model: Model) -> _Places:
        starts_cold = model.starts_cold
        reachable = self._reach() if self._spoken_for or self._world.gpu_leases else None
        found = _Places(model.need)
        for number, place in enumerate(model.need):
            for gpu, size in place:
                if gpu in self.closed or (starts_cold and gpu in self.taken):
                    break
                if reachable is not None and reachable[gpu] < size:
                    break
            else:
                found.open[number] = None
        self._places[model.need_number] = found
        return found

    def best_open(self, model: Model) -> PlacementPlan | None:
        """The ``best`` of the places where a model could come."""
        rules = self._world.rules
        if model.held or (rules.are_any and not rules.is_like_others(model)):
            return self.best(model, self.open_placements(model))
        places = self._places.get(model.need_number) or self._find_places(model)
        plans = places.plans
        chosen: _PricedPlan | None = None
        chosen_number = 0
        for number in places.open:
            if number not in plans:
                plans[number] = self._priced_place(model, places, number)
            plan = plans[number]
            if plan is not None and (chosen is None or plan[1] < chosen[1]):
                chosen, chosen_number = plan, number
        return None if chosen is None else PlacementPlan(model.placements[chosen_number], chosen[0])

    def _priced_place(self, model: Model, places: _Places, number: int) -> _PricedPlan | None:
        """Who leaves for one of its placements, of a model that is like others; from what is known if that holds."""
        needed, gpus = model.placements[number].awake, self._world.gpus
        is_taken = not model.starts_cold and not self.taken.isdisjoint(needed)  # It is not open to one that starts.
        if not (self._leave_residue or is_taken or (self._claimed and not self._claimed.isdisjoint(needed))):
            changes = 0
            for gpu in needed:
                changes += gpus.known_plans.changes[gpu]
            if not places.known:
                places.known = gpus.known_plans.of(model)
            known = places.known[number]
            if known is None or known.changes != changes:
                known = places.known[number] = self._find_known(needed, changes)
            if not known.depends:
                return (known.plan, known.price(self._world.clock.now)) if known.is_possible else None
        return self._priced_plan(model, needed, ())

    def _find_known(self, needed: Footprint, changes: int) -> KnownPlan:
        """What can be said of a place as long as nothing changes on its GPUs, none of which anybody has claimed."""
        expected = self.expected
        left = 0
        for gpu, size in needed.items():
            left += expected[gpu] - size
        if fits(needed, expected):
            return KnownPlan(changes, is_possible=True, left=left)
        helpful: dict[str, tuple[Model, Footprint]] = {}
        for gpu in needed:
            for model in self._who_may_leave(gpu):
                frees = model.held if isinstance(model.state, Asleep) else _freed_by(model)
                if frees is not model.held:
                    return KnownPlan(changes, depends=True)  # It may have to be stopped instead.
                if helps(frees, needed, expected):
                    helpful[model.name] = model, frees
        if len(helpful) != 1:
            return KnownPlan(changes, depends=len(helpful) > 1)
        ((model, frees),) = helpful.values()
        if not would_fit(needed, expected, frees):
            return KnownPlan(changes)
        is_stopped = isinstance(model.state, Asleep) or not model.eviction.keeps_process
        return KnownPlan(
            changes,
            is_possible=True,
            plan=Plan((model.name,), (frees,)),
            leaving=model,
            cost=_cost_of_return(self._world, model, is_stopped=is_stopped),
            left=left,
        )

    def best(self, model: Model, places: Iterable[Placement]) -> PlacementPlan | None:
        """Of these places, the one for which the cheapest models have to leave; None where nobody's leaving helps.

        Where nothing has to leave, it is the one that leaves the least memory free: large models find room elsewhere.
        """
        if (rivals := self._rivals(model)) is None:
            return None
        best: PlacementPlan | None = None
        price: PlanPrice = ()
        for place in places:
            priced = self._priced_plan(model, lacks(model, place), rivals)
            if priced is not None and (best is None or priced[1] < price):
                best, price = PlacementPlan(place, priced[0]), priced[1]
        return best

    def _priced_plan(self, model: Model, needed: Footprint, rivals: Sequence[Model]) -> tuple[Plan, PlanPrice] | None:
        found = self._plan(model, needed, rivals)
        if found is None:
            return None
        leaving, stop_victims = found
        left = 0
        for gpu, size in needed.items():
            left += self.expected[gpu] - size
        frozen, busy, *others = price_of(leaving)
        plan = Plan(tuple([one.model for one in leaving]), tuple([one.frees for one in leaving]), stop_victims)
        return plan, (frozen, busy, stop_victims, *others, left)

    def _plan(
        self, model: Model, needed: Footprint, rivals: Sequence[Model]
    ) -> tuple[tuple[Occupant, ...], bool] | None:
        """Who leaves, and whether they are stopped."""
        as_configured = self._who_leaves(model, needed, rivals, stop_victims=False)
        if as_configured is not None and not (self._leave_residue and any(map(_is_in_use, as_configured))):
            return as_configured, False
        stopped = self._who_leaves(model, needed, rivals, stop_victims=True)
        if as_configured is not None and (stopped is None or any(map(_is_in_use, stopped))):
            return as_configured, False
        return None if stopped is None else (stopped, True)

    def _who_leaves(
        self, model: Model, needed: Footprint, rivals: Sequence[Model], *, stop_victims: bool
    ) -> tuple[Occupant, ...] | None:
        """The rivals, and who else has to leave so that the memory is there; None if that helps nothing."""
        expected = self.expected
        leaving: tuple[Occupant, ...] = ()
        if rivals:
            leaving = tuple(self._occupant(rival, stop_victims=stop_victims) for rival in rivals)
            expected = dict(expected)
            for occupant in leaving:
                give(expected, occupant.frees)
        if fits(needed, expected):
            return leaving
        occupants = self._occupants(model, needed, rivals, stop_victims=stop_victims)
        others = victims(needed, expected, occupants)
        return None if others is None else leaving + others

    def _rivals(self, model: Model) -> Sequence[Model] | None:
        """Those on the GPUs that have to leave for a model wherever it comes; None if one of them cannot."""
        world, found = self._world, []
        for name in world.rules.rivals(model.name):
            rival = world.models[name]
            if isinstance(rival.state, Serving) and name not in self._spoken_for:
                if not world.rules.may_leave_for(rival, model):
                    return None
                found.append(rival)
            elif isinstance(rival.state, Waking):
                return None
        return found

    def claim(self, model: Model, plan: Plan) -> None:
        """Keep the memory that a model needs where it is placed, and those that leave for it."""
        reachable = self._reach()
        for name, frees in zip(plan.victims, plan.frees, strict=True):
            give(self.expected, frees)
            take(reachable, less(self._world.models[name].held, frees))
        take(self.expected, lacks(model, model.placement))
        take(reachable, model.awake)
        self._spoken_for[model.name] = True
        for name in plan.victims:
            self._spoken_for[name] = False
        for name in (model.name, *plan.victims):
            self._claimed.update(self._world.models[name].held)
            for gpu in self._world.models[name].held:
                self._listed.pop((gpu, False), None)
                self._listed.pop((gpu, True), None)
        self._claimed.update(model.placement.awake)
        self._places.clear()
        self._close_full(model.awake)

    def begin(self, model: Model, plan: Plan) -> None:
        """The same for a model whose switch begins, so that from now on something is on its way to these GPUs."""
        self.claim(model, plan)
        (self.closed if model.starts_engine else self.taken).update(model.placement.awake)
        self._places.clear()

    def close(self, model: Model) -> None:
        """Give the GPUs on which a model is placed to nobody."""
        self._spoken_for[model.name] = True
        awake = model.placement.awake
        self.closed.update(awake)
        for places in self._places.values():
            for number in tuple(places.open):
                for gpu, _ in places.need[number]:
                    if gpu in awake:
                        del places.open[number]
                        break

    def _reach(self) -> dict[GpuId, int]:
        if self._reachable is None:
            reachable = self._reachable = dict(self.expected)
            for model in self._who_may_leave():
                for gpu, size in model.held.items():
                    reachable[gpu] += size
            self._close_full(self.expected)
        return self._reachable

    def _close_full(self, gpus: Iterable[GpuId]) -> None:
        """Close those on which no model at all would find enough."""
        reachable, least = self._reach(), self._world.gpus.least_need
        for gpu in gpus:
            if gpu not in self.closed and (gpu not in least or reachable[gpu] < least[gpu]):
                self.closed.add(gpu)

    def _who_may_leave(self, gpu: GpuId | None = None) -> Iterator[Model]:
        """``gpu``: of those that are there alone."""
        gpus, spoken_for = self._world.gpus, self._spoken_for
        for model in (gpus.with_residue if gpu is None else gpus.residues_on[gpu]).values():
            if model.name not in spoken_for:
                yield model
        for model in (self._world.on_gpu if gpu is None else gpus.models_on[gpu]).values():
            if (
                type(model.state) is Serving
                and model.name not in spoken_for
                and not model.spec.is_gpu_lease
                and not model.kept
                and model.frees_memory
            ):
                yield model

    def _occupants(
        self, model: Model, needed: Footprint, rivals: Sequence[Model], *, stop_victims: bool
    ) -> Iterable[Occupant]:
        """The models that could leave for a model, of those that give back memory of a GPU that it needs."""
        found: dict[str, Occupant] = {}
        for gpu in needed:
            listed = self._listed.get((gpu, stop_victims))
            if listed is None:
                listed = self._listed[gpu, stop_victims] = self._list(gpu, stop_victims=stop_victims)
            found.update(listed)
        found.pop(model.name, None)
        for rival in rivals:
            found.pop(rival.name, None)
        if not self._world.rules.may_stay:
            return found.values()
        return [one for one in found.values() if self._may_leave_for(self._world.models[one.model], model)]

    def _list(self, gpu: GpuId, *, stop_victims: bool) -> dict[str, Occupant]:
        found = {}
        for model in self._who_may_leave(gpu):
            occupant = found[model.name] = self._occupant(model, stop_victims=stop_victims)
            self._leave_residue = self._leave_residue or occupant.frees is not model.held
        return found

    def _occupant(self, model: Model, *, stop_victims: bool) -> Occupant:
        frees = model.held if stop_victims or isinstance(model.state, Asleep) else _freed_by(model)
        return Occupant(model.name, frees, _price(self._world, model, stop_victims=stop_victims))

    def _may_leave_for(self, model: Model, coming: Model) -> bool:
        """Whether no pin and no group forbids it; what sleeps is not on the GPUs, and may be stopped."""
        return isinstance(model.state, Asleep) or self._world.rules.may_leave_for(model, coming)


def leaves_any_open(world: World) -> bool:
    """Whether there is a GPU on which no engine is to be started by a switch under way: else nothing can come."""
    closed: set[GpuId] = set()
    for name in world.switches:
        target = world.models[name]
        if target.starts_engine:
            closed.update(target.placement.awake)
    return len(closed) < len(world.gpus.capacity)


def are_gone(world: World, rivals: Collection[str]) -> bool:
    """Whether none of a model's rivals is on the GPUs."""
    return not rivals or world.on_gpu.keys().isdisjoint(rivals)


def lacks(model: Model, placement: Placement) -> Footprint:
    """The memory that a model must be given there, beside what it will still hold if it is off the GPUs or leaves."""
    if model.will_hold and (type(model.state) is Asleep or type(model.state) in LEAVING):
        return less(placement.awake, model.will_hold)
    return placement.awake


def _is_in_use(occupant: Occupant) -> bool:
    return occupant.price.use >= Use.BUSY


def _freed_by(model: Model) -> Footprint:
    """What a serving model gives back when it leaves as it is configured to."""
    return less(model.awake, model.placement.residue(model.eviction)) if model.placement.asleep else model.awake


def _price(world: World, model: Model, *, stop_victims: bool) -> Price:
    """What it costs to have a model leave.

    The regret is ``W^(1/4) / t``. W is the seconds that bringing it back takes: what its last cold start took if it is
    to be stopped, and the moving average of its wakes otherwise; 10 s while unknown. ``t`` is for how long it has been
    as it is: what has not been used for long is not expected soon. With W itself, or with rates of requests in place
    of 1 / t, the models that are dear to bring back stay too long, and the others take turns (bench/placement).
    A model of a persistent group leaves only where no outsider that is as little in use would do.
    """
    use, since = use_of(model)
    is_stopped = stop_victims or type(model.state) is not Serving or not model.eviction.keeps_process
    unused_seconds = max(world.clock.now - since, LEAST_SECONDS_UNUSED)
    regret = _cost_of_return(world, model, is_stopped=is_stopped) / unused_seconds
    if world.rules.is_persistent(model.name):
        regret = math.inf
    return Price(use, regret, since)


def _cost_of_return(world: World, model: Model, *, is_stopped: bool) -> float:
    """``W^(1/4)`` in ``_price``. Changes only when the model's state does, or how it leaves."""
    back: Seconds | None = model.start_seconds if is_stopped else world.costs.wake_seconds(model.name)
    cost: float = (UNKNOWN_SECONDS if back is None else back) ** COST_EXPONENT
    return cost


def vacate(world: World, plan: Plan) -> None:
    """Have a plan's victims leave."""
    for name in plan.victims:
        model = world.models[name]
        if isinstance(model.state, Asleep):
            begin_evict(world, model, STOP)
        else:
            _leave(world, model, STOP if plan.stop_victims else model.eviction)


def _leave(world: World, model: Model, eviction: Eviction) -> None:
    if freezes(world, model, eviction):
        begin_freeze(world, model, eviction)
    else:
        begin_drain(world, model, eviction, world.clock.now + world.limits.drain_timeout_seconds)
        finish_drain(world, model)
