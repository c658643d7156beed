"""Switches are put together from the models' histories."""

from llmux.core.eviction import STOP, Eviction
from llmux.core.model import Transition
from llmux.core.states import Asleep, Cold, Draining, Evicting, Serving, State, Waking
from llmux.simulation.demo.switches import StoryReader, SwitchLog

OFFLOAD = Eviction.parse("offload+keep_running")


def transition(at: float, before: State, after: State) -> Transition:
    return Transition(at, "Event", before, after)


def test_a_first_start_has_no_previous_model() -> None:
    log = SwitchLog()
    log.add(
        [
            ("a", transition(1.0, Cold(), Waking(1.0, None))),
            ("a", transition(3.0, Waking(1.0, None), Serving(3.0))),
        ]
    )
    [switch] = log.switches
    assert (switch.previous, switch.model, switch.from_cold, switch.ended_at) == ("", "a", True, 3.0)
    assert (switch.drain_seconds, switch.evict_seconds, switch.wake_seconds) == (0.0, 0.0, 2.0)


def test_a_switch_is_drain_and_evict_of_the_one_and_wake_of_the_other() -> None:
    draining = Draining(10.0, 3.0, 130.0, OFFLOAD)
    log = SwitchLog()
    log.add(
        [
            ("a", transition(10.0, Serving(3.0), draining)),
            ("a", transition(11.0, draining, Evicting(11.0, OFFLOAD))),
            ("a", transition(11.5, Evicting(11.0, OFFLOAD), Asleep(OFFLOAD))),
            ("b", transition(11.5, Asleep(OFFLOAD), Waking(11.5, OFFLOAD))),
            ("b", transition(12.25, Waking(11.5, OFFLOAD), Serving(12.25))),
        ]
    )
    [switch] = log.switches
    assert (switch.previous, switch.model, switch.from_cold) == ("a", "b", False)
    assert (switch.drain_seconds, switch.evict_seconds, switch.wake_seconds) == (1.0, 0.5, 0.75)
    assert switch.total_seconds == 2.25


def test_a_sleeper_that_is_stopped_did_not_leave_the_gpu() -> None:
    log = SwitchLog()
    log.add(
        [
            ("a", transition(1.0, Asleep(OFFLOAD), Evicting(1.0, STOP, asleep=OFFLOAD))),
            ("a", transition(2.0, Evicting(1.0, STOP, asleep=OFFLOAD), Cold())),
            ("b", transition(2.0, Cold(), Waking(2.0, None))),
            ("b", transition(3.0, Waking(2.0, None), Serving(3.0))),
        ]
    )
    assert [switch.previous for switch in log.switches] == [""]


def test_a_drain_that_was_called_off_is_no_switch() -> None:
    draining = Draining(10.0, 3.0, 130.0, OFFLOAD)
    log = SwitchLog()
    log.add([("a", transition(10.0, Serving(3.0), draining)), ("a", transition(11.0, draining, Serving(3.0)))])
    assert log.switches == []


def test_a_reader_gives_each_chapter_once_and_all_in_order() -> None:
    first, second, third = (transition(at, Cold(), Waking(at, None)) for at in (1.0, 2.0, 3.0))
    reader = StoryReader()
    assert reader.read({"a": [], "b": []}) == []
    assert reader.read({"a": [second], "b": [first]}) == [("b", first), ("a", second)]
    assert reader.read({"a": [second, third], "b": [first]}) == [("a", third)]
    assert reader.read({"a": [third], "b": [first]}) == []
