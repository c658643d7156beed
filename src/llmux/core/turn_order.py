"""Whose turn is next: models with waiting requests, ordered in O(log n) however many there are."""

import heapq
from collections.abc import Iterator

from llmux.core.identity import Seconds


class TurnOrder:
    """Models by the time they are overdue, earliest first.

    A heap with lazy deletion: an entry counts only while it is the model's current one.
    """

    def __init__(self) -> None:
        self._current: dict[str, tuple[Seconds, int]] = {}
        self._heap: list[tuple[Seconds, int, str]] = []
        self._pushes = 0

    def place(self, model: str, overdue_at: Seconds) -> None:
        """Enter a model, or move it."""
        current = self._current.get(model)
        if current is not None and current[0] == overdue_at:
            return
        self._pushes += 1
        self._current[model] = (overdue_at, self._pushes)
        heapq.heappush(self._heap, (overdue_at, self._pushes, model))
        if len(self._heap) > 2 * len(self._current) + 64:
            self._heap = [(at, number, name) for at, number, name in self._heap if self._is_current(at, number, name)]
            heapq.heapify(self._heap)

    def remove(self, model: str) -> None:
        """Take a model out; no harm if it is not in."""
        self._current.pop(model, None)

    def first(self) -> tuple[str, Seconds] | None:
        """The model whose turn is next, and when it is overdue."""
        while self._heap:
            overdue_at, number, model = self._heap[0]
            if self._is_current(overdue_at, number, model):
                return model, overdue_at
            heapq.heappop(self._heap)
        return None

    def _is_current(self, overdue_at: Seconds, number: int, model: str) -> bool:
        return self._current.get(model) == (overdue_at, number)

    def overdue_at(self, model: str) -> Seconds:
        """When a model that is in the order is overdue."""
        return self._current[model][0]

    def __iter__(self) -> Iterator[str]:
        """All models, in turn order; costs O(n log n)."""
        return iter(sorted(self._current, key=self._current.__getitem__))

    def __contains__(self, model: object) -> bool:
        return model in self._current

    def __len__(self) -> int:
        return len(self._current)
