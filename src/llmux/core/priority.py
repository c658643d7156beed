"""How urgent requests are, and in which order those of a model are admitted."""

from collections import OrderedDict
from collections.abc import Mapping
from enum import StrEnum
from itertools import takewhile

from llmux.core.identifiers import Seconds


class Priority(StrEnum):
    """The class of a request."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Lanes:
    """A model's waiting requests, one line per class, each in the order of arrival.

    Interactive requests go first; a batch request goes before those that came more than ``patience_seconds`` after it,
    so nobody is passed for ever. Each step is O(1), but for a request that comes back: O(those older than it).
    """

    __slots__ = ("_batch", "_interactive", "_lines", "patience_seconds")

    def __init__(self, patience_seconds: Seconds) -> None:
        self.patience_seconds = patience_seconds
        self._interactive: OrderedDict[int, Seconds] = OrderedDict()
        self._batch: OrderedDict[int, Seconds] = OrderedDict()
        self._lines = {Priority.INTERACTIVE: self._interactive, Priority.BATCH: self._batch}

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
        if not self._interactive or not self._batch:
            return next(iter(self._interactive or self._batch), None)
        interactive, batch = next(iter(self._interactive.items())), next(iter(self._batch.items()))
        return batch[0] if batch[1] + self.patience_seconds < interactive[1] else interactive[0]

    def members(self, priority: Priority) -> Mapping[int, Seconds]:
        """One line, with the times of arrival; not to be changed."""
        return self._lines[priority]
