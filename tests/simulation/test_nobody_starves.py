"""Many seeded simulations with faults: every request ends, and every wait is within ``Scheduler.wait_bound``.

``LLMUX_STARVATION_SEEDS`` runs that many seeds instead of the default number.
"""

import os
import random
from dataclasses import dataclass, replace
from itertools import combinations, islice

import pytest

from llmux.core.eviction import STOP, Drain
from llmux.core.groups import Group
from llmux.core.identifiers import ALL_OF_IT, Footprint, GpuId
from llmux.core.placement import PLACES_MAX
from llmux.core.request import Priority
from llmux.core.settings import ALL_OF_EVERY_GPU, Limits, ModelSpec, Placement
from tests.simulation.test_core_simulation import Chance
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import DISCARD, OFFLOAD, POLICIES
from tests.support.core_truth import Place

SEEDS = int(os.environ.get("LLMUX_STARVATION_SEEDS", "300"))
PARTS = 20
SECONDS = 150.0


@dataclass(frozen=True)
class Fleet:
    """Models, and the GPUs that they share."""

    specs: tuple[ModelSpec, ...]
    capacity: Footprint
    groups: tuple[Group, ...] = ()


def one_gpu(rng: random.Random) -> Fleet:
    """A few models of which each takes the whole GPU."""
    count = rng.randrange(2, 6)
    return Fleet(tuple(_spec(rng, f"model-{number}", (ALL_OF_EVERY_GPU,)) for number in range(count)), ALL_OF_IT)


def many_gpus(rng: random.Random) -> Fleet:
    """Models of any size, each for some number of the GPUs: at fixed places, or at any."""
    gpus = [GpuId("local", str(number)) for number in range(rng.randrange(1, 9))]
    capacity = {gpu: rng.choice((10, 10, 20)) for gpu in gpus}
    count = rng.choice((2, 4, 6, 10, 20, 40))
    pinned = rng.choice((0.0, 0.0, 0.1))
    specs = [_spec(rng, f"model-{number}", _places(rng, capacity)) for number in range(count)]
    specs = [replace(spec, keep=rng.random() < pinned) for spec in specs]
    names = [spec.name for spec in specs]
    groups = [
        Group(
            tuple(rng.sample(names, min(count, rng.randrange(2, 6)))),
            rng.random() < 0.6,
            rng.random() < 0.3,
            rng.random() < 0.3,
        )
        for _ in range(rng.choice((0, 0, 1, 2)))
    ]
    return Fleet(tuple(specs), capacity, tuple(groups))


def _places(rng: random.Random, capacity: Footprint) -> tuple[Placement, ...]:
    wanted = rng.choice((1, 1, 1, 2, len(capacity)))
    sets = list(islice(combinations(rng.sample(list(capacity), len(capacity)), min(wanted, len(capacity))), PLACES_MAX))
    places = sets if rng.random() < 0.7 else sets[:1]
    size = rng.choice((1, 2, 3, 5, 7, min(capacity.values())))
    residue = rng.choice((0, 0, 0, 1)) if size > 1 else 0
    return tuple(_placement(gpus, size, residue) for gpus in places)


def _placement(gpus: tuple[GpuId, ...], size: int, residue: int) -> Placement:
    asleep = {eviction: dict.fromkeys(gpus, residue) for eviction in (OFFLOAD, DISCARD)} if residue else {}
    return Placement(dict.fromkeys(gpus, size), asleep)


def _spec(rng: random.Random, name: str, places: tuple[Placement, ...]) -> ModelSpec:
    return ModelSpec(
        name,
        rng.choice((OFFLOAD, DISCARD, STOP)),
        max_in_flight=rng.choice((1, 4, 256)),
        drain=rng.choice((Drain.WAIT, Drain.FREEZE, Drain.FREEZE)),
        placements=places,
        weight=rng.choice((0.2, 1.0, 1.0, 5.0)),
        max_wait_seconds=rng.choice((None, None, 3.0, 40.0)),
    )


def one_simulation(seed: int) -> CoreDriver:
    """Traffic of some minutes, with engines that fail and clients that leave; the seed alone repeats it."""
    rng = random.Random(seed)
    policy = "adaptive" if seed % 2 else rng.choice(sorted(POLICIES))
    limits = Limits(
        request_timeout_seconds=1e9,
        drain_timeout_seconds=30.0,
        # Without any minimum, policies that know no turns freeze models before anything gets done.
        min_active_seconds=rng.choice((0.0, 5.0)) if policy == "adaptive" else 5.0,
        queue_limit_requests=100_000,
    )
    fates = Chance(rng, failures=rng.choice((0.0, 0.05, 0.15)))
    fleet = (one_gpu, many_gpus)[seed // 2 % 2](rng)
    driver = CoreDriver(
        fleet.specs,
        POLICIES[policy](),
        limits,
        fleet.capacity,
        fleet.groups,
        fates=fates,
        check_bound=True,
        check_every=max(1, len(fleet.specs) // 5),
        mixed_requests=True,
    )
    # Of a large fleet each model is asked for less often, so that a run has about as many requests.
    rarely = max(1.0, len(driver.specs) / 5)
    for spec in driver.specs:
        _arrivals(driver, rng, spec.name, rng.choice((1.0, 5.0, 30.0)) * rarely)
    for _ in range(rng.randrange(6)):
        _exit_at(driver, rng.uniform(0, SECONDS), rng.choice(driver.specs).name)
    for _ in range(rng.randrange(20)):
        driver.at(rng.uniform(0, SECONDS), lambda: _leave(driver))
    if seed % 3 == 0:
        for _ in range(rng.randrange(1, 5)):
            driver.at(rng.uniform(0, SECONDS), lambda: driver.lease() and None)
    driver.run_until(SECONDS)
    places = (Place.WAITING, Place.IN_FLIGHT, Place.FROZEN)
    driver.run_while(lambda: any(driver.in_place(place) for place in places), SECONDS * 100)
    assert all(request.place is Place.ENDED for request in driver.requests.values())
    return driver


def _arrivals(driver: CoreDriver, rng: random.Random, name: str, pause: float) -> None:
    at = 0.0
    while (at := at + rng.expovariate(1 / pause)) < SECONDS:
        _arrive_at(driver, at, name, rng.choice(tuple(Priority)))


def _arrive_at(driver: CoreDriver, at: float, name: str, priority: Priority) -> None:
    driver.at(at, lambda: driver.arrive(name, priority=priority) and None)


def _exit_at(driver: CoreDriver, at: float, name: str) -> None:
    driver.at(at, lambda: driver.exit(name))


def _leave(driver: CoreDriver) -> None:
    for request in driver.in_place(Place.WAITING)[:1]:
        driver.leave(request)


@pytest.mark.timeout(3600 if SEEDS > 1000 else 300)
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, PARTS))])
def test_nobody_starves(part: int):
    switches = freezes = leases = 0
    for seed in range(part, SEEDS, PARTS):
        try:
            driver = one_simulation(seed)
        except AssertionError as error:
            command = f"from tests.simulation.test_nobody_starves import one_simulation; one_simulation({seed})"
            raise AssertionError(f'repeat with: python -c "{command}"') from error
        switches, freezes = switches + len(driver.switches), freezes + driver.freezes
        leases += driver.leases_asked
    assert switches > 0
    assert leases > 0
    assert freezes > 0
