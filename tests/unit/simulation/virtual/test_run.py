import math
from collections.abc import Sequence

import pytest

from llmux.core.eviction import STOP, Drain, Eviction
from llmux.core.policies.fifo import Fifo
from llmux.core.scheduler import Scheduler
from llmux.core.settings import Limits, ModelSpec
from llmux.simulation.virtual import run as virtual_run
from llmux.simulation.virtual.costs import MeasuredSwitches, SwitchCost
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.place import question_seconds
from llmux.simulation.virtual.run import Outcome, VirtualRun
from llmux.simulation.virtual.timeline import Phase
from llmux.simulation.workload.call import TracedCall
from tests.support.core_scenarios import NEVER_LEAVES

ASLEEP = Eviction.parse("offload+keep_running")
SPEED = EngineSpeed(prefill=1000.0, decode_alone=40.0, decode_full=40.0)
QUESTION_SECONDS = question_seconds(SPEED)
COST = SwitchCost(evict=0.5, wake=1.5, cold=10.0)


def run(
    calls: Sequence[TracedCall],
    limits: Limits | None = None,
    eviction: Eviction = ASLEEP,
    drain: Drain = Drain.WAIT,
    max_in_flight: int = 8,
    *,
    warm: bool = True,
    measured: MeasuredSwitches | None = None,
) -> Outcome:
    names = dict.fromkeys(call.model for call in calls)
    specs = [ModelSpec(name, eviction, max_in_flight, drain) for name in names]
    scheduler = Scheduler(specs, Fifo(), limits or Limits(min_active_seconds=0.0))
    return VirtualRun(scheduler, calls, dict.fromkeys(names, COST), SPEED, warm=warm, measured=measured).run()


def test_a_request_waits_for_the_wake_then_reads_then_writes() -> None:
    outcome = run([TracedCall(1.0, "a", 500, 41)])
    assert list(outcome.admitted_at) == [2.5]
    assert list(outcome.first_token_at) == [3.0]
    assert list(outcome.ended_at) == pytest.approx([4.0])
    assert outcome.served == [True]
    assert [(switch.previous, switch.model) for switch in outcome.switches] == [("", "a")]


def test_engines_that_were_never_started_start() -> None:
    assert run([TracedCall(0.0, "a", 0, 1)], warm=False).admitted_at[0] == 10.0


def test_stopped_engines_start_each_time() -> None:
    outcome = run(
        [TracedCall(0.0, "a", 0, 1), TracedCall(100.0, "b", 0, 1), TracedCall(200.0, "a", 0, 1)], eviction=STOP
    )
    assert list(outcome.admitted_at) == [10.0, 110.5, 210.5]


def test_a_model_that_never_leaves_serves_from_its_warm_up_on() -> None:
    outcome = run([TracedCall(1.0, "a", 500, 1)], eviction=NEVER_LEAVES)
    assert (list(outcome.admitted_at), list(outcome.ended_at)) == ([1.0], [1.5])
    assert not outcome.switches


def test_a_switch_drains_evicts_and_wakes() -> None:
    outcome = run([TracedCall(0.0, "a", 0, 401), TracedCall(2.0, "b", 0, 1), TracedCall(3.0, "a", 0, 1)])
    ended_at = 1.5 + 10.0
    assert list(outcome.ended_at) == pytest.approx([ended_at, ended_at + 2.0, ended_at + 4.0])
    assert outcome.timeline.entries["a"] == [
        (0.0, Phase.WAKING),
        (1.5, Phase.SERVING),
        (2.0, Phase.DRAINING),
        (pytest.approx(ended_at), Phase.EVICTING),
        (pytest.approx(ended_at + 0.5), Phase.OFF),
        (pytest.approx(ended_at + 2.5), Phase.WAKING),
        (pytest.approx(ended_at + 4.0), Phase.SERVING),
        (pytest.approx(ended_at + 4.0), Phase.IDLE),
    ]
    assert len(outcome.switches) == 3


def test_what_was_measured_of_each_switch_goes_before_the_costs() -> None:
    calls = [TracedCall(0.0, "a", 0, 1), TracedCall(10.0, "b", 0, 1), TracedCall(20.0, "a", 0, 1)]
    outcome = run(calls, measured=MeasuredSwitches([0.7], [1.0, 2.0]))
    assert list(outcome.admitted_at) == pytest.approx([1.0, 12.7, 22.0])


def test_requests_beyond_the_batch_limit_wait_in_the_scheduler() -> None:
    outcome = run([TracedCall(0.0, "a", 0, 41)] * 3, max_in_flight=2)
    assert list(outcome.admitted_at) == pytest.approx([1.5, 1.5, 2.5])


def test_who_waits_too_long_is_not_served() -> None:
    limits = Limits(request_timeout_seconds=5.0, min_active_seconds=0.0)
    outcome = run([TracedCall(0.0, "a", 0, 401), TracedCall(2.0, "b", 0, 1)], limits)
    assert outcome.served == [True, False]
    assert math.isnan(outcome.admitted_at[1])
    assert outcome.ended_at[1] == 7.0


def test_an_answer_that_is_cut_off_was_not_served() -> None:
    limits = Limits(drain_timeout_seconds=1.0, min_active_seconds=0.0)
    calls = [TracedCall(0.0, "a", 0, 401), TracedCall(2.0, "b", 0, 1)]
    assert run(calls, limits).served == [False, True]
    assert run(calls, limits).ended_at[0] == 3.0
    assert run(calls, drain=Drain.ABORT).ended_at[0] == 2.0


