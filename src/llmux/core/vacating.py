"""Freeing GPU memory for a model: what is free or will be, who could give up more, and having them leave."""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import NOTHING, Footprint, GpuId, Seconds
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


class PlacementPlan(NamedTuple):
    """Where a model could come, and who leaves for it."""

    placement: Placement
    plan: Plan


_PricedPlan: TypeAlias = tuple[Plan | KnownPlan, PlanPrice]
"""A plan for one placement, and what it costs."""


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
        "_coming",
        "_leave_residue",
        "_listed",
        "_open",
        "_plans",
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
        """GPUs to which something comes, so that no engine may be started there meanwhile."""
        self._claimed: set[GpuId] = set()
        """GPUs of which less will be free, or fewer may leave, than the world says: plans known of them do not hold."""
        self._coming: set[str] = set(world.switches)
        """Those that come, or wait for their GPUs."""
        self._spoken_for: set[str] = set()
        """Those that come, and those that leave for them."""
        self._listed: dict[tuple[GpuId, bool], dict[str, Occupant]] = {}
        """Who could leave each GPU, and (true) at the price of being stopped; as far as it has been asked for."""
        self._leave_residue = False
        """Whether stopping a model would free more than having it leave as it is configured to."""
        self._open: dict[tuple[bool, Need], list[int]] = {}
        """By need: which of its placements are open. As long as nothing else is closed or claimed."""
        self._plans: dict[tuple[bool, Need], dict[int, _PricedPlan | None]] = {}
        """By need: who would leave for each of its placements. As long as nothing else is claimed."""
        self._reachable: dict[GpuId, int] | None = None
        """``expected``, and what could be had by stopping all that may leave; None until it is asked for."""
        for switch in world.switches.values() if switches is None else switches:
            target = world.models[switch.target]
            self._spoken_for.add(switch.target)
            self._come(target)
            if switch.wake_began_at is None:
                take(self.expected, lacks(target, target.placement))
                self._claimed.update(target.placement.awake)
                self._claimed.update(target.held)

    def fits_now(self, model: Model, placement: Placement) -> bool:
        """Whether a model can be woken there at once: the memory is free, and nobody before it counts on it."""
        needed = lacks(model, placement)
        if not (fits(needed, self._world.gpus.free) and fits(needed, self.expected)):
            return False
        return are_gone(self._world, self._world.rules.rivals(model.name))

    def is_open(self, model: Model) -> bool:
        """Whether a model could come anywhere if all left that may."""
        return bool(self._open_numbers(model))

    def open_placements(self, model: Model) -> list[Placement]:
        """Where a model could come if all left that may."""
        return [model.placements[number] for number in self._open_numbers(model)]

    def _open_numbers(self, model: Model) -> Sequence[int]:
        if (rivals := self._world.rules.rivals(model.name)) and not self._coming.isdisjoint(rivals):
            return ()
        # Many models need the same: with 1,000 that wait, a decision would look at the same places again and again.
        key = (model.starts_cold, model.need)
        found = self._open.get(key)
        if found is None:
            barred = self.closed | self.taken if model.starts_cold else self.closed
            found = [number for number, place in enumerate(model.placements) if barred.isdisjoint(place.awake)]
            if found and (self._spoken_for or self._world.gpu_leases):
                reachable = self._reach()
                found = [number for number in found if fits(model.placements[number].awake, reachable)]
            self._open[key] = found
        return found

    def best_open(self, model: Model) -> PlacementPlan | None:
        """The ``best`` of the places where a model could come."""
        if not self._world.rules.is_like_others(model):
            return self.best(model, self.open_placements(model))
        plans = self._plans.setdefault((model.starts_cold, model.need), {})
        chosen: _PricedPlan | None = None
        chosen_number = 0
        for number in self._open_numbers(model):
            if number not in plans:
                plans[number] = self._priced_place(model, number)
            plan = plans[number]
            if plan is not None and (chosen is None or plan[1] < chosen[1]):
                chosen, chosen_number = plan, number
        if chosen is None:
            return None
        found = chosen[0]
        plan_itself = found.plan(self._world.clock.now) if isinstance(found, KnownPlan) else found
        return PlacementPlan(model.placements[chosen_number], plan_itself)

    def _priced_place(self, model: Model, number: int) -> _PricedPlan | None:
        """Who leaves for one of its placements, of a model that is like others; from what is known if that holds."""
        needed, gpus = model.placements[number].awake, self._world.gpus
        if not self._leave_residue and (not self._claimed or self._claimed.isdisjoint(needed)):
            changes = 0
            for gpu in needed:
                changes += gpus.known_plans.changes[gpu]
            plans = gpus.known_plans.of((model.starts_cold, model.need))
            known = plans[number]
            if known is None or known.changes != changes:
                known = plans[number] = self._find_known(needed, changes)
            if not known.depends:
                return (known, known.price(self._world.clock.now)) if known.is_possible else None
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
            changes, False, True, model, frees, _cost_of_return(self._world, model, is_stopped=is_stopped), left
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
        plan = self._plan(model, needed, rivals)
        if plan is None:
            return None
        left = 0
        for gpu, size in needed.items():
            left += self.expected[gpu] - size
        frozen, busy, *others = price_of(plan.leaving)
        return plan, (frozen, busy, plan.stop_victims, *others, left)

    def _plan(self, model: Model, needed: Footprint, rivals: Sequence[Model]) -> Plan | None:
        as_configured = self._who_leaves(model, needed, rivals, stop_victims=False)
        if as_configured is not None and not (self._leave_residue and any(map(_is_in_use, as_configured))):
            return Plan(as_configured)
        stopped = self._who_leaves(model, needed, rivals, stop_victims=True)
        if as_configured is not None and (stopped is None or any(map(_is_in_use, stopped))):
            return Plan(as_configured)
        return None if stopped is None else Plan(stopped, stop_victims=True)

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
        for occupant in plan.leaving:
            give(self.expected, occupant.frees)
            take(reachable, less(self._world.models[occupant.model].held, occupant.frees))
        take(self.expected, lacks(model, model.placement))
        take(reachable, model.awake)
        self._spoken_for.update((model.name, *plan.victims))
        self._coming.add(model.name)
        for name in (model.name, *plan.victims):
            self._claimed.update(self._world.models[name].held)
            for gpu in self._world.models[name].held:
                self._listed.pop((gpu, False), None)
                self._listed.pop((gpu, True), None)
        self._claimed.update(model.placement.awake)
        self._plans.clear()
        self._open.clear()
        self._close_full(model.awake)

    def begin(self, model: Model, plan: Plan) -> None:
        """The same for a model whose switch begins, so that from now on something is on its way to these GPUs."""
        self.claim(model, plan)
        self._come(model)
        self._open.clear()

    def close(self, model: Model) -> None:
        """Give the GPUs on which a model is placed to nobody."""
        self._spoken_for.add(model.name)
        self._coming.add(model.name)
        self.closed.update(model.awake)
        awake = model.placement.awake
        for (starts_cold, need), numbers in self._open.items():
            barred = {number for number in numbers for gpu, _ in need[number] if gpu in awake}
            self._open[starts_cold, need] = [number for number in numbers if number not in barred]

    def _come(self, model: Model) -> None:
        awake = model.placement.awake
        self.taken.update(awake)
        if closes(model):
            self.closed.update(awake)

    def _reach(self) -> dict[GpuId, int]:
        if self._reachable is None:
            self._reachable = dict(self.expected)
            for model in self._who_may_leave():
                give(self._reachable, model.held)
            self._close_full(self.expected)
        return self._reachable

    def _close_full(self, gpus: Iterable[GpuId]) -> None:
        """Close those on which no model at all would find enough."""
        reachable, least = self._reach(), self._world.gpus.least_need
        self.closed.update(gpu for gpu in gpus if gpu not in least or reachable[gpu] < least[gpu])

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
                and model.spec.frees_memory(model.eviction)
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
        if closes(target):
            closed.update(target.placement.awake)
    return len(closed) < len(world.gpus.capacity)


def closes(target: Model) -> bool:
    """Whether a switch starts its target's engine, so that nothing else may come to its GPUs meanwhile."""
    state = target.state
    return state.asleep is None if type(state) is Waking else type(state) is not Asleep


def are_gone(world: World, rivals: Collection[str]) -> bool:
    """Whether none of a model's rivals is on the GPUs."""
    return not rivals or world.on_gpu.keys().isdisjoint(rivals)


def lacks(model: Model, placement: Placement) -> Footprint:
    """The memory that a model must be given there, beside what it still holds."""
    return less(placement.awake, _kept(model))


def _kept(model: Model) -> Footprint:
    """What a model that is off the GPUs, or leaves them, will still hold of them."""
    return model.will_hold if type(model.state) is Asleep or type(model.state) in LEAVING else NOTHING


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
    for occupant in plan.leaving:
        model = world.models[occupant.model]
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
