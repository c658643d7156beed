"""Requests that are suspended with their engine: what leaves, what comes back, and what is lost with an engine."""

from llmux.core.actions import Admit, Evict, Freeze, Thaw
from llmux.core.events import EvictDone, EvictionChanged, InstanceExited, ModeChanged, SleepRequested, SwitchRequested
from llmux.core.eviction import STOP, Drain
from llmux.core.identifiers import InstanceId
from llmux.core.settings import Limits, ModelSpec
from llmux.core.states import Asleep, Cold, Draining, Evicting, Serving
from llmux.errors import EngineDied, FailureReason, QueueTimeout
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import CHECKPOINT, DISCARD, OFFLOAD
from tests.support.core_truth import Place, Request
from tests.support.playbook import performed, play, serving

FREEZING = ModelSpec("a", OFFLOAD, drain=Drain.FREEZE)


def frozen_under(
    other: ModelSpec, spec: ModelSpec = FREEZING, limits: Limits | None = None
) -> tuple[CoreDriver, Request]:
    """``spec`` has left the GPU for ``other`` with one request frozen in it."""
    driver = play(spec, other, limits=limits or Limits())
    serving(driver, spec.name)
    request = driver.arrive(spec.name)
    driver.run_until(6.0)
    driver.arrive(other.name)
    driver.finish_evict(spec.name)
    driver.finish_wake(other.name)
    assert request.place is Place.FROZEN
    return driver, request


def test_a_switch_does_not_wait_for_requests_that_can_be_frozen():
    driver = play(FREEZING, ModelSpec("b", STOP))
    serving(driver, "a")
    request = driver.arrive("a")
    driver.run_until(6.0)
    driver.arrive("b")
    instance = InstanceId("a", 1)
    actions = [action for action in driver.log if isinstance(action, Freeze | Evict)]
    assert actions == [Freeze(request.record), Evict(instance, OFFLOAD, freeze=True)]
    assert isinstance(driver.scheduler.state("a"), Evicting)


def test_frozen_requests_are_demand_and_resume_before_the_queue():
    driver, request = frozen_under(ModelSpec("b", STOP))
    queued = driver.arrive("a")
    driver.complete(driver.in_place(Place.IN_FLIGHT)[0])
    driver.run_until(20.0)
    driver.finish_evict("b")
    actions = driver.finish_wake("a")
    assert actions.index(Thaw(request.record)) < actions.index(Admit(queued.record, InstanceId("a", 1)))
    assert request.place is queued.place is Place.IN_FLIGHT


def test_a_model_stays_as_long_as_its_wake_took_so_that_frozen_requests_progress():
    driver, request = frozen_under(ModelSpec("b", STOP), limits=Limits(min_active_seconds=2.0))
    driver.complete(driver.in_place(Place.IN_FLIGHT)[0])
    driver.run_until(20.0)
    driver.finish_evict("b")
    driver.run_until(28.0)
    driver.finish_wake("a")
    driver.arrive("b")
    began_at, took = 28.0, 28.0 - 20.0
    driver.run_until(began_at + took - 0.1)
    assert request.place is Place.IN_FLIGHT
    driver.run_until(began_at + took)
    assert request.place is Place.FROZEN


def test_it_is_known_how_long_an_answer_has_paused_since_its_first_token():
    driver = play(FREEZING, ModelSpec("b", STOP))
    serving(driver, "a")
    begun, unread = driver.arrive("a", streams=True), driver.arrive("a", streams=True)
    driver.run_until(5.0)
    driver.answer(begun)
    assert begun.record.ttft_seconds == 5.0 - begun.record.arrived_at
    driver.run_until(6.0)
    driver.arrive("b")
    driver.finish_evict("a")
    driver.finish_wake("b")
    driver.complete(driver.in_place(Place.IN_FLIGHT)[0])
    driver.run_until(20.0)
    driver.finish_evict("b")
    driver.run_until(21.0)
    driver.finish_wake("a")
    assert begun.place is unread.place is Place.IN_FLIGHT
    assert (begun.record.paused_seconds, unread.record.paused_seconds) == (21.0 - 6.0, 0.0)
    assert unread.record.ttft_seconds is None


def test_frozen_requests_alone_bring_their_model_back():
    driver, request = frozen_under(ModelSpec("b", STOP))
    driver.complete(driver.in_place(Place.IN_FLIGHT)[0])
    driver.run_until(20.0)
    assert performed(driver)[-1] == "evict b retain+stop"
    driver.finish_evict("b")
    driver.finish_wake("a")
    assert request.place is Place.IN_FLIGHT


def test_a_client_that_leaves_while_frozen_is_no_demand():
    driver, request = frozen_under(ModelSpec("b", STOP))
    driver.leave(request)
    driver.complete(driver.in_place(Place.IN_FLIGHT)[0])
    driver.run_until(100.0)
    assert driver.scheduler.active_model() == "b"


def test_an_answer_that_ends_on_the_way_out_is_complete():
    driver = play(FREEZING, ModelSpec("b", STOP))
    serving(driver, "a")
    request = driver.arrive("a")
    driver.run_until(6.0)
    driver.arrive("b")
    driver.complete(request)
    assert request.place is Place.ENDED and request.error is None
    assert not driver.scheduler.model("a").frozen


def test_an_engine_that_could_not_freeze_is_drained():
    driver = play(ModelSpec("a", STOP, drain=Drain.FREEZE), ModelSpec("b", STOP))
    serving(driver, "a")
    driver.arrive("a")
    driver.run_until(6.0)
    driver.arrive("b")
    assert isinstance(driver.scheduler.state("a"), Draining)


