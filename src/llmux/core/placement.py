"""Which models must leave the GPUs so that another one fits, and what that costs."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from itertools import combinations
from math import comb
from typing import NamedTuple

from llmux.core.identifiers import Footprint, GpuId, Seconds


class Use(IntEnum):
    """What a model that may have to leave is doing. Those of a lower class leave before any of a higher one."""

    NONE = 0
    """It sleeps, and is stopped for what it still holds."""
    IDLE = 1
    BUSY = 2
    FROZEN = 3
    """It sleeps with requests suspended in it, which stopping it loses."""


class Price(NamedTuple):
    """What having a model leave costs; cheaper ones leave first."""

    use: Use
    regret: float
    """How much its absence is expected to cost: the more, the longer it takes to bring it back, and the shorter it has
    been unused."""
    since: Seconds
    """Since when it has been so. Among equals, and where nothing is known, the one unused for longest leaves."""


LEAST_SECONDS_UNUSED: Seconds = 1e-3
"""A model that has just become idle counts as unused for so long: its regret is finite."""

PLACES_MAX = 128
"""Places that a decision may have to compare for one model. Of 8 GPUs there are at most 70 sets of one size; where
there are more, only those of neighbours count."""


class Occupant(NamedTuple):
    """A model that holds GPU memory and may be made to give it up."""

    model: str
    frees: Footprint
    """What its leaving gives back on each GPU, in MiB."""
    price: Price


class Plan(NamedTuple):
    """Who leaves, and whether they are stopped because asleep they would still hold too much."""

    victims: tuple[str, ...] = ()
    frees: tuple[Footprint, ...] = ()
    """What the leaving of each gives back."""
    stop_victims: bool = False


def gpu_sets(gpus: Sequence[GpuId], count: int) -> Iterator[tuple[GpuId, ...]]:
    """The sets of so many of these GPUs: all of them, or those of neighbours if there are more than ``PLACES_MAX``."""
    if comb(len(gpus), count) <= PLACES_MAX:
        yield from combinations(gpus, count)
    else:
        yield from (tuple(gpus[first : first + count]) for first in range(len(gpus) - count + 1))


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


def less(footprint: Footprint, other: Footprint) -> Footprint:
    """What a footprint holds more than another one, on each of its GPUs."""
    return {gpu: size - other.get(gpu, 0) for gpu, size in footprint.items()} if other else footprint


def fits(needed: Footprint, free: Mapping[GpuId, int]) -> bool:
    """Whether the memory is free on every GPU that is needed."""
    for gpu, size in needed.items():  # noqa: SIM110 - a generator takes three times as long, and this runs at every decision
        if free.get(gpu, 0) < size:
            return False
    return True


def would_fit(needed: Footprint, free: Mapping[GpuId, int], freed: Footprint) -> bool:
    """Whether the memory would be free once this footprint is."""
    for gpu, size in needed.items():  # noqa: SIM110 - as in fits
        if free.get(gpu, 0) + freed.get(gpu, 0) < size:
            return False
    return True


def victims(needed: Footprint, free: Mapping[GpuId, int], occupants: Iterable[Occupant]) -> tuple[Occupant, ...] | None:
    """The cheapest set of models (``price_of``), of those looked at, whose leaving makes ``needed`` fit.

    Empty if it fits now, None if nothing helps. An optimum takes time exponential in the number of models, and this
    runs at every decision. So only these sets are looked at: taking the cheapest model first, the one that frees most
    for its price, or the largest, until it fits. None of them has a member that it could do without.
    """
    if fits(needed, free):
        return ()
    helpful = [occupant for occupant in occupants if helps(occupant.frees, needed, free)]
    if len(helpful) == 1:
        return tuple(helpful) if would_fit(needed, free, helpful[0].frees) else None
    helpful.sort(key=_price)
    cheapest_first = _enough(needed, free, helpful)
    if cheapest_first is None:
        return None
    if len(cheapest_first) == 1 and cheapest_first[0] is helpful[0]:
        return tuple(cheapest_first)
    found = [cheapest_first]
    lacking = {gpu: size - free.get(gpu, 0) for gpu, size in needed.items() if free.get(gpu, 0) < size}
    for rank in (_most_for_its_price, _largest):
        helpful.sort(key=lambda occupant: rank(occupant, lacking))
        if (others := _enough(needed, free, helpful)) is not None:
            found.append(others)
    return tuple(min(found, key=price_of))


def price_of(models: Iterable[Occupant]) -> tuple[float, ...]:
    """What having all of them leave costs, for comparing.

    Few models in use leave rather than many that are not; then the sum of the regrets counts. Among equals few rather
    than many leave, and then those that have been unused for longest.
    """
    frozen = busy = count = 0
    has_idle, regret, since = False, 0.0, -math.inf
    for model in models:
        price = model.price
        count += 1
        if price.use is Use.FROZEN:
            frozen += 1
        elif price.use is Use.BUSY:
            busy += 1
        elif price.use is Use.IDLE:
            has_idle = True
        regret += price.regret
        if price.since > since:
            since = price.since
    return (frozen, busy, has_idle, regret, count, since if count else 0.0)


def _price(occupant: Occupant) -> Price:
    return occupant.price


def _most_for_its_price(occupant: Occupant, lacking: Footprint) -> tuple[float, ...]:
    useful = _useful(occupant, lacking)
    return (occupant.price.use, occupant.price.regret / useful, -useful, occupant.price.since)


def _largest(occupant: Occupant, lacking: Footprint) -> tuple[float, ...]:
    return (occupant.price.use, -_useful(occupant, lacking), *occupant.price[1:])


def _useful(occupant: Occupant, lacking: Footprint) -> int:
    """How much of what it frees is needed, in MiB."""
    return sum(min(occupant.frees.get(gpu, 0), size) for gpu, size in lacking.items())


def _enough(needed: Footprint, free: Mapping[GpuId, int], in_order: Sequence[Occupant]) -> list[Occupant] | None:
    """Take models in this order until it fits, then spare the dearest that turned out not to be needed."""
    left = dict(free)
    chosen: list[Occupant] = []
    for occupant in in_order:
        if helps(occupant.frees, needed, left):
            chosen.append(occupant)
            give(left, occupant.frees)
            if fits(needed, left):
                break
    else:
        return None
    if len(chosen) > 1:
        for occupant in sorted(chosen, key=_price, reverse=True):
            spared = {gpu: left[gpu] - size for gpu, size in occupant.frees.items()}
            if fits(needed, {**left, **spared}):
                left.update(spared)
                chosen.remove(occupant)
    return chosen


def helps(frees: Footprint, needed: Footprint, free: Mapping[GpuId, int]) -> bool:
    """Whether it gives back memory of any GPU of which more is needed than is free."""
    for gpu, size in needed.items():  # noqa: SIM110 - as in fits
        if free.get(gpu, 0) < size and frees.get(gpu, 0):
            return True
    return False
