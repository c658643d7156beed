"""Whose turn is next: models with waiting requests, in order."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import TypeAlias

from llmux.core.identifiers import Seconds

_Entry: TypeAlias = tuple[Seconds, int, str]


class CandidateQueue:
    """Models by the time they are overdue, earliest first; equals in the order of their entry.

    A sorted list: finding a place costs O(log n), and moving the rest aside is one copy of n pointers in memory.
    """

    def __init__(self) -> None:
        self._current: dict[str, _Entry] = {}
        self._entries: list[_Entry] = []
        self._places = 0

    def place(self, model: str, overdue_at: Seconds) -> None:
        """Enter a model, or move it."""
        current = self._current.get(model)
        if current is not None and current[0] == overdue_at:
            return
        self.remove(model)
        self._places += 1
        entry = self._current[model] = (overdue_at, self._places, model)
        insort(self._entries, entry)

    def remove(self, model: str) -> None:
        """Take a model out; no harm if it is not in."""
        entry = self._current.pop(model, None)
        if entry is not None:
            del self._entries[bisect_left(self._entries, entry)]

    def first(self) -> tuple[str, Seconds] | None:
        """The model whose turn is next, and when it is overdue."""
        if not self._entries:
            return None
        overdue_at, _, model = self._entries[0]
        return model, overdue_at

    def overdue_at(self, model: str) -> Seconds:
        """When a model that is in the order is overdue."""
        return self._current[model][0]

    def __iter__(self) -> Iterator[str]:
        """All models, in turn order; the order must not be changed meanwhile."""
        return (model for _, _, model in self._entries)

    def __contains__(self, model: object) -> bool:
        return model in self._current

    def __len__(self) -> int:
        return len(self._current)