def test_the_operator_s_sleep_drains_because_a_frozen_request_would_wake_the_model_again():
    driver = play(FREEZING, ModelSpec("b", STOP))
    serving(driver, "a")
    driver.arrive("a")
    driver.run_until(6.0)
    driver.command(SleepRequested, "a")
    assert isinstance(driver.scheduler.state("a"), Draining)


def test_a_pin_elsewhere_drains_because_it_would_keep_requests_frozen():
    driver = play(FREEZING, ModelSpec("b", STOP))
    serving(driver, "a")
    driver.arrive("a")
    driver.run_until(6.0)
    driver.command(SwitchRequested, "b", pin=True)
    assert isinstance(driver.scheduler.state("a"), Draining)


def test_frozen_for_too_long_is_a_time_out():
    driver, request = frozen_under(ModelSpec("b", STOP), limits=Limits(request_timeout_seconds=60.0))
    driver.send(ModeChanged(manual=True))
    driver.run_until(70.0)
    assert isinstance(request.error, QueueTimeout)
    assert not driver.scheduler.model("a").frozen


def test_a_sleep_that_failed_loses_what_was_to_be_frozen():
    driver = play(FREEZING, ModelSpec("b", STOP))
    serving(driver, "a")
    request = driver.arrive("a")
    driver.run_until(6.0)
    driver.arrive("b")
    driver.finish_evict("a", EvictDone(InstanceId("a", 1), Cold()))
    assert request.place is Place.WAITING or isinstance(request.error, EngineDied)
    assert not driver.scheduler.model("a").frozen


def test_an_engine_that_dies_asleep_loses_what_is_frozen_in_it():
    driver, request = frozen_under(ModelSpec("b", STOP))
    driver.exit("a", "killed by SIGKILL")
    assert request.place is Place.WAITING or isinstance(request.error, EngineDied)
    assert isinstance(driver.scheduler.state("a"), Evicting)


def test_a_failed_restore_is_followed_by_a_cold_start_at_once():
    driver, request = frozen_under(ModelSpec("b", STOP), ModelSpec("a", CHECKPOINT, drain=Drain.FREEZE))
    driver.complete(driver.in_place(Place.IN_FLIGHT)[0])
    driver.run_until(20.0)
    driver.finish_evict("b")
    driver.arrive("a")
    driver.finish_wake("a", "the image is damaged")
    assert request.place is not Place.FROZEN
    assert performed(driver)[-1] == "wake a#2"


def test_sleepers_with_frozen_requests_are_stopped_last():
    driver = play(
        ModelSpec("a", OFFLOAD, drain=Drain.FREEZE), ModelSpec("b", DISCARD), ModelSpec("c", STOP), limits=Limits()
    )
    serving(driver, "a")
    driver.arrive("a")
    driver.run_until(6.0)
    driver.arrive("b")
    driver.finish_evict("a")
    driver.finish_wake("b")
    driver.command(SwitchRequested, "c")
    driver.complete(driver.in_place(Place.IN_FLIGHT)[0])
    driver.run_until(30.0)
    driver.finish_evict("b")
    driver.finish_wake("c", "CUDA out of memory", out_of_memory=True)
    assert performed(driver)[-1] == "evict b retain+stop"


def test_an_eviction_that_changes_the_output_is_not_used_again():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b", STOP))
    serving(driver, "a")
    driver.run_until(6.0)
    driver.arrive("b")
    driver.finish_evict("a")
    driver.finish_wake("b")
    waiting = driver.arrive("a")
    driver.complete(driver.in_place(Place.IN_FLIGHT)[0])
    driver.run_until(30.0)
    driver.finish_evict("b")
    driver.finish_wake("a", "it answers differently", is_mismatch=True)
    assert performed(driver)[-1] == "wake a#2", "the cold start is not put off"
    driver.finish_wake("a")
    assert waiting.place is Place.IN_FLIGHT
    assert driver.scheduler.model("a").eviction == STOP
    driver.send(EvictionChanged("a", OFFLOAD))
    assert driver.scheduler.model("a").eviction == OFFLOAD, "the operator insists"


def test_an_eviction_that_fell_back_and_spoilt_the_model_is_not_tried_again():
    driver = play(ModelSpec("a", CHECKPOINT), ModelSpec("b", STOP))
    serving(driver, "a")
    driver.run_until(6.0)
    driver.arrive("b")
    driver.finish_evict("a", EvictDone(InstanceId("a", 1), Asleep(OFFLOAD)))
    driver.finish_wake("b")
    driver.arrive("a")
    driver.complete(driver.in_place(Place.IN_FLIGHT)[0])
    driver.run_until(30.0)
    driver.finish_evict("b")
    driver.finish_wake("a", "it answers differently", is_mismatch=True)
    assert driver.scheduler.model("a").distrusted_evictions == {CHECKPOINT, OFFLOAD}
    assert driver.scheduler.model("a").eviction == STOP


def test_a_draining_model_is_left_alone_by_an_exit_of_an_older_engine():
    driver, _ = frozen_under(ModelSpec("b", STOP))
    driver.send(InstanceExited(InstanceId("a", 0), FailureReason("late")))
    assert isinstance(driver.scheduler.state("a"), Asleep)
    assert isinstance(driver.scheduler.state("b"), Serving)