def test_frozen_work_is_read_again_and_goes_on() -> None:
    calls = [TracedCall(0.0, "a", 500, 401), TracedCall(4.0, "b", 0, 1)]
    outcome = run(calls, Limits(min_active_seconds=1.0), drain=Drain.FREEZE)
    # First token at 2, frozen at 4 with 81 tokens out; b has its turn from 6 to 7; a is back at 9 but for the question,
    # and reads 581 tokens.
    assert outcome.first_token_at[0] == 2.0
    assert outcome.ended_at[1] == 6.0
    assert outcome.ended_at[0] == pytest.approx(9.0 - QUESTION_SECONDS + 0.581 + (401 - 81 - 1) / 40)
    assert outcome.served == [True, True]
    assert Phase.DRAINING not in [phase for _, phase in outcome.timeline.entries["a"]]


def test_a_wake_is_done_when_what_was_frozen_has_been_read_and_the_question_behind_it_answered() -> None:
    calls = [TracedCall(0.0, "a", 2000, 401), TracedCall(2.0, "b", 0, 1), TracedCall(5.0, "a", 0, 1)]
    outcome = run(calls, Limits(min_active_seconds=1.0), drain=Drain.FREEZE)
    # Frozen at 3, as long after its wake as that had taken, while it was being read; b has its turn from 5 to 6; a is
    # back at 8, but for the question, and has read 2 s later.
    assert outcome.ended_at[1] == 5.0
    assert outcome.first_token_at[0] == pytest.approx(10.0)
    assert outcome.ended_at[0] == pytest.approx(10.0 - QUESTION_SECONDS + 400 / 40)
    assert outcome.admitted_at[2] == pytest.approx(10.0)
    assert (pytest.approx(10.0), Phase.SERVING) in outcome.timeline.entries["a"]


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_what_ends_before_the_wake_is_done_is_heard_then(max_in_flight: int) -> None:
    calls = [TracedCall(0.0, "a", 1600, 2), TracedCall(2.0, "b", 0, 1)]
    outcome = run(calls, Limits(min_active_seconds=1.0), drain=Drain.FREEZE, max_in_flight=max_in_flight)
    # Frozen at 3, 0.1 s before its first token; a is back at 8, but for the question.
    read_at = 8.0 - QUESTION_SECONDS + 1.6
    # In a full batch the question waits for the end of the answer.
    done_at = read_at + QUESTION_SECONDS + (1 / 40 if max_in_flight == 1 else 0.0)
    assert outcome.first_token_at[0] == outcome.ended_at[0] == pytest.approx(done_at)
    assert outcome.timeline.entries["a"][-1] == (pytest.approx(done_at), Phase.IDLE)


@pytest.mark.parametrize("tokens", [23, 300])
def test_what_waits_too_long_for_the_end_of_its_wake_was_not_served(tokens: int) -> None:
    limits = Limits(request_timeout_seconds=6.0, min_active_seconds=1.0)
    calls = [TracedCall(0.0, "a", 1000, tokens), TracedCall(0.0, "a", 3000, 2)]
    calls += [TracedCall(2.0, "b", 0, 1), TracedCall(30.0, "b", 0, 1)]
    outcome = run(calls, limits, drain=Drain.FREEZE)
    # Both are frozen at 3 and given up at 9, when one is being written or has ended unheard, and one is being read.
    assert outcome.served == [False, False, True, True]
    assert outcome.ended_at[0] == outcome.ended_at[1] == 9.0


def test_turns_get_something_done_even_without_a_minimum() -> None:
    calls = [TracedCall(0.0, "a", 500, 401), TracedCall(4.0, "b", 500, 1)]
    assert run(calls, Limits(min_active_seconds=0.0), drain=Drain.FREEZE).served == [True, True]


def test_a_run_in_which_nothing_gets_done_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_run, "STANDSTILL_SECONDS", 0.5)
    outcome = run([TracedCall(0.0, "a", 500, 401)], Limits(min_active_seconds=0.0))
    assert outcome.served == [False], "its wake alone takes longer than that"


def test_what_is_frozen_for_too_long_was_not_served() -> None:
    limits = Limits(request_timeout_seconds=9.0, min_active_seconds=10.0, max_wait_seconds=0.0)
    calls = [TracedCall(0.0, "a", 0, 4001), TracedCall(11.5, "b", 0, 1)]
    outcome = run(calls, limits, drain=Drain.FREEZE)
    assert outcome.served == [False, True]
    assert outcome.ended_at[0] == 20.5


def test_the_shares_are_of_the_whole_time() -> None:
    outcome = run([TracedCall(0.0, "a", 0, 81), TracedCall(2.0, "b", 0, 41), TracedCall(13.5, "b", 0, 41)])
    assert outcome.end == pytest.approx(14.5)
    share = outcome.timeline.shares(outcome.end)
    assert share.switching == pytest.approx((1.5 + 2.0) / 14.5)
    assert share.draining == pytest.approx(1.5 / 14.5)
    assert share.serving == pytest.approx(2.5 / 14.5)
    assert share.idle == pytest.approx(7.0 / 14.5)


def test_progress_is_told() -> None:
    told: list[float] = []
    scheduler = Scheduler([ModelSpec("a")], Fifo())
    VirtualRun(scheduler, [TracedCall(0.0, "a", 1, 1)], {"a": COST}, progress=told.append).run()
    assert told == [0]
