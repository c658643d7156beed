"""One model's way onto the GPU and off it, scenario by scenario."""

import pytest

from llmux.core.actions import SwitchDone, Wake
from llmux.core.events import EvictDone, InstanceExited, TimerFired, WakeDone
from llmux.core.eviction import STOP, Drain
from llmux.core.identifiers import GpuId, InstanceId
from llmux.core.settings import ModelSpec, Placement
from llmux.core.states import Asleep, Cold, Evicting, Failed, Serving, Stuck, Waking
from llmux.errors import EngineDied, EngineUnavailable, FailureReason
from tests.support.core_scenarios import CHECKPOINT, OFFLOAD
from tests.support.core_truth import evicted
from tests.support.playbook import performed, play, serving


def test_a_switch_drains_evicts_wakes_and_reports_its_times():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b", STOP))
    serving(driver, "a")
    busy = driver.arrive("a")
    driver.arrive("b")
    assert performed(driver)[-1] == "admit a"
    driver.run_until(5.0)
    assert driver.scheduler.switching() == ("a", "b")
    driver.run_until(7.0)
    driver.complete(busy)
    assert performed(driver)[-1] == "evict a offload+keep_running"
    driver.run_until(8.0)
    driver.finish_evict("a")
    driver.run_until(11.0)
    driver.finish_wake("b")
    assert performed(driver)[-3:] == ["wake b#1", "SwitchDone", "admit b"]
    assert driver.switches[-1] == SwitchDone("a", "b", 5.0, 2.0, 1.0, 3.0)
    assert driver.scheduler.switching() is None
    assert driver.scheduler.active_model() == "b"


def test_a_model_asleep_is_woken_by_the_way_it_left_and_keeps_its_generation():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b", STOP))
    serving(driver, "a")
    driver.run_until(6.0)
    driver.arrive("b")
    driver.finish_evict("a")
    driver.finish_wake("b")
    driver.arrive("a")
    driver.run_until(30.0)
    driver.complete(driver.requests[next(iter(driver.scheduler.model("b").in_flight)).id])
    driver.finish_evict("b")
    assert performed(driver)[-1] == "wake a#1 from offload+keep_running"


def test_a_failed_cold_start_refuses_its_waiters_at_once_with_the_reason():
    driver = play(ModelSpec("a"))
    first, second = driver.arrive("a"), driver.arrive("a")
    driver.finish_wake("a", "no such file")
    for request in (first, second):
        assert isinstance(request.error, EngineUnavailable)
        assert request.error.reason == FailureReason("no such file")
        assert request.error.retry_after_seconds == 2.0
    late = driver.arrive("a")
    assert isinstance(late.error, EngineUnavailable)
    driver.run_until(2.0)
    driver.arrive("a")
    assert performed(driver)[-1] == "wake a#2"


def test_a_failed_wake_from_sleep_keeps_its_waiters_and_starts_cold_after_the_back_off():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b"))
    serving(driver, "a")
    driver.run_until(6.0)
    driver.leave(driver.arrive("b"))
    driver.finish_evict("a")
    waiting = driver.arrive("a")
    driver.finish_wake("a", "wake_up answered 500")
    assert waiting.error is None
    driver.run_until(driver.now + 1.9)
    assert performed(driver)[-1] == "SwitchFailed"
    driver.run_until(driver.now + 0.2)
    assert performed(driver)[-1] == "wake a#2"
    driver.finish_wake("a")
    assert waiting.admitted_at is not None


