"""Which model is to be switched to next."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from itertools import islice
from operator import itemgetter
from typing import Final, TypeAlias

from llmux.core.identifiers import Seconds

Entry: TypeAlias = tuple[Seconds, int, str]
"""When a model is overdue, what decides between those that are at the same time, and the model."""

_MODEL: Final[Callable[[Entry], str]] = itemgetter(2)


class CandidateQueue:
    """Models that are wanted and could be woken, earliest deadline first; ties in the order of their entry.

    A sorted list: finding a place costs O(log n), and inserting moves at most n pointers in memory.
    """

    def __init__(self) -> None:
        self._current: dict[str, Entry] = {}
        self.entries: list[Entry] = []
        """To be read only."""
        self._entered = 0
        self.passed = 0
        """How many at the front the decision under way need not look at again; 0 once the queue has changed."""

    def place(self, model: str, overdue_at: Seconds) -> None:
        """Enter a model, or move it."""
        current = self._current.get(model)
        if current is not None and current[0] == overdue_at:
            return
        self.remove(model)
        self._entered += 1
        entry = self._current[model] = (overdue_at, self._entered, model)
        insort(self.entries, entry)
        self.passed = 0

    def remove(self, model: str) -> None:
        """Take a model out, if it is in."""
        entry = self._current.pop(model, None)
        if entry is not None:
            self.passed = 0
            del self.entries[bisect_left(self.entries, entry)]

    def first(self) -> tuple[str, Seconds] | None:
        """The model that is overdue first, and when."""
        if not self.entries:
            return None
        overdue_at, _, model = self.entries[0]
        return model, overdue_at

    def overdue_at(self, model: str) -> Seconds:
        """When a model of the queue is overdue; raises KeyError for any other."""
        return self._current[model][0]

    def is_overdue(self, model: str, now: Seconds) -> bool:
        """Whether the model is one of the queue, and overdue."""
        return model in self._current and self._current[model][0] <= now

    def models(self, first: int = 0) -> Iterator[str]:
        """The models from a position on, earliest deadline first; the queue must not change meanwhile."""
        # Not a generator expression, which compiled code makes at once of all 1,000 that may wait.
        return map(_MODEL, islice(self.entries, first, None))

    def __iter__(self) -> Iterator[str]:
        """All models, earliest deadline first; the queue must not change meanwhile."""
        return map(_MODEL, self.entries)

    def __contains__(self, model: object) -> bool:
        return model in self._current

    def __len__(self) -> int:
        return len(self.entries)
