"""What llmux does with the models before it is ready: warm-up and preloading, on virtual time before the trace."""

import heapq
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmux.core import actions, events
from llmux.core.eviction import Eviction
from llmux.core.identifiers import Seconds
from llmux.core.scheduler import Scheduler
from llmux.core.states import Asleep, Cold
from llmux.simulation.virtual.costs import SwitchCost


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is done before the trace begins."""

    warms_up: bool = False
    preload: Sequence[Sequence[str]] = ()
    """The models that are brought onto the GPUs, those together that are started at the same time."""
    default_model: str | None = None
    """What comes back when nobody needs its place, from the beginning of the trace on."""


def prepare(scheduler: Scheduler, costs: Mapping[str, SwitchCost], preparation: Preparation) -> None:
    """Start and evict the models one after the other, then preload some, so that the last is done at 0.

    As llmux does, it warms up neither what an image restores nor what is about to be preloaded.
    """
    preloaded = {name for group in preparation.preload for name in group}
    cold = {model.name for model in scheduler.models if isinstance(model.state, Cold)}
    warmed = [model.name for model in scheduler.models if model.name in cold - preloaded and preparation.warms_up]
    now: Seconds = -sum(costs[name].cold + costs[name].evict for name in warmed)
    now -= sum(max(costs[name].coming(_asleep(scheduler, name)) for name in group) for group in preparation.preload)
    numbers = itertools.count(1)
    for name in warmed:
        now = _handle_to_end(scheduler, [events.WakeRequested(next(numbers), name)], costs, now)
        now = _handle_to_end(scheduler, [events.SleepRequested(next(numbers), name, None)], costs, now)
    for group in preparation.preload:
        brought = [events.WakeRequested(next(numbers), name) for name in group]
        now = _handle_to_end(scheduler, brought, costs, now)


def evicted(action: actions.Evict, cost: SwitchCost) -> events.EvictDone:
    """The outcome of an eviction in a simulation, where none fails."""
    residency = Asleep(action.eviction) if action.eviction.keeps_process else Cold()
    return events.EvictDone(action.instance, residency, host_mib=cost.host_mib.get(action.eviction))


def _asleep(scheduler: Scheduler, name: str) -> Eviction | None:
    state = scheduler.state(name)
    return state.eviction if isinstance(state, Asleep) else None


def _handle_to_end(
    scheduler: Scheduler, at_once: Iterable[events.Event], costs: Mapping[str, SwitchCost], now: Seconds
) -> Seconds:
    """Handle events and the outcomes of all actions that follow from them; returns the time at the end."""
    numbers = itertools.count()
    outcomes: list[tuple[Seconds, int, events.Event]] = [(now, next(numbers), event) for event in at_once]
    while outcomes:
        now, _, event = heapq.heappop(outcomes)
        for action in scheduler.handle(event, now):
            match action:
                case actions.Wake(instance, asleep=asleep):
                    seconds = costs[instance.model].coming(asleep)
                    outcome: events.Event = events.WakeDone(instance, can_freeze=True)
                case actions.Evict():
                    cost = costs[action.instance.model]
                    seconds, outcome = cost.evict, evicted(action, cost)
                case _:
                    continue
            # The sum of the steps may exceed the total before it by rounding, and the trace begins at 0.
            heapq.heappush(outcomes, (min(0.0, now + seconds), next(numbers), outcome))
    return now
