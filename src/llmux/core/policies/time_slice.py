"""Switch only from idle models: 0.7.7's ``time_slice``."""

import math
from dataclasses import dataclass

from llmux.core.identifiers import Seconds
from llmux.core.policies.base import Bring, Choice, Incumbent, NoQuantum, PolicyView, Stay


@dataclass(frozen=True, slots=True)
class TimeSlice(NoQuantum):
    """Switches to the longest queue when the models in the way have been idle for a whole tick.

    0.7.7 samples idleness every tick, so that what it does depends on when the ticks fall.
    """

    tick_interval_seconds: Seconds = 0.5

    def choose(self, view: PolicyView, now: Seconds) -> Choice:
        earliest, wanted, longest = math.inf, "", 0
        for candidate in view.candidates():
            due_at = max((self._due_at(incumbent) for incumbent in view.in_the_way(candidate)), default=-math.inf)
            if due_at <= now and candidate.queue_depth > longest:
                wanted, longest = candidate.model, candidate.queue_depth
            earliest = min(earliest, due_at)
        return Bring(wanted) if wanted else Stay(earliest)

    def _due_at(self, incumbent: Incumbent) -> Seconds:
        return math.inf if incumbent.idle_since is None else incumbent.idle_since + self.tick_interval_seconds
