"""Many seeded simulations with faults: every request ends, and every wait is within ``Scheduler.wait_bound``.

``LLMUX_STARVATION_SEEDS`` runs that many seeds instead of the default number.
"""

import os
import random

import pytest

from llmux.core.eviction import STOP, Drain, Eviction
from llmux.core.identifiers import ALL_OF_IT
from llmux.core.request import Priority
from llmux.core.settings import Limits, ModelSpec
from tests.simulation.test_core_simulation import Chance
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import DISCARD, OFFLOAD, POLICIES, names
from tests.support.core_truth import Place

SEEDS = int(os.environ.get("LLMUX_STARVATION_SEEDS", "300"))
PARTS = 20
SECONDS = 150.0


def specs(rng: random.Random) -> list[ModelSpec]:
    evictions: list[Eviction] = [OFFLOAD, DISCARD, STOP]
    return [
        ModelSpec(
            name,
            rng.choice(evictions),
            max_in_flight=rng.choice((1, 4, 256)),
            drain=rng.choice((Drain.WAIT, Drain.FREEZE, Drain.FREEZE)),
            weight=rng.choice((0.2, 1.0, 1.0, 5.0)),
            max_wait_seconds=rng.choice((None, None, 3.0, 40.0)),
        )
        for name in names(rng.randrange(2, 6))
    ]


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
    driver = CoreDriver(
        specs(rng), POLICIES[policy](), limits, ALL_OF_IT, fates=fates, check_bound=True, mixed_requests=True
    )
    for spec in driver.specs:
        _arrivals(driver, rng, spec.name)
    for _ in range(rng.randrange(6)):
        _exit_at(driver, rng.uniform(0, SECONDS), rng.choice(driver.specs).name)
    for _ in range(rng.randrange(20)):
        driver.at(rng.uniform(0, SECONDS), lambda: _leave(driver))
    driver.run_until(SECONDS)
    places = (Place.WAITING, Place.IN_FLIGHT, Place.FROZEN)
    driver.run_while(lambda: any(driver.in_place(place) for place in places), SECONDS * 100)
    assert all(request.place is Place.ENDED for request in driver.requests.values())
    return driver


def _arrivals(driver: CoreDriver, rng: random.Random, name: str) -> None:
    at, pause = 0.0, rng.choice((1.0, 5.0, 30.0))
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
    switches = freezes = 0
    for seed in range(part, SEEDS, PARTS):
        try:
            driver = one_simulation(seed)
        except AssertionError as error:
            command = f"from tests.simulation.test_nobody_starves import one_simulation; one_simulation({seed})"
            raise AssertionError(f'repeat with: python -c "{command}"') from error
        switches, freezes = switches + len(driver.switches), freezes + driver.freezes
    assert switches > 0
    assert freezes > 0
