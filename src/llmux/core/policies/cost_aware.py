"""Switch when the queue is worth it: 0.7.7's ``cost_aware``."""

import math
from dataclasses import dataclass

from llmux.core.identifiers import Seconds
from llmux.core.policies.base import Bring, Candidate, Choice, Incumbent, NoQuantum, PolicyView, Stay


@dataclass(frozen=True, slots=True)
class CostAware(NoQuantum):
    """Lets a model stay as long as the switch to it cost, then until the queue is long enough or the window is over."""

    coalesce_window_seconds: Seconds = 2.0
    amortization_factor: float = 0.5

    def choose(self, view: PolicyView, now: Seconds) -> Choice:
        earliest, wanted = math.inf, ""
        for candidate in view.candidates():
            due_at = max(
                (self._due_at(candidate, incumbent, view) for incumbent in view.in_the_way(candidate)),
                default=-math.inf,
            )
            if due_at < earliest or not wanted:
                earliest, wanted = due_at, candidate.model
        if wanted and earliest <= now:
            return Bring(wanted)
        return Stay(earliest)

    def _due_at(self, candidate: Candidate, incumbent: Incumbent, view: PolicyView) -> Seconds:
        cost = view.cost(incumbent.model, candidate.model)
        has_paid_off_at = incumbent.since + cost
        if candidate.head_arrived_at < has_paid_off_at:
            return has_paid_off_at
        if candidate.queue_depth >= max(1, math.ceil(self.amortization_factor * cost)):
            return candidate.head_arrived_at
        return candidate.head_arrived_at + self.coalesce_window_seconds
