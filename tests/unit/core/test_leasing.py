"""GPU leases, scenario by scenario: another program gets GPU memory as a model does, and keeps it until it ends."""

import pytest

from llmux.core.events import ModeChanged, SwitchRequested
from llmux.core.gpu_lease import lease_placements
from llmux.core.groups import Group
from llmux.core.identifiers import ALL_OF_IT, GpuId
from llmux.core.settings import Limits, ModelSpec, Placement
from llmux.core.states import Cold, Serving
from llmux.errors import EngineUnavailable, ModelNotAllowed, QueueFull, QueueTimeout, ShuttingDown
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import OFFLOAD
from tests.support.core_truth import TrackedRequest, evicted
from tests.support.playbook import LIMITS, performed, play, serving

GPUS = tuple(GpuId("local", str(number)) for number in range(3))
LEASE = "GPU lease"


def two(**more: object) -> CoreDriver:
    return play(ModelSpec("a", OFFLOAD), ModelSpec("b", OFFLOAD), **more)  # type: ignore[arg-type]


def held(driver: CoreDriver, memory_mib: int | None = None, count: int = 1) -> TrackedRequest:
    """A lease that has been granted, on GPUs where nothing is in its way."""
    lease = driver.lease(memory_mib, count)
    driver.finish_wake(lease.model)
    assert lease.admitted_at is not None
    return lease


def test_a_lease_waits_for_the_drain_and_gives_the_gpu_back_when_it_ends():
    driver = two()
    serving(driver, "a")
    answering = driver.arrive("a")
    driver.run_until(5.0)
    lease = driver.lease()
    waiting = driver.arrive("a")
    assert not any(text.startswith("evict") for text in performed(driver)), "what is in flight ends first"
    driver.complete(answering)
    driver.finish_evict("a")
    assert lease.admitted_at is None
    driver.finish_wake(lease.model)
    assert lease.admitted_at is not None
    driver.run_until(1000.0)
    assert waiting.error is not None, "requests wait for the end of a lease as long as for anything else"
    waiting = driver.arrive("a")
    driver.leave(lease)
    driver.finish_evict(lease.model)
    assert driver.scheduler.gpu_leases == []
    driver.finish_wake("a")
    assert waiting.admitted_at is not None


def test_a_lease_goes_before_what_is_not_overdue_and_behind_what_is():
    driver = two()
    serving(driver, "a")
    busy = driver.arrive("a")
    driver.arrive("b")
    driver.run_until(1.0)
    early = driver.lease()
    driver.run_until(5.0)
    assert driver.scheduler.switching() == ("a", early.model)
    driver.complete(busy)
    driver.finish_evict("a")
    driver.finish_wake(early.model)
    driver.run_until(16.0)
    late = driver.lease()
    driver.leave(early)
    driver.finish_evict(early.model)
    assert driver.scheduler.switching() == ("", "b"), "b has been overdue since 15 s, the new lease only since 16 s"
    assert late.admitted_at is None


def test_a_held_lease_is_no_victim_and_models_that_fit_beside_it_are_served():
    sizes = {"small": 300, "large": 900}
    specs = [ModelSpec(name, placements=(Placement({GPUS[0]: mib}),)) for name, mib in sizes.items()]
    driver = play(*specs, capacity={GPUS[0]: 1000})
    lease = held(driver, 600)
    driver.arrive("large")
    driver.run_until(100.0)
    small = driver.arrive("small")
    driver.finish_wake("small")
    assert small.admitted_at is not None, "an overdue model that waits for the lease keeps no memory free meanwhile"
    assert lease.admitted_at is not None and not lease.error
    assert isinstance(driver.scheduler.state(lease.model), Serving)


def test_a_lease_takes_the_gpus_on_which_least_has_to_leave():
    specs = [ModelSpec(name, placements=(Placement({gpu: 900}),)) for name, gpu in zip("ab", GPUS, strict=False)]
    driver = play(*specs, capacity=dict.fromkeys(GPUS, 1000))
    serving(driver, "a")
    serving(driver, "b")
    lease = held(driver)
    assert list(driver.scheduler.model(lease.model).held) == [GPUS[2]]


@pytest.mark.parametrize(
    ("capacity", "memory_mib", "count", "found"),
    [
        (ALL_OF_IT, 20_000, 1, [ALL_OF_IT]),
        ({GPUS[0]: 10, GPUS[1]: 20}, None, 1, [{GPUS[0]: 10}, {GPUS[1]: 20}]),
        ({GPUS[0]: 10, GPUS[1]: 20}, 15, 1, [{GPUS[1]: 15}]),
        ({GPUS[0]: 10, GPUS[1]: 20}, 5, 2, [{GPUS[0]: 5, GPUS[1]: 5}]),
        ({GPUS[0]: 10, GPUS[1]: 20}, 15, 2, []),
        ({GPUS[0]: 10}, 11, 1, []),
    ],
)
def test_where_a_lease_can_be(capacity, memory_mib, count, found):
    assert [place.awake for place in lease_placements(capacity, memory_mib, count)] == found


