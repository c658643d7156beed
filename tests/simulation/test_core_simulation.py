"""Seeded runs of the production scheduler on virtual time; a failing run names the one line that repeats it."""

import random
from dataclasses import dataclass, replace
from types import NoneType

import pytest

from llmux.core.actions import Evict, Wake
from llmux.core.events import EvictDone, MemoryPressure
from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import ALL_OF_IT
from llmux.core.settings import Limits, ModelSpec, Placement
from llmux.errors import EngineDied, EngineUnavailable, Evicted
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import DISCARD, GPUS, OFFLOAD, POLICIES, SCENARIOS, Scenario, names, random_walk
from tests.support.core_truth import Fates, Place, TrackedRequest, evicted


@dataclass
class Chance(Fates):
    """Durations and failures drawn from a seed; some requests last longer than any drain."""

    rng: random.Random
    failures: float = 0.0
    long_requests: float = 0.05
    longest_switch_seconds: float = 6.0
    longest_lease_seconds: float = 60.0

    def wake(self, action: Wake) -> tuple[float, str | None]:
        error = "it broke" if self.rng.random() < self.failures else None
        return self.rng.uniform(0.5, self.longest_switch_seconds / 2), error

    def evict(self, action: Evict) -> tuple[float, EvictDone]:
        error = "still there" if self.rng.random() < self.failures else None
        return self.rng.uniform(0.1, self.longest_switch_seconds / 2), evicted(action, error=error)

    def request(self, request: TrackedRequest) -> tuple[float, bool]:
        if request.is_gpu_lease:
            return self.rng.uniform(0.0, self.longest_lease_seconds), True
        if self.rng.random() < self.long_requests:
            return self.rng.uniform(20.0, 200.0), True
        return self.rng.expovariate(1.0), self.rng.random() < 0.95


LIMITS = Limits(
    request_timeout_seconds=1e9, drain_timeout_seconds=30.0, min_active_seconds=4.0, queue_limit_requests=100_000
)


def _scenario(count: int, rng: random.Random) -> Scenario:
    evictions: list[Eviction] = [OFFLOAD, DISCARD, STOP]
    specs = [ModelSpec(name, rng.choice(evictions), max_in_flight=rng.choice((1, 4, 256))) for name in names(count)]
    return Scenario(f"{count} models", tuple(specs), ALL_OF_IT, LIMITS)


def _driver(scenario: Scenario, policy: str, fates: Fates, *, check_bound: bool) -> CoreDriver:
    limits = replace(scenario.limits, request_timeout_seconds=1e9)
    return CoreDriver(
        scenario.specs,
        POLICIES[policy](),
        limits,
        scenario.capacity,
        scenario.groups,
        fates=fates,
        check_bound=check_bound,
        mixed_requests=True,
    )


def _poisson(driver: CoreDriver, rng: random.Random, until: float) -> None:
    for spec in driver.specs:
        at, mean = 0.0, rng.choice((0.5, 3.0, 20.0, 60.0))
        while (at := at + rng.expovariate(1 / mean)) < until:
            driver.at(at, lambda name=spec.name: driver.arrive(name) and None)  # type: ignore[misc]


def _bursts(driver: CoreDriver, rng: random.Random, until: float) -> None:
    for _ in range(40):
        name, at = rng.choice(list(driver.engines)), rng.uniform(0, until)
        for _ in range(rng.randrange(1, 12)):
            driver.at(at, lambda name=name: driver.arrive(name) and None)  # type: ignore[misc]


