"""Which models must leave the GPUs so that another one fits."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from llmux.core.identifiers import Footprint, GpuId


class Holder(NamedTuple):
    """A model that holds GPU memory and may be made to give it up; cheaper ones are asked first."""

    model: str
    frees: Footprint
    """What its leaving gives back on each GPU."""
    price: tuple[int, float]
    """Orders holders: sleepers' residue, idle models, busy ones, sleepers in whom requests are frozen; oldest first."""


def free_memory(capacity: Mapping[GpuId, int], held: Iterable[Footprint]) -> dict[GpuId, int]:
    """What is left on each GPU."""
    free = dict(capacity)
    for footprint in held:
        take(free, footprint)
    return free


def take(free: dict[GpuId, int], footprint: Footprint) -> None:
    """Hold so much of what is free."""
    for gpu, size in footprint.items():
        free[gpu] = free.get(gpu, 0) - size


def give(free: dict[GpuId, int], footprint: Footprint) -> None:
    """The opposite."""
    for gpu, size in footprint.items():
        free[gpu] = free.get(gpu, 0) + size


def fits(needed: Footprint, free: Mapping[GpuId, int]) -> bool:
    """Whether the memory is there without anybody leaving."""
    for gpu, size in needed.items():  # noqa: SIM110 - a generator takes three times as long, at every decision
        if free.get(gpu, 0) < size:
            return False
    return True


def victims(needed: Footprint, free: Mapping[GpuId, int], holders: Iterable[Holder]) -> tuple[str, ...] | None:
    """A small, cheap set of models whose leaving makes ``needed`` fit; empty if it fits now, None if nothing helps."""
    if fits(needed, free):
        return ()
    left = dict(free)
    chosen: list[Holder] = []
    cheapest_first = list(holders)
    if len(cheapest_first) > 1:
        cheapest_first.sort(key=lambda holder: holder.price)
    for holder in cheapest_first:
        if _helps(holder.frees, needed, left):
            chosen.append(holder)
            give(left, holder.frees)
            if fits(needed, left):
                break
    else:
        return None
    if len(chosen) == 1:
        return (chosen[0].model,)
    for holder in sorted(chosen, key=lambda holder: holder.price, reverse=True):
        spared = {gpu: left[gpu] - size for gpu, size in holder.frees.items()}
        if fits(needed, {**left, **spared}):
            left.update(spared)
            chosen.remove(holder)
    return tuple(holder.model for holder in chosen)


def _helps(frees: Footprint, needed: Footprint, free: Mapping[GpuId, int]) -> bool:
    for gpu, size in needed.items():  # noqa: SIM110 - as above
        if free.get(gpu, 0) < size and frees.get(gpu, 0):
            return True
    return False
