"""A modelled engine: prompts are prefilled one after the other, answers are decoded in one batch."""

import math
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

from llmux.core.identifiers import Seconds

ROUNDING_TOKENS = 1e-6
"""The clock of tokens is a sum of floats, so a whole number of tokens may come out slightly above."""


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """Tokens a second: of prefill, and of decoding each answer, alone and in a full batch."""

    prefill: float = 8_000.0
    decode_alone: float = 40.0
    decode_full: float = 20.0
    recompute_share: float | None = None
    """What the recompute of a frozen request takes, as a share of its prefill: 1 where the KV cache is lost, about 0.1
    where it is read back from host memory. None: by model, as ``SwitchCost`` says."""

    def decode_rates(self, batch_limit: int) -> list[float]:
        """The rate of each answer by the size of the batch; falls linearly to ``decode_full`` at the limit."""
        fall = (self.decode_alone - self.decode_full) / max(1, batch_limit - 1)
        return [self.decode_alone - fall * max(0, number - 1) for number in range(batch_limit + 1)]


class VirtualEngine:
    """The requests in one engine. ``next_at`` is the time of its next first or last token (infinity: never).

    All answers are decoded by one clock of tokens, which runs at the rate for the present size of the batch: an answer
    ends when the clock reaches its mark. So adding and removing a request costs O(log n).
    """

    __slots__ = (
        "_batch_limit",
        "_clock",
        "_clock_at",
        "_heap",
        "_marks",
        "_prefill_seconds",
        "_prefills",
        "_rates",
        "_to_decode",
        "next_at",
    )

    def __init__(self, speed: EngineSpeed, batch_limit: int) -> None:
        self._prefill_seconds = 1.0 / speed.prefill
        self._rates = speed.decode_rates(batch_limit)
        self._batch_limit = batch_limit
        self._prefills: deque[tuple[Seconds, int]] = deque()
        """When each prompt will have been prefilled, first come, first served."""
        self._to_decode: dict[int, int] = {}
        """By request in ``_prefills``: its output tokens."""
        self._marks: dict[int, float] = {}
        """By request in the batch: the clock at its last token."""
        self._heap: list[tuple[float, int]] = []
        self._clock = 0.0
        self._clock_at: Seconds = 0.0
        self.next_at: Seconds = math.inf

    @property
    def is_idle(self) -> bool:
        return not self._to_decode and not self._marks

    @property
    def has_slot(self) -> bool:
        """Whether one more request would be scheduled at once."""
        return len(self._to_decode) + len(self._marks) < self._batch_limit

    def admit(self, request: int, prefill_tokens: float, output_tokens: int, now: Seconds) -> None:
        begins_at = self._prefills[-1][0] if self._prefills else now
        prefilled_at = begins_at + prefill_tokens * self._prefill_seconds
        self._prefills.append((prefilled_at, request))
        self._to_decode[request] = output_tokens
        if prefilled_at < self.next_at:
            self.next_at = prefilled_at

    def advance(self) -> tuple[int, bool]:
        """Move on to ``next_at``; returns the request and whether its last token is out, rather than its first."""
        now = self.next_at
        prefills = self._prefills
        if prefills and prefills[0][0] <= now:
            request = prefills.popleft()[1]
            left = self._to_decode.pop(request) - 1
            if left > 0:
                self._advance_clock(now)
                mark = self._marks[request] = self._clock + left
                heappush(self._heap, (mark, request))
            self._schedule_next()
            return request, left <= 0
        self._clock, request = heappop(self._heap)
        self._clock_at = now
        del self._marks[request]
        self._schedule_next()
        return request, True

    def remove(self, request: int, now: Seconds) -> int:
        """Remove a request before its end; returns how many tokens it has yet to decode."""
        left = self._to_decode.pop(request, None)
        if left is not None:
            self._prefills = deque(entry for entry in self._prefills if entry[1] != request)
        else:
            self._advance_clock(now)
            left = max(1, math.ceil(self._marks.pop(request) - self._clock - ROUNDING_TOKENS))
        self._schedule_next()
        return left

    def _advance_clock(self, now: Seconds) -> None:
        if self._marks:
            self._clock += (now - self._clock_at) * self._rates[len(self._marks)]
        self._clock_at = now

    def _schedule_next(self) -> None:
        heap, marks = self._heap, self._marks
        next_at = self._prefills[0][0] if self._prefills else math.inf
        while heap:
            mark, request = heap[0]
            if marks.get(request) == mark:
                ends_at = self._clock_at + (mark - self._clock) / self._rates[len(marks)]
                self.next_at = ends_at if ends_at < next_at else next_at
                return
            heappop(heap)
        self._clock = 0.0
        self.next_at = next_at