def _run_out(driver: CoreDriver, until: float) -> None:
    driver.run_until(until)
    places = (Place.WAITING, Place.IN_FLIGHT, Place.FROZEN)
    driver.run_while(lambda: any(driver.in_place(place) for place in places), until * 50)
    assert all(request.place is Place.ENDED for request in driver.requests.values())


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize(
    ("count", "seed"),
    [
        pytest.param(count, seed, marks=() if (count, seed) in ((2, 1), (3, 0)) else pytest.mark.slow)
        for count in range(2, 7)
        for seed in range(2)
    ],
)
def test_a_switch_begins_within_the_bound(policy: str, count: int, seed: int):
    rng = random.Random(f"{policy} {count} {seed}")
    driver = _driver(_scenario(count, rng), policy, Chance(rng), check_bound=True)
    (_poisson, _bursts)[seed % 2](driver, rng, 300.0)
    _run_out(driver, 300.0)
    assert driver.longest_wait > 0
    assert all(request.error is None or "had to leave" in str(request.error) for request in driver.requests.values())


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("scenario", SCENARIOS[3:], ids=lambda scenario: scenario.name)
def test_a_switch_begins_within_the_bound_where_sizes_are_known(policy: str, scenario: Scenario):
    rng = random.Random(f"{policy} {scenario.name}")
    driver = _driver(scenario, policy, Chance(rng), check_bound=True)
    _poisson(driver, rng, 150.0)
    _bursts(driver, rng, 150.0)
    for _ in range(3):
        count = rng.randrange(1, len(scenario.capacity) + 1)
        driver.at(rng.uniform(0, 150.0), lambda count=count: driver.lease(5, count) and None)  # type: ignore[misc]
    for _ in range(6):
        gpu = rng.choice(list(scenario.capacity))
        missing = {gpu: rng.randrange(1, scenario.capacity[gpu] + 1)}
        driver.at(rng.uniform(0, 150.0), lambda missing=missing: driver.send(MemoryPressure(missing)) and None)  # type: ignore[misc]
    _run_out(driver, 150.0)
    assert driver.switches


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_steadily_busy_model_does_not_starve_a_cold_one(policy: str):
    """Evicting only when idle would never serve the cold model: the busy one is never idle."""
    driver = _driver(_scenario(2, random.Random(1)), policy, Fates(), check_bound=True)
    driver.fates.longest_switch_seconds = 2.0
    busy = replace(driver.specs[0], max_in_flight=4).name
    for tenth in range(3000):
        driver.at(tenth / 10, lambda: driver.arrive(busy) and None)
    cold: list[TrackedRequest] = []
    for at in range(50, 300, 60):
        driver.at(float(at), lambda: cold.append(driver.arrive("b")))
    driver.run_until(400.0)
    assert len(cold) == 5
    for request in cold:
        assert request.admitted_at is not None
        assert request.admitted_at - request.arrived_at <= driver.scheduler.wait_bound(2.0) + 2.0


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_several_gpus_do_not_starve_a_model_that_needs_them_all(policy: str):
    """Switches on the one GPU and on the other overlap for ever; a model that needs both must get its turn."""
    both = dict.fromkeys(GPUS[:2], 10)
    specs = (
        ModelSpec("a", STOP, placements=(Placement(both),)),
        *(ModelSpec(name, STOP, placements=(Placement({GPUS[index // 2]: 10}),)) for index, name in enumerate("bcde")),
    )
    limits = replace(LIMITS, min_active_seconds=0.0, max_wait_seconds=5.0)
    fates = Fates()
    fates.longest_switch_seconds = 6.0
    fates.wake = lambda action: (2.0 if action.instance.model in "bc" else 2.7, None)  # type: ignore[method-assign]
    driver = _driver(Scenario("overlap", specs, both, limits), policy, fates, check_bound=True)
    for tenth in range(1200):
        driver.at(tenth / 10, lambda name="bcde"[tenth % 4]: driver.arrive(name) and None)  # type: ignore[misc]
    wide: list[TrackedRequest] = []
    driver.at(20.0, lambda: wide.append(driver.arrive("a")))
    driver.run_until(120.0)
    assert wide[0].admitted_at is not None


def test_gpu_leases_on_one_gpu_after_the_other_do_not_starve_a_model_that_needs_them_all():
    """A new lease begins on the one GPU before that on the other ends; from when the model is overdue, none may."""
    both = dict.fromkeys(GPUS[:2], 10)
    specs = (ModelSpec("a", STOP, placements=(Placement(both),)), _on_one_gpu("b", 0), _on_one_gpu("c", 1))
    fates = Fates()
    fates.longest_lease_seconds = 30.0
    fates.request = lambda request: (30.0 if request.is_gpu_lease else 1.0, True)  # type: ignore[method-assign]
    limits = replace(LIMITS, gpu_leases_max=3)
    driver = _driver(Scenario("staggered", specs, both, limits), "fifo", fates, check_bound=True)
    for at in range(0, 900, 15):
        driver.at(float(at), lambda: driver.lease() and None)
    for at in range(900):
        driver.at(float(at), lambda name="bc"[at % 2]: driver.arrive(name) and None)  # type: ignore[misc]
    wide: list[TrackedRequest] = []
    driver.at(40.0, lambda: wide.append(driver.arrive("a")))
    driver.run_until(900.0)
    assert wide[0].admitted_at is not None
    served = [one for one in driver.requests.values() if one.model in "bc" and one.admitted_at is not None]
    assert len(served) > 100, "the models that need one GPU are served while the other is leased"


def _on_one_gpu(name: str, number: int) -> ModelSpec:
    return ModelSpec(name, STOP, placements=(Placement({GPUS[number]: 10}),))


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_every_request_ends_though_engines_fail(policy: str, seed: int):
    rng = random.Random(f"{policy} {seed}")
    driver = _driver(_scenario(4, rng), policy, Chance(rng, failures=0.15), check_bound=False)
    _poisson(driver, rng, 200.0)
    for _ in range(15):
        _exit_at(driver, rng.uniform(0, 200.0), rng.choice(names(4)))
    for _ in range(60):
        _leave_at(driver, rng.uniform(0, 200.0))
    _run_out(driver, 200.0)
    errors = {type(request.error) for request in driver.requests.values()}
    assert errors <= {NoneType, EngineUnavailable, EngineDied, Evicted}
    assert NoneType in errors


def _exit_at(driver: CoreDriver, at: float, name: str) -> None:
    driver.at(at, lambda: driver.exit(name))


def _leave_at(driver: CoreDriver, at: float) -> None:
    def leave() -> None:
        for request in driver.in_place(Place.WAITING)[:1]:
            driver.leave(request)

    driver.at(at, leave)


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(100, 600, 100))])
def test_random_walks_over_everything(first: int):
    for seed in range(first, first + 100):
        try:
            random_walk(seed)
        except AssertionError as error:
            command = f"from tests.support.core_scenarios import random_walk; random_walk({seed})"
            raise AssertionError(f'repeat with: python -c "{command}"') from error
