"""When waiting requests time out."""

import heapq
import math
from itertools import count

from llmux.core.identifiers import Seconds
from llmux.core.request import Request

STALE_ENTRIES_MIN = 1024
"""Rebuilding a smaller heap would cost more than its memory is worth."""


class Deadlines:
    """The deadlines of all requests that are queued or frozen.

    A heap whose entries are not removed when a request stops waiting: an entry counts only while the request still has
    that deadline. When more than half of the entries are stale, the heap is rebuilt.
    """

    __slots__ = ("_heap", "_order", "_waiting")

    def __init__(self) -> None:
        self._heap: list[tuple[Seconds, int, int, Request]] = []
        self._order = count()
        self._waiting = 0

    def start(self, request: Request, deadline: Seconds) -> None:
        """The request begins to wait."""
        request.deadline = deadline
        self._waiting += 1
        heapq.heappush(self._heap, (deadline, request.id, next(self._order), request))
        if len(self._heap) > 2 * self._waiting + STALE_ENTRIES_MIN:
            self._heap = [entry for entry in self._heap if entry[0] == entry[3].deadline]
            heapq.heapify(self._heap)

    def stop(self, request: Request) -> None:
        """The request does not wait any more."""
        request.deadline = None
        self._waiting -= 1

    def earliest(self, before: Seconds) -> Seconds:
        """The earliest deadline; infinity if there is none before that time."""
        heap = self._heap
        while heap and heap[0][0] < before:
            if heap[0][0] == heap[0][3].deadline:
                return heap[0][0]
            heapq.heappop(heap)
        return math.inf

    def expired(self, now: Seconds) -> Request | None:
        """A request that has waited too long, earliest deadline first; to be asked until it returns None."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            deadline, _, _, request = heapq.heappop(heap)
            if deadline == request.deadline:
                return request
        return None

    def __len__(self) -> int:
        return len(self._heap)
