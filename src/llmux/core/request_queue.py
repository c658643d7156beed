"""A model's waiting requests, in the order in which they are admitted."""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, islice, takewhile

from llmux.core.identifiers import Seconds
from llmux.core.request import Priority, Request

POSITION_MAX = 256
"""How far back in a line a request's position is told: finding it takes as many steps."""


class RequestQueue:
    """Waiting requests: one line per priority, each in the order of arrival.

    Interactive requests go first, but a batch request goes before those that arrived more than ``max_wait_seconds``
    after it, so no request is overtaken for ever. Each operation is O(1), except for a request that returns: O(those
    older than it).
    """

    __slots__ = ("_batch", "_interactive", "_lines", "max_wait_seconds", "size")

    def __init__(self, max_wait_seconds: Seconds) -> None:
        self.max_wait_seconds = max_wait_seconds
        self.size = 0
        """``len(queue)`` as a plain attribute: it is read three times on a request's shortest path, and a call to
        ``__len__`` costs 0.1 µs."""
        self._interactive: OrderedDict[Request, None] = OrderedDict()
        self._batch: OrderedDict[Request, None] = OrderedDict()
        self._lines = {Priority.INTERACTIVE: self._interactive, Priority.BATCH: self._batch}

    def append(self, request: Request) -> None:
        """Add a request that has just arrived."""
        self._lines[request.priority][request] = None
        self.size += 1

    def reinsert(self, request: Request) -> None:
        """Add a request that was in flight, by its time of arrival: behind those that are older."""
        line = self._lines[request.priority]
        older = list(takewhile(lambda other: other.arrived_at < request.arrived_at, line))
        line[request] = None
        self.size += 1
        for other in (request, *reversed(older)):
            line.move_to_end(other, last=False)

    def remove(self, request: Request) -> None:
        """Take a request out; raises KeyError if it does not wait here."""
        del self._lines[request.priority][request]
        self.size -= 1

    def next(self) -> Request | None:
        """The request to be admitted next."""
        if not self._interactive or not self._batch:
            return next(iter(self._interactive or self._batch), None)
        interactive, batch = next(iter(self._interactive)), next(iter(self._batch))
        return batch if batch.arrived_at + self.max_wait_seconds < interactive.arrived_at else interactive

    @property
    def oldest_arrived_at(self) -> Seconds | None:
        """When the request arrived that has waited longest; None if none waits."""
        if not self._interactive or not self._batch:
            only = self._interactive or self._batch
            return next(iter(only)).arrived_at if only else None
        return min(next(iter(self._interactive)).arrived_at, next(iter(self._batch)).arrived_at)

    def ahead_of(self, priority: Priority) -> int:
        """About how many go before one that arrives now: batch requests that are overdue are not counted."""
        return self.size if priority is Priority.BATCH else len(self._interactive)

    def position(self, request: Request) -> int | None:
        """How many go before a request, and itself, as far as ``ahead_of`` is right; None where it is far back.

        The request waits here.
        """
        first = len(self._interactive) if request.priority is Priority.BATCH else 0
        for number, other in enumerate(islice(self._lines[request.priority], POSITION_MAX), 1):
            if other is request:
                return first + number
        return None

    def line(self, priority: Priority) -> list[Request]:
        """The requests of one priority, in the order of arrival."""
        return list(self._lines[priority])

    def by_arrival(self) -> list[Request]:
        """All requests in the order of arrival."""
        return sorted(self, key=lambda request: (request.arrived_at, request.id))

    def __iter__(self) -> Iterator[Request]:
        """All requests, line by line; the queue must not change meanwhile."""
        return chain(self._interactive, self._batch)

    def __contains__(self, request: Request) -> bool:
        return request in self._lines[request.priority]

    def __len__(self) -> int:
        return self.size
