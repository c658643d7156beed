"""What llmux's warm-up makes of a scheduler: each model is started and put to sleep, before the trace begins."""

import itertools
from collections import deque
from collections.abc import Mapping

from llmux.core.actions import Action, Evict, Wake
from llmux.core.events import Event, EvictDone, SleepRequested, WakeDone, WakeRequested
from llmux.core.identifiers import Seconds
from llmux.core.scheduler import Scheduler
from llmux.core.states import Asleep, Cold
from llmux.simulation.virtual.costs import SwitchCost


def warm_up(scheduler: Scheduler, costs: Mapping[str, SwitchCost]) -> None:
    """Start every model that no image brings back, and put it to sleep; the last one is asleep at 0."""
    names = [model.name for model in scheduler.models if isinstance(model.state, Cold)]
    now: Seconds = -sum(costs[name].cold + costs[name].evict for name in names)
    numbers = itertools.count(1)
    for name in names:
        for event in (WakeRequested(next(numbers), name), SleepRequested(next(numbers), name, None)):
            now = _play(scheduler, event, costs, now)


def _play(scheduler: Scheduler, event: Event, costs: Mapping[str, SwitchCost], now: Seconds) -> Seconds:
    """Let an event have all its consequences; returns when they are over."""
    actions: deque[Action] = deque(scheduler.handle(event, now))
    while actions:
        match actions.popleft():
            case Wake(instance):
                now = min(0.0, now + costs[instance.model].cold)
                actions += scheduler.handle(WakeDone(instance, can_freeze=True), now)
            case Evict(instance, eviction):
                now = min(0.0, now + costs[instance.model].evict)
                residency = Asleep(eviction) if eviction.keeps_process else Cold()
                actions += scheduler.handle(EvictDone(instance, residency), now)
            case _:
                pass
    return now
