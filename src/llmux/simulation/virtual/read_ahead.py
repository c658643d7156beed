"""Reading ahead in virtual time: llmux's prefetcher over files of which only the sizes are known.

The choice is llmux's own (``PrefetchChoice``); as there, one model's files are read at a time, and none during a wake.
The page cache holds what was read ahead of a model until that is woken, and nothing else: every start reads from the
disk what was not read ahead of it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from llmux.config.settings import PrefetchedModels, Settings
from llmux.core.eviction import Eviction
from llmux.core.identifiers import Seconds
from llmux.core.prediction import Demand
from llmux.core.scheduler import Scheduler
from llmux.observability.prefetch_metrics import WHOLE_SHARE, Reason
from llmux.runtime.prefetch_choice import READ_AGAIN_SECONDS, Ahead, Goal, PrefetchChoice
from llmux.simulation.occupancy import ReadAheadFigures
from llmux.simulation.virtual.costs import SwitchCost

ROUNDING_BYTES = 1.0


@dataclass(frozen=True, slots=True)
class ReadAheadLimits:
    """What is read ahead, and what that may cost."""

    disk_bytes_per_second: float
    bytes_per_second_max: float
    memory_max_bytes: float
    """Of the page cache, for models that have not been woken since."""
    predicts: bool


def read_ahead_limits(settings: Settings, disk_bytes_per_second: float | None) -> ReadAheadLimits | None:
    """What the section ``prefetch`` says; None where nothing is read ahead, or nobody knows how fast the disk is.

    What is available of the host's memory is not known: without ``memory_max`` there is no limit.
    """
    prefetch = settings.prefetch
    if disk_bytes_per_second is None or prefetch.models is PrefetchedModels.NONE:
        return None
    return ReadAheadLimits(
        disk_bytes_per_second,
        prefetch.rate_max,
        math.inf if prefetch.memory_max is None else prefetch.memory_max,
        prefetch.models is PrefetchedModels.PREDICTED,
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    goal: Goal
    since: Seconds
    bytes_before: float
    rate: float
    ends_at: Seconds


class VirtualPrefetcher:
    """Reads ahead in one run. It follows the scheduler and changes nothing in it."""

    def __init__(self, scheduler: Scheduler, costs: Mapping[str, SwitchCost], limits: ReadAheadLimits) -> None:
        self.figures = ReadAheadFigures()
        self._costs = costs
        self._limits = limits
        self._bytes = {name: cost.read * limits.disk_bytes_per_second for name, cost in costs.items()}
        self._ahead = {name: Ahead() for name in costs}
        self._reading: _Reading | None = None
        self._choice = PrefetchChoice(scheduler, self._ahead, predicts=limits.predicts)

    def wake_begins(self, model: str, asleep: Eviction | None, now: Seconds) -> Seconds:
        """A model is woken; returns by how much sooner that is done than if nothing of its files had been read."""
        self._account(now)
        self._reading = None
        if self._limits.predicts:
            self._choice.observe(Demand(model, now))
        held_bytes, self._ahead[model] = self._ahead[model].held_bytes, Ahead()
        reading_seconds = self._costs[model].reading(asleep)
        if not reading_seconds:
            return 0.0
        share = held_bytes / self._bytes[model]
        figures, saved_seconds = self.figures, share * reading_seconds
        self.figures = replace(
            figures,
            wakes=figures.wakes + 1,
            whole=figures.whole + (share >= WHOLE_SHARE),
            saved_seconds=figures.saved_seconds + saved_seconds,
        )
        return saved_seconds

    def look(self, now: Seconds) -> Seconds:
        """Begin or end to read, if that is due now; returns when what is being read will have been."""
        self._account(now)
        while True:
            goal = self._choice.choose(now, now)
            if self._reading is not None and self._reading.goal == goal:
                break
            self._reading = None if goal is None else self._begin(goal, now)
            if goal is None or self._reading is not None:
                break
        return math.inf if self._reading is None else self._reading.ends_at

    def _account(self, now: Seconds) -> None:
        """Count what has been read until now."""
        reading = self._reading
        if reading is None:
            return
        ahead = self._ahead[reading.goal.model]
        held_bytes = reading.bytes_before + (min(now, reading.ends_at) - reading.since) * reading.rate
        read_mib = (held_bytes - ahead.held_bytes) / (1 << 20)
        ahead.held_bytes = held_bytes
        figures = self.figures
        if reading.goal.reason is Reason.QUEUED:
            self.figures = replace(figures, queued_mib=figures.queued_mib + read_mib)
        else:
            self.figures = replace(figures, predicted_mib=figures.predicted_mib + read_mib)
        if now >= reading.ends_at:
            ahead.again_at = now + READ_AGAIN_SECONDS
            self._reading = None

    def _begin(self, goal: Goal, now: Seconds) -> _Reading | None:
        """None where nothing of its files is left to be read, or there is no memory for more."""
        ahead = self._ahead[goal.model]
        ahead.reason = goal.reason
        memory_bytes = self._limits.memory_max_bytes - self._choice.bytes_held_beside(goal, now)
        left_bytes = min(self._bytes[goal.model], memory_bytes) - ahead.held_bytes
        if left_bytes < ROUNDING_BYTES:
            ahead.again_at = now + READ_AGAIN_SECONDS
            return None
        rate = min(goal.rate(self._limits.bytes_per_second_max), self._limits.disk_bytes_per_second)
        return _Reading(goal, now, ahead.held_bytes, rate, now + left_bytes / rate)
