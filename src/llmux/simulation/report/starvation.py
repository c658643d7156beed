"""How long a model's requests were left waiting without one of them being admitted."""

from collections.abc import Iterable

from llmux.simulation.report.fate import Fate


def starvation(fates: Iterable[Fate]) -> float:
    """The longest time that somebody waited for the one model of these requests and nobody was admitted to it."""
    changes: list[tuple[float, int, bool]] = []
    for fate in fates:
        left_at = fate.admitted_at if fate.admitted_at is not None else fate.ended_at
        if left_at is not None and left_at > fate.arrived_at:
            changes += [(fate.arrived_at, 1, False), (left_at, -1, fate.admitted_at is not None)]
    longest, waiting, since = 0.0, 0, 0.0
    for at, change, is_admission in sorted(changes):
        if not waiting:
            since = at
        waiting += change
        if change < 0 and (is_admission or not waiting):
            longest = max(longest, at - since)
            since = at
    return longest
