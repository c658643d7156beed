"""The entry points: the short cuts equal ``handle``, the timer is one, and configurations are checked."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmux.core.actions import Admit, SetTimer
from llmux.core.eviction import Drain
from llmux.core.identifiers import GpuId
from llmux.core.policies.fifo import Fifo
from llmux.core.policy_view import CANDIDATES_MAX
from llmux.core.scheduler import Scheduler
from llmux.core.settings import WITHOUT_GPU, Limits, ModelSpec, Placement
from llmux.core.states import Draining
from tests.support.core_scenarios import OFFLOAD, POLICIES, SCENARIOS, Walk
from tests.support.playbook import play, serving

STEPS = st.lists(
    st.tuples(
        st.sampled_from(("arrive", "arrive", "end", "end", "outcome", "time", "leave", "exit", "pin", "auto")),
        st.integers(0, 12),
    ),
    max_size=60,
)


def _take(walk: Walk, step: str, pick: int) -> None:
    match step:
        case "arrive":
            walk.arrive(pick)
        case "end":
            walk.complete(pick, completed=pick % 4 != 0)
        case "outcome":
            walk.outcome(pick, pick)
        case "time":
            walk.pass_time(pick)
        case "leave":
            walk.leave(pick)
        case "exit":
            walk.exit(pick)
        case "pin":
            walk.switch(pick, pin=True)
        case _:
            walk.mode(manual=False)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(steps=STEPS, scenario=st.sampled_from(SCENARIOS), policy=st.sampled_from(sorted(POLICIES)))
def test_the_short_cuts_equal_handle(steps, scenario, policy):
    fast = Walk(scenario, policy, short_cuts=True)
    slow = Walk(scenario, policy, short_cuts=False)
    for step, pick in steps:
        for walk in (fast, slow):
            _take(walk, step, pick)
        assert _picture(fast) == _picture(slow)


def _picture(walk: Walk) -> object:
    driver = walk.driver
    models = [
        (
            m.state,
            m.generation,
            [r.id for r in m.queue.by_arrival()],
            {r.id for r in m.in_flight},
            m.failures,
            m.idle_since,
            m.last_served_at,
        )
        for m in driver.scheduler.models
    ]
    places = {number: (request.place, request.admitted_at) for number, request in driver.requests.items()}
    return models, places, driver.pending, driver.scheduler.mode, driver.scheduler.switching()


def test_done_is_refused_while_another_model_waits_for_idleness():
    driver = play(ModelSpec("a"), ModelSpec("b"))
    serving(driver, "a")
    busy = driver.arrive("a")
    driver.arrive("b")
    assert not driver.scheduler.done(busy.record, True, driver.now)
    driver.complete(busy)


def test_done_is_taken_in_a_drain_except_for_the_last_request():
    driver = play(ModelSpec("a", drain=Drain.WAIT), ModelSpec("b"))
    serving(driver, "a")
    first, last = driver.arrive("a"), driver.arrive("a")
    driver.arrive("b")
    driver.run_until(driver.now + 6.0)
    assert isinstance(driver.scheduler.state("a"), Draining)
    assert driver.scheduler.done(first.record, True, driver.now)
    assert not driver.scheduler.done(last.record, True, driver.now)


def test_a_timer_is_announced_once_and_replaced_by_an_earlier_one():
    driver = play(ModelSpec("a"), ModelSpec("b"))
    serving(driver, "a")
    driver.log.clear()
    driver.arrive("b")
    assert [action for action in driver.log if isinstance(action, SetTimer)] == [SetTimer(5.0)]
    driver.arrive("b")
    assert len([action for action in driver.log if isinstance(action, SetTimer)]) == 1


def test_models_that_fit_together_serve_together():
    gpu = GpuId("local", "0")
    specs = [ModelSpec(name, OFFLOAD, placements=(Placement({gpu: 5}),)) for name in "ab"]
    driver = play(*specs, capacity={gpu: 10})
    for spec in specs:
        driver.arrive(spec.name)
        driver.finish_wake(spec.name)
    assert sum(isinstance(action, Admit) for action in driver.log) == 2


def test_a_model_that_needs_no_gpu_is_woken_beside_everything():
    driver = play(ModelSpec("a"), ModelSpec("b", placements=(WITHOUT_GPU,)))
    serving(driver, "a")
    driver.arrive("b")
    driver.finish_wake("b")
    assert driver.scheduler.active_model() in {"a", "b"}


def test_a_model_that_can_never_fit_is_refused():
    with pytest.raises(ValueError, match="needs 11 MiB of GPU 0, which has 10"):
        Scheduler(
            [ModelSpec("a", placements=(Placement({GpuId("local", "0"): 11}),))],
            Fifo(),
            capacity={GpuId("local", "0"): 10},
        )


def test_the_bound_grows_with_the_number_of_models():
    limits = Limits(max_wait_seconds=15.0, min_active_seconds=5.0, drain_timeout_seconds=120.0)
    for count, bound in ((1, 25.0), (2, 160.0), (4, 430.0)):
        specs = [ModelSpec(str(number)) for number in range(count)]
        assert Scheduler(specs, Fifo(), limits).wait_bound(10.0) == bound


def test_models_wait_for_their_wake_until_it_begins_the_one_on_its_way_first():
    driver = play(ModelSpec("a"), ModelSpec("b"), ModelSpec("c"))
    assert driver.scheduler.is_settled
    request = driver.arrive("a")
    assert driver.scheduler.awaiting_wake() == [], "it is being woken"
    assert driver.scheduler.is_waking
    assert not driver.scheduler.is_settled
    driver.finish_wake("a")
    assert driver.scheduler.is_settled
    driver.arrive("b")
    driver.arrive("c")
    driver.run_until(6.0)
    assert driver.scheduler.switching() == ("a", "b"), "a drains"
    assert driver.scheduler.awaiting_wake() == ["b", "c"]
    assert not driver.scheduler.is_waking
    driver.complete(request)
    driver.finish_evict("a")
    assert driver.scheduler.awaiting_wake() == ["c"]
    assert driver.scheduler.is_waking


def test_only_the_first_models_that_wait_are_named():
    driver = play(*(ModelSpec(str(number)) for number in range(CANDIDATES_MAX + 5)))
    for number in range(CANDIDATES_MAX + 5):
        driver.arrive(str(number))
    assert driver.scheduler.awaiting_wake() == [str(number) for number in range(1, CANDIDATES_MAX + 1)]