def test_a_lease_gives_up_when_its_time_to_wait_is_over():
    driver = two()
    serving(driver, "a")
    driver.arrive("a")
    lease = driver.lease(timeout_seconds=7.0)
    driver.run_until(6.9)
    assert lease.error is None
    driver.run_until(7.0)
    assert isinstance(lease.error, QueueTimeout)
    assert driver.scheduler.gpu_leases == []
    assert isinstance(driver.scheduler.state("a"), Serving), "the switch was called off"


def test_a_lease_may_wait_longer_than_a_request():
    driver = two(limits=Limits(request_timeout_seconds=10.0))
    first = held(driver)
    second = driver.lease()
    driver.run_until(500.0)
    assert second.error is None
    driver.leave(first)
    driver.finish_evict(first.model)
    driver.finish_wake(second.model)
    assert second.admitted_at is not None


def test_memory_that_is_not_free_refuses_the_lease_with_the_reason():
    driver = two()
    lease = driver.lease()
    driver.finish_wake(lease.model, "4000 MiB are held by others")
    assert isinstance(lease.error, EngineUnavailable)
    assert str(lease.error.reason) == "4000 MiB are held by others"
    assert driver.scheduler.gpu_leases == []


def test_there_are_not_more_leases_than_allowed():
    driver = two(limits=Limits(gpu_leases_max=2))
    held(driver)
    driver.lease()
    third = driver.lease()
    assert isinstance(third.error, QueueFull)
    assert len(driver.scheduler.gpu_leases) == 2


def test_in_manual_mode_a_lease_is_refused_and_one_that_is_held_stays():
    driver = two()
    first = held(driver)
    waiting = driver.lease()
    driver.send(ModeChanged(manual=True))
    assert isinstance(waiting.error, ModelNotAllowed)
    assert isinstance(driver.lease().error, ModelNotAllowed)
    assert first.error is None


def test_a_command_for_a_model_that_a_lease_keeps_out_fails_with_the_reason():
    driver = two()
    lease = held(driver)
    number = driver.command(SwitchRequested, "a")
    assert driver.command_errors == {
        number: f"{lease.model} holds the GPU memory that 'a' needs; end it, or wait for its end"
    }


def test_a_program_that_does_not_end_keeps_its_memory_and_is_tried_again():
    driver = two()
    lease = held(driver)
    waiting = driver.arrive("a")
    driver.leave(lease)
    action = driver.engines[lease.model].pending
    driver.finish_evict(lease.model, evicted(action, error="a process is still there"))
    assert len(driver.scheduler.gpu_leases) == 1, "its memory is not free"
    driver.run_until(driver.now + 2.0)
    driver.finish_evict(lease.model)
    driver.finish_wake("a")
    assert waiting.admitted_at is not None
    assert driver.scheduler.gpu_leases == []


def test_shutdown_takes_the_lease_from_the_program_and_waits_for_nothing():
    driver = play(ModelSpec("a"), limits=LIMITS)
    lease = held(driver)
    driver.shut_down(100.0)
    assert isinstance(lease.error, ShuttingDown)
    driver.finish_evict(lease.model)
    assert driver.stopped
    assert isinstance(driver.scheduler.state("a"), Cold)


def test_models_and_commands_know_nothing_of_leases():
    driver = two()
    lease = held(driver)
    assert [model.name for model in driver.scheduler.models] == ["a", "b"]
    assert driver.scheduler.active_model() is None
    assert lease.model.startswith(LEASE)


def test_who_fits_beside_a_lease_or_a_persistent_group_but_not_beside_both_keeps_nobody_else_waiting():
    models = {"stays": 4, "large": 5, "small": 1}
    driver = play(
        *(ModelSpec(name, OFFLOAD, placements=(Placement({GPUS[0]: size}),)) for name, size in models.items()),
        capacity={GPUS[0]: 10},
        groups=(Group(("stays",), persistent=True),),
    )
    serving(driver, "stays")
    lease = held(driver, 4)
    large = driver.arrive("large")
    driver.run_until(LIMITS.max_wait_seconds + 1.0)
    driver.arrive("small")
    assert performed(driver)[-1] == "wake small#1", "large is overdue"
    driver.finish_wake("small")
    assert (large.admitted_at, large.error) == (None, None)
    driver.leave(lease)
    driver.finish_evict(lease.model)
    assert performed(driver)[-1] == "wake large#1"
