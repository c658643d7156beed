"""The fewest switches with which a sequence of requests can be served, by trying every choice."""

from collections.abc import Mapping, Sequence
from itertools import combinations


def fewest_switches(wanted: Sequence[str], sizes: Mapping[str, int], capacity: int) -> int:
    """Of one GPU, with every request known beforehand: each brings its model if it is not there, and any may leave.

    Compares all sets of models that fit together, so it is for a handful of models.
    """
    fewest = {frozenset[str](): 0}
    for model in wanted:
        after: dict[frozenset[str], int] = {}
        for there, switches in fewest.items():
            choices = [there] if model in there else _with(there, model, sizes, capacity)
            for chosen in choices:
                count = switches + (model not in there)
                after[chosen] = min(count, after.get(chosen, count))
        fewest = after
    return min(fewest.values())


def _with(there: frozenset[str], model: str, sizes: Mapping[str, int], capacity: int) -> list[frozenset[str]]:
    """Every set that can be there when the model has come: some of those before, and it."""
    kept = (frozenset(some) for count in range(len(there) + 1) for some in combinations(sorted(there), count))
    return [some | {model} for some in kept if sum(sizes[one] for one in some) + sizes[model] <= capacity]
