"""Which model is to be switched to next."""

from bisect import bisect_left, insort
from collections.abc import Container, Iterator
from typing import TypeAlias

from llmux.core.identifiers import Seconds

_Entry: TypeAlias = tuple[Seconds, int, str]


class CandidateQueue:
    """Models that are wanted and could be woken, earliest deadline first; ties in the order of their entry.

    A sorted list: finding a place costs O(log n), and inserting moves at most n pointers in memory.
    """

    def __init__(self) -> None:
        self._current: dict[str, _Entry] = {}
        self._entries: list[_Entry] = []
        self._entered = 0

    def place(self, model: str, overdue_at: Seconds) -> None:
        """Enter a model, or move it."""
        current = self._current.get(model)
        if current is not None and current[0] == overdue_at:
            return
        self.remove(model)
        self._entered += 1
        entry = self._current[model] = (overdue_at, self._entered, model)
        insort(self._entries, entry)

    def remove(self, model: str) -> None:
        """Take a model out, if it is in."""
        entry = self._current.pop(model, None)
        if entry is not None:
            del self._entries[bisect_left(self._entries, entry)]

    def first(self) -> tuple[str, Seconds] | None:
        """The model that is overdue first, and when."""
        if not self._entries:
            return None
        overdue_at, _, model = self._entries[0]
        return model, overdue_at

    def overdue_at(self, model: str) -> Seconds:
        """When a model of the queue is overdue; raises KeyError for any other."""
        return self._current[model][0]

    def is_overdue(self, model: str, now: Seconds) -> bool:
        """Whether the model is one of the queue, and overdue."""
        return model in self._current and self._current[model][0] <= now

    def without(self, first: Container[str]) -> Iterator[str]:
        """All models, less those at the front that are among ``first``; the queue must not change meanwhile."""
        position = 0
        for _, _, model in self._entries:
            if model not in first:
                break
            position += 1
        return (model for _, _, model in self._entries[position:])

    def __iter__(self) -> Iterator[str]:
        """All models, earliest deadline first; the queue must not change meanwhile."""
        return (model for _, _, model in self._entries)

    def __contains__(self, model: object) -> bool:
        return model in self._current

    def __len__(self) -> int:
        return len(self._entries)
