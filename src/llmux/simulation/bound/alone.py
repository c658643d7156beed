"""How early each first token could come if every model had a GPU of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappush, heapreplace

from llmux.core.identifiers import Seconds
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.workload.call import TracedCall


@dataclass(frozen=True, slots=True)
class Earliest:
    """No policy begins to read the prompt before ``reading_at``, or has the first token before ``first_token_at``."""

    arrived_at: Seconds
    reading_at: Seconds
    first_token_at: Seconds

    @property
    def prefill_seconds(self) -> Seconds:
        """How long the prompt is read."""
        return self.first_token_at - self.reading_at


def alone(calls: Sequence[TracedCall], speed: EngineSpeed, batch_limit: int, wake_seconds: Seconds) -> list[Earliest]:
    """One model's calls on an engine that is woken once, never leaves, and writes as fast in a full batch as alone.

    Each of these times depends on the earlier ones by ``max`` and ``+`` alone, so whatever delays anything in reality
    (a switch, a drain, a slower batch) makes none of them earlier.
    """
    if not calls:
        return []
    read_at = calls[0].at_seconds + wake_seconds
    ends: list[Seconds] = []
    found = []
    for call in calls:
        has_room = len(ends) < batch_limit
        admitted_at = call.at_seconds if has_room else max(call.at_seconds, ends[0])
        reading_at = max(admitted_at, read_at)
        read_at = reading_at + call.prompt_tokens / speed.prefill
        ends_at = read_at + (call.output_tokens - 1) / speed.decode_alone
        if has_room:
            heappush(ends, ends_at)
        else:
            heapreplace(ends, ends_at)
        found.append(Earliest(call.at_seconds, reading_at, read_at))
    return found
