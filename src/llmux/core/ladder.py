"""The ladder of sleepers: with idleness, and where host memory is short, they go on to evictions that keep less.

A step costs what coming back takes longer afterwards, times how often the model is expected to be asked for; it gains
host memory. Of all steps that could be taken, the one with the least cost for its gain is next.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from llmux.core.actions import StepDownReason, SteppedDown
from llmux.core.eviction import Eviction
from llmux.core.host_memory import excess_mib, returning_mib, waiting_for_room
from llmux.core.identifiers import Seconds
from llmux.core.lifecycle import begin_evict, finish_drain
from llmux.core.model import Model
from llmux.core.request_times import RATE_MEMORY_SECONDS
from llmux.core.states import Asleep, Draining
from llmux.core.switch_costs import UNKNOWN_SECONDS
from llmux.core.switching import is_wanted
from llmux.core.world import World


class StepDown(NamedTuple):
    """A model may go from one eviction to one that keeps less."""

    model: Model
    before: Eviction
    eviction: Eviction
    frees_mib: int
    price: tuple[int, float, Seconds]
    """Cheaper ones go first: sleepers that nobody waits for, those that somebody does, those with frozen requests;
    among equals by seconds of waiting, expected per second, for a MiB; then the one that was used longest ago."""


def settle(world: World) -> Seconds:
    """Do what is due; returns when something will be if nothing happens before."""
    if world.limits.host_memory_max_mib is not None:
        _give_back(world, excess_mib(world), StepDownReason.HOST_MEMORY_MAX, with_waiting=True)
        for model, _ in waiting_for_room(world):
            # A sleeper may have been woken since drains were looked at.
            finish_drain(world, model)
    if world.limits.sleep_deeper_after_seconds == math.inf:
        return math.inf
    return _deepen_idle(world, world.limits.sleep_deeper_after_seconds)


def relieve(world: World, missing_mib: int) -> None:
    """Have sleepers give back so much host memory, less what is on its way back already."""
    missing_mib -= returning_mib(world)
    _give_back(world, missing_mib, StepDownReason.HOST_MEMORY_RESERVE, with_waiting=False)


def _give_back(world: World, missing_mib: int, reason: StepDownReason, *, with_waiting: bool) -> None:
    """Take the cheapest steps until they free so much, or there is none left."""
    steps = _cheapest_first(world, with_waiting=with_waiting)
    while missing_mib > 0 and (step := next(steps, None)) is not None:
        missing_mib -= step.frees_mib
        take(world, step, reason)


def take(world: World, step: StepDown, reason: StepDownReason) -> None:
    """Have a model go down a step."""
    world.emit(SteppedDown(step.model.name, step.before, step.eviction, reason))
    begin_evict(world, step.model, step.eviction)


def ways_down(world: World, model: Model) -> Iterator[StepDown]:
    """The steps that a sleeper may take, the next one first; none if it is about to be woken."""
    if isinstance(model.state, Asleep) and model.name not in world.switches:
        present = model.state.eviction
        reachable = (one for one in model.spec.ladder if one.is_deeper_than(present))
        yield from _steps(world, model, present, model.sleep.held_mib, reachable)


def _cheapest_first(world: World, *, with_waiting: bool) -> Iterator[StepDown]:
    """The steps that may be taken, one for each model; nothing is looked at before the first is asked for."""
    found = [step for model in world.in_host_memory.values() for step in ways_down(world, model)]
    if with_waiting:
        for model, state in waiting_for_room(world):
            present = state.eviction
            reachable = (one for one in model.spec.ladder if one.depth > present.depth)
            found += _steps(world, model, present, model.sleep.expected_mib(present) or 0, reachable)
    for step in sorted(found, key=lambda step: step.price):
        # Not one that has begun another step: it is on its way now.
        if isinstance(step.model.state, Asleep | Draining):
            yield step


def _steps(
    world: World, model: Model, present: Eviction, held_mib: int, reachable: Iterator[Eviction]
) -> Iterator[StepDown]:
    """Those that free host memory. Beyond the first one whose cost is not known nothing is compared."""
    rank = 2 if model.frozen else int(is_wanted(world, model))
    costs = world.costs
    seconds_before = costs.to_return(model.name, present)
    for eviction in reachable:
        if eviction in model.distrusted_evictions or eviction in model.sleep.refused:
            continue
        expected_mib = model.sleep.expected_mib(eviction)
        if expected_mib is None:
            # Less than before where the engine has yet to leave; a sleeper's process would only move more there.
            expected_mib = held_mib if isinstance(model.state, Asleep) else 0
        frees_mib = held_mib - expected_mib
        if frees_mib <= 0:
            continue
        seconds_after = costs.to_return(model.name, eviction)
        is_known = seconds_before is not None and seconds_after is not None
        seconds = max(0.0, (seconds_after or 0.0) - (seconds_before or 0.0)) if is_known else UNKNOWN_SECONDS
        regret = _demand_per_second(model, world.clock.now) * seconds / frees_mib
        yield StepDown(model, present, eviction, frees_mib, (rank, regret, model.last_served_at))
        if not is_known:
            return


def _demand_per_second(model: Model, now: Seconds) -> float:
    """How often it is expected to be asked for: as lately, but not as if it never were any more.

    The longer it has not been used, the longer it probably will not be: that bounds the rate from below.
    """
    return max(model.estimates.arrivals_per_second_at(now), 1.0 / (RATE_MEMORY_SECONDS + now - model.last_served_at))


def _deepen_idle(world: World, after_seconds: Seconds) -> Seconds:
    due: list[Model] = []
    next_at = math.inf
    for model in world.in_host_memory.values():
        due_at = model.state_since + after_seconds
        if due_at > world.clock.now:
            next_at = due_at
            break
        due.append(model)
    for model in due:
        is_missed = model.is_asked_for or is_wanted(world, model)
        if not is_missed and (step := next(ways_down(world, model), None)) is not None:
            take(world, step, StepDownReason.IDLE)
    return next_at
