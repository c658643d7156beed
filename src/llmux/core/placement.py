"""Which models must leave the GPUs so that another one fits."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from llmux.core.identifiers import Footprint, GpuId


class Occupant(NamedTuple):
    """A model that holds GPU memory and may be made to give it up."""

    model: str
    frees: Footprint
    """What its leaving gives back on each GPU, in MiB."""
    price: tuple[int, float]
    """Cheaper ones leave first: sleepers' residue, idle models, busy ones, sleepers with frozen requests; among equals
    the one that has been so for longest."""


def free_memory(capacity: Mapping[GpuId, int], held: Iterable[Footprint]) -> dict[GpuId, int]:
    """What is left on each GPU once every footprint is held."""
    free = dict(capacity)
    for footprint in held:
        take(free, footprint)
    return free


def take(free: dict[GpuId, int], footprint: Footprint) -> None:
    """Subtract a footprint from what is free."""
    for gpu, size in footprint.items():
        free[gpu] = free.get(gpu, 0) - size


def give(free: dict[GpuId, int], footprint: Footprint) -> None:
    """Add a footprint to what is free."""
    for gpu, size in footprint.items():
        free[gpu] = free.get(gpu, 0) + size


def fits(needed: Footprint, free: Mapping[GpuId, int]) -> bool:
    """Whether the memory is free on every GPU that is needed."""
    for gpu, size in needed.items():  # noqa: SIM110 - a generator takes three times as long, and this runs at every decision
        if free.get(gpu, 0) < size:
            return False
    return True


def victims(needed: Footprint, free: Mapping[GpuId, int], occupants: Iterable[Occupant]) -> tuple[str, ...] | None:
    """A small, cheap set of models whose leaving makes ``needed`` fit; empty if it fits now, None if nothing helps.

    Greedy: takes the cheapest that help until it fits, then spares the dearest that turned out not to be needed.
    """
    if fits(needed, free):
        return ()
    left = dict(free)
    chosen: list[Occupant] = []
    cheapest_first = list(occupants)
    if len(cheapest_first) > 1:
        cheapest_first.sort(key=lambda occupant: occupant.price)
    for occupant in cheapest_first:
        if _helps(occupant.frees, needed, left):
            chosen.append(occupant)
            give(left, occupant.frees)
            if fits(needed, left):
                break
    else:
        return None
    if len(chosen) == 1:
        return (chosen[0].model,)
    for occupant in sorted(chosen, key=lambda occupant: occupant.price, reverse=True):
        spared = {gpu: left[gpu] - size for gpu, size in occupant.frees.items()}
        if fits(needed, {**left, **spared}):
            left.update(spared)
            chosen.remove(occupant)
    return tuple(occupant.model for occupant in chosen)


def _helps(frees: Footprint, needed: Footprint, free: Mapping[GpuId, int]) -> bool:
    for gpu, size in needed.items():  # noqa: SIM110 - as in fits
        if free.get(gpu, 0) < size and frees.get(gpu, 0):
            return True
    return False