def test_the_back_off_doubles_up_to_a_minute():
    driver = play(ModelSpec("a"))
    pauses = []
    for _ in range(8):
        driver.arrive("a")
        driver.finish_wake("a", "broken")
        state = driver.scheduler.state("a")
        assert isinstance(state, Failed)
        pauses.append(state.retry_at - driver.now)
        driver.run_until(state.retry_at)
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_only_a_completed_request_resets_the_back_off():
    driver = play(ModelSpec("a"))
    driver.arrive("a")
    driver.finish_wake("a", "broken")
    driver.run_until(2.0)
    broken_off = driver.arrive("a")
    driver.finish_wake("a")
    driver.complete(broken_off, completed=False)
    assert driver.scheduler.model("a").failures == 1
    driver.exit("a")
    driver.finish_evict("a")
    state = driver.scheduler.state("a")
    assert isinstance(state, Failed)
    assert state.retry_at == 4.0
    driver.run_until(4.0)
    served = driver.arrive("a")
    driver.finish_wake("a")
    driver.complete(served)
    assert driver.scheduler.model("a").failures == 0


def test_a_crash_revokes_leases_stops_the_rest_and_restarts_at_once():
    driver = play(ModelSpec("a", OFFLOAD))
    serving(driver, "a")
    busy = driver.arrive("a")
    driver.exit("a", "exit code 9")
    assert performed(driver)[-1] == "evict a retain+stop"
    assert "revoke EngineDied" in performed(driver)
    assert isinstance(driver.scheduler.state("a"), Evicting)
    driver.finish_evict("a")
    assert performed(driver)[-1] == "wake a#2"
    driver.finish_wake("a")
    assert busy.admitted_at is not None


def test_a_second_crash_backs_off_and_the_third_attempt_is_engine_died():
    driver = play(ModelSpec("a"))
    serving(driver, "a")
    victim = driver.arrive("a")
    driver.exit("a")
    driver.finish_evict("a")
    driver.finish_wake("a")
    assert victim.attempts == 1
    driver.exit("a", "exit code 9")
    assert isinstance(victim.error, EngineDied)
    assert "exit code 9" in str(victim.error)
    driver.finish_evict("a")
    state = driver.scheduler.state("a")
    assert isinstance(state, Failed)
    assert state.refusing
    assert state.retry_at - driver.now == 2.0


def test_an_engine_that_dies_asleep_is_stopped_and_started_cold_on_demand():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b"))
    serving(driver, "a")
    driver.run_until(6.0)
    driver.leave(driver.arrive("b"))
    driver.finish_evict("a")
    driver.exit("a")
    assert performed(driver)[-1] == "evict a retain+stop"
    driver.finish_evict("a")
    assert driver.scheduler.state("a") == Cold()
    driver.arrive("a")
    assert performed(driver)[-1] == "wake a#2"


def test_exits_that_an_outcome_will_report_and_those_of_older_instances_change_nothing():
    driver = play(ModelSpec("a"))
    driver.arrive("a")
    driver.exit("a")
    assert isinstance(driver.scheduler.state("a"), Failed)
    driver.send(InstanceExited(InstanceId("a", 0), FailureReason("late")))
    assert isinstance(driver.scheduler.state("a"), Failed)


@pytest.mark.parametrize("error", [None, FailureReason("late")])
def test_outcomes_of_an_older_instance_are_ignored(error):
    driver = play(ModelSpec("a"))
    driver.arrive("a")
    driver.send(WakeDone(InstanceId("a", 0), error))
    driver.send(EvictDone(InstanceId("a", 1), Cold(), error))
    assert isinstance(driver.scheduler.state("a"), Waking)


def test_an_eviction_that_fails_keeps_the_memory_and_is_tried_again_by_stopping():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b"))
    serving(driver, "a")
    driver.run_until(6.0)
    waiting = driver.arrive("b")
    driver.finish_evict("a", EvictDone(InstanceId("a", 1), Cold(), FailureReason("still there")))
    assert isinstance(driver.scheduler.state("a"), Stuck)
    driver.run_until(8.5)
    assert performed(driver)[-1] == "evict a retain+stop"
    driver.finish_evict("a")
    driver.finish_wake("b")
    assert waiting.admitted_at is not None


