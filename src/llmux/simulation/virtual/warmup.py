"""What llmux's warm-up makes of a scheduler: each model is started and put to sleep, before the trace begins."""

import itertools
from collections.abc import Mapping

from llmux.core.actions import Evict, Wake
from llmux.core.events import EvictDone, SleepRequested, WakeDone, WakeRequested
from llmux.core.identity import Seconds
from llmux.core.scheduler import Scheduler
from llmux.core.states import Asleep, Cold
from llmux.simulation.virtual.costs import SwitchCost


def warm_up(scheduler: Scheduler, costs: Mapping[str, SwitchCost]) -> None:
    """Start every model that no image brings back, and put it to sleep; the last one is asleep at 0."""
    names = [model.name for model in scheduler.models if isinstance(model.state, Cold)]
    now: Seconds = -sum(costs[name].cold + costs[name].evict for name in names)
    numbers = itertools.count(1)
    for name in names:
        for action in scheduler.handle(WakeRequested(next(numbers), name), now):
            if isinstance(action, Wake):
                now += costs[name].cold
                scheduler.handle(WakeDone(action.instance, can_freeze=True), now)
        for action in scheduler.handle(SleepRequested(next(numbers), name, None), now):
            if isinstance(action, Evict):
                now = min(0.0, now + costs[name].evict)
                residency = Asleep(action.eviction) if action.eviction.keeps_process else Cold()
                scheduler.handle(EvictDone(action.instance, residency), now)
