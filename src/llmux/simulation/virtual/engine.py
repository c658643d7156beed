"""A modelled engine: prompts are read one after the other, answers are written side by side."""

import math
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

from llmux.core.identifiers import Seconds

ROUNDING_TOKENS = 1e-6


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """Tokens a second: of reading prompts, and of writing each answer, alone and when the batch is full."""

    prefill: float = 8_000.0
    decode_alone: float = 40.0
    decode_full: float = 20.0

    def decode_rates(self, batch_limit: int) -> list[float]:
        """The rate of each answer while so many are being written; falls linearly to ``decode_full`` at the limit."""
        fall = (self.decode_alone - self.decode_full) / max(1, batch_limit - 1)
        return [self.decode_alone - fall * max(0, number - 1) for number in range(batch_limit + 1)]


class VirtualEngine:
    """The requests in one engine. ``next_at`` is when ``advance`` has something to report (infinity: never).

    Writing uses one clock of tokens for all: a request ends when the clock has reached its mark, and the clock runs at
    the rate that belongs to the number of answers being written. So a coming or going costs O(log n).
    """

    __slots__ = (
        "_batch_limit",
        "_clock",
        "_clock_at",
        "_heap",
        "_marks",
        "_prefill_seconds",
        "_rates",
        "_reading",
        "_unread",
        "next_at",
    )

    def __init__(self, speed: EngineSpeed, batch_limit: int) -> None:
        self._prefill_seconds = 1.0 / speed.prefill
        self._rates = speed.decode_rates(batch_limit)
        self._batch_limit = batch_limit
        self._reading: deque[tuple[Seconds, int]] = deque()
        """When each prompt will have been read: first come, first read."""
        self._unread: dict[int, int] = {}
        """How many tokens those will have to write then."""
        self._marks: dict[int, float] = {}
        """Where the clock ends each answer that is being written."""
        self._heap: list[tuple[float, int]] = []
        self._clock = 0.0
        self._clock_at: Seconds = 0.0
        self.next_at: Seconds = math.inf

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do."""
        return not self._unread and not self._marks

    @property
    def has_room(self) -> bool:
        """Whether it would begin with one more request at once."""
        return len(self._unread) + len(self._marks) < self._batch_limit

    def admit(self, request: int, tokens_to_read: int, tokens_to_write: int, now: Seconds) -> None:
        """Take a request on."""
        begins_at = self._reading[-1][0] if self._reading else now
        read_at = begins_at + tokens_to_read * self._prefill_seconds
        self._reading.append((read_at, request))
        self._unread[request] = tokens_to_write
        if read_at < self.next_at:
            self.next_at = read_at

    def advance(self) -> tuple[int, bool]:
        """Go on to ``next_at``: a request's first token is out, or (true) its last one is."""
        now = self.next_at
        reading = self._reading
        if reading and reading[0][0] <= now:
            request = reading.popleft()[1]
            left = self._unread.pop(request) - 1
            if left > 0:
                self._move_clock(now)
                mark = self._marks[request] = self._clock + left
                heappush(self._heap, (mark, request))
            self._plan()
            return request, left <= 0
        self._clock, request = heappop(self._heap)
        self._clock_at = now
        del self._marks[request]
        self._plan()
        return request, True

    def remove(self, request: int, now: Seconds) -> int:
        """Take a request out before its end; returns how many tokens it has yet to write."""
        left = self._unread.pop(request, None)
        if left is not None:
            self._reading = deque(entry for entry in self._reading if entry[1] != request)
        else:
            self._move_clock(now)
            left = max(1, math.ceil(self._marks.pop(request) - self._clock - ROUNDING_TOKENS))
        self._plan()
        return left

    def _move_clock(self, now: Seconds) -> None:
        if self._marks:
            self._clock += (now - self._clock_at) * self._rates[len(self._marks)]
        self._clock_at = now

    def _plan(self) -> None:
        heap, marks = self._heap, self._marks
        next_at = self._reading[0][0] if self._reading else math.inf
        while heap:
            mark, request = heap[0]
            if marks.get(request) == mark:
                ends_at = self._clock_at + (mark - self._clock) / self._rates[len(marks)]
                self.next_at = ends_at if ends_at < next_at else next_at
                return
            heappop(heap)
        self._clock = 0.0
        self.next_at = next_at
