"""How urgent requests are, and in which order those of a model are admitted."""

from collections import OrderedDict
from collections.abc import Mapping
from enum import StrEnum
from itertools import takewhile

from llmux.core.identity import Seconds


class Priority(StrEnum):
    """The class of a request."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Lanes:
    """A model's waiting requests, one line per class, each in the order of arrival.

    Interactive requests go first; a batch request goes before those that came more than ``patience_seconds`` after it,
    so nobody is passed for ever. Each step is O(1), but for a request that comes back: O(those older than it).
    """

    __slots__ = ("_lines", "patience_seconds")

    def __init__(self, patience_seconds: Seconds) -> None:
        self.patience_seconds = patience_seconds
        self._lines: dict[Priority, OrderedDict[int, Seconds]] = {priority: OrderedDict() for priority in Priority}

    def add(self, request: int, priority: Priority, arrived_at: Seconds) -> None:
        """Let a request that has just come stand at the end of its line."""
        self._lines[priority][request] = arrived_at

    def add_again(self, request: int, priority: Priority, arrived_at: Seconds) -> None:
        """Let a request that has been away take its old place, behind those that are older."""
        line = self._lines[priority]
        older = [other for other, _ in takewhile(lambda entry: entry[1] < arrived_at, line.items())]
        line[request] = arrived_at
        for other in (request, *reversed(older)):
            line.move_to_end(other, last=False)

    def remove(self, request: int, priority: Priority) -> None:
        """Take a request out."""
        del self._lines[priority][request]

    def first(self) -> int | None:
        """Who is admitted next."""
        interactive, batch = self._lines[Priority.INTERACTIVE], self._lines[Priority.BATCH]
        if not interactive or not batch:
            return next(iter(interactive or batch), None)
        (first, arrived_at), (patient, came_at) = next(iter(interactive.items())), next(iter(batch.items()))
        return patient if came_at + self.patience_seconds < arrived_at else first

    def members(self, priority: Priority) -> Mapping[int, Seconds]:
        """One line, with the times of arrival; not to be changed."""
        return self._lines[priority]