def test_at_the_drains_deadline_leases_are_revoked_before_the_eviction():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b"))
    serving(driver, "a")
    driver.arrive("a")
    driver.run_until(6.0)
    driver.arrive("b")
    driver.run_until(25.9)
    assert performed(driver)[-1] == "admit a"
    driver.run_until(26.0)
    assert performed(driver)[-2:] == ["revoke Evicted", "evict a offload+keep_running"]


def test_drain_abort_revokes_at_once():
    driver = play(ModelSpec("a", OFFLOAD, drain=Drain.ABORT), ModelSpec("b"))
    serving(driver, "a")
    driver.run_until(6.0)
    driver.arrive("a")
    driver.arrive("b")
    assert performed(driver)[-2:] == ["revoke Evicted", "evict a offload+keep_running"]


def test_a_start_out_of_memory_stops_the_sleeper_used_the_longest_ago_and_tries_once_more():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b", CHECKPOINT), ModelSpec("c"))
    serving(driver, "a")
    driver.run_until(6.0)
    served = driver.arrive("b")
    driver.finish_evict("a")
    driver.finish_wake("b")
    driver.complete(served)
    driver.run_until(12.0)
    driver.arrive("c")
    driver.finish_evict("b")
    driver.finish_wake("c", "CUDA out of memory", out_of_memory=True)
    assert performed(driver)[-2:] == ["SwitchFailed", "evict a retain+stop"], "the image on disk holds no memory"
    driver.finish_evict("a")
    assert performed(driver)[-1] == "wake c#2"
    driver.finish_wake("c", "CUDA out of memory", out_of_memory=True)
    assert performed(driver)[-2:] == ["SwitchFailed", "reject EngineUnavailable"]


def test_a_model_that_left_otherwise_than_asked_and_holds_too_much_is_stopped():
    gpu = GpuId("local", "0")
    a = ModelSpec("a", STOP, placements=(Placement({gpu: 10}, {OFFLOAD: {gpu: 2}}),))
    driver = play(a, ModelSpec("b", STOP, placements=(Placement({gpu: 10}),)), capacity={gpu: 10})
    serving(driver, "a")
    driver.run_until(6.0)
    driver.arrive("b")
    action = driver.pending[0]
    assert not isinstance(action, Wake)
    driver.finish_evict("a", evicted(action, Asleep(OFFLOAD)))
    assert performed(driver)[-1] == "evict a retain+stop"
    driver.finish_evict("a")
    assert performed(driver)[-1] == "wake b#1"


def test_a_model_just_woken_does_not_leave_early_for_one_that_cannot_be_brought_off_the_gpu():
    gpu = GpuId("local", "0")
    sizes = {"a": 6, "d": 3, "b": 4}
    specs = [ModelSpec(name, OFFLOAD, placements=(Placement({gpu: size}),)) for name, size in sizes.items()]
    driver = play(*specs, capacity={gpu: 10})
    serving(driver, "a")
    driver.run_until(10.0)
    serving(driver, "d")
    driver.arrive("b")
    driver.finish_evict("a", evicted(driver.pending[0], error="still there"))  # type: ignore[arg-type]
    assert isinstance(driver.scheduler.state("a"), Stuck)
    driver.run_until(12.0)
    assert performed(driver)[-1] == "evict a retain+stop"
    driver.finish_evict("a", evicted(driver.pending[0], error="still there"))  # type: ignore[arg-type]
    driver.run_until(15.0)
    assert performed(driver)[-1] == "evict d offload+keep_running"
    driver.finish_evict("d")
    assert performed(driver)[-1] == "wake b#1"


def test_the_history_has_the_latest_transitions():
    driver = play(ModelSpec("a"))
    serving(driver, "a")
    assert [(c.event, type(c.after)) for c in driver.scheduler.history("a")] == [
        ("RequestArrived", Waking),
        ("WakeDone", Serving),
    ]
    driver.send(TimerFired())
    assert len(driver.scheduler.history("a")) == 2
    assert [model.name for model in driver.scheduler.models] == ["a"]
    assert str(driver.scheduler.model("a").instance) == "a#1"
