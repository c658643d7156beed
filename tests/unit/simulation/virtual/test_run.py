import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from llmux.core.eviction import STOP, Drain, Eviction
from llmux.core.identifiers import GpuId
from llmux.core.policies.fifo import Fifo
from llmux.core.scheduler import Scheduler
from llmux.core.settings import Limits, ModelSpec, Placement
from llmux.simulation.occupancy import SwitchCauses
from llmux.simulation.residency import Phase
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual import run as virtual_run
from llmux.simulation.virtual.costs import MeasuredSwitches, SwitchCost
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.preparation import Preparation
from llmux.simulation.virtual.run import RunResult, VirtualRun, canary_seconds
from tests.support.core_scenarios import NEVER_LEAVES

ASLEEP = Eviction.parse("offload+keep_running")
IMAGE = Eviction.parse("discard+checkpoint")
SPEED = EngineSpeed(prefill=1000.0, decode_alone=40.0, decode_full=40.0)
CANARY_SECONDS = canary_seconds(SPEED)
COST = SwitchCost(evict=0.5, wake=1.5, cold=10.0)


def run(
    requests: Sequence[TrafficRequest],
    limits: Limits | None = None,
    eviction: Eviction = ASLEEP,
    drain: Drain = Drain.WAIT,
    max_in_flight: int = 8,
    *,
    warm: bool = True,
    measured: MeasuredSwitches | None = None,
    speed: EngineSpeed = SPEED,
) -> RunResult:
    names = dict.fromkeys(request.model for request in requests)
    specs = [ModelSpec(name, eviction, max_in_flight, drain) for name in names]
    scheduler = Scheduler(specs, Fifo(), limits or Limits(min_active_seconds=0.0))
    return VirtualRun(
        scheduler,
        requests,
        dict.fromkeys(names, COST),
        speed,
        preparation=Preparation(warms_up=warm),
        measured=measured,
    ).run()


def test_a_request_waits_for_the_wake_then_is_prefilled_and_decoded() -> None:
    result = run([TrafficRequest(1.0, "a", 500, 41)])
    assert list(result.admitted_at) == [2.5]
    assert list(result.first_token_at) == [3.0]
    assert list(result.ended_at) == pytest.approx([4.0])
    assert result.served == [True]
    assert [(switch.previous, switch.model) for switch in result.switches] == [("", "a")]


def test_without_a_warm_up_engines_start_cold() -> None:
    assert run([TrafficRequest(0.0, "a", 0, 1)], warm=False).admitted_at[0] == 10.0


def test_stopped_engines_start_each_time() -> None:
    result = run(
        [TrafficRequest(0.0, "a", 0, 1), TrafficRequest(100.0, "b", 0, 1), TrafficRequest(200.0, "a", 0, 1)],
        eviction=STOP,
    )
    assert list(result.admitted_at) == [10.0, 110.5, 210.5]


def test_a_model_that_never_leaves_serves_from_its_warm_up_on() -> None:
    result = run([TrafficRequest(1.0, "a", 500, 1)], eviction=NEVER_LEAVES)
    assert (list(result.admitted_at), list(result.ended_at)) == ([1.0], [1.5])
    assert not result.switches


def test_a_switch_drains_evicts_and_wakes() -> None:
    result = run([TrafficRequest(0.0, "a", 0, 401), TrafficRequest(2.0, "b", 0, 1), TrafficRequest(3.0, "a", 0, 1)])
    ended_at = 1.5 + 10.0
    assert list(result.ended_at) == pytest.approx([ended_at, ended_at + 2.0, ended_at + 4.0])
    assert result.timeline.entries["a"] == [
        (0.0, Phase.WAKING),
        (1.5, Phase.SERVING),
        (2.0, Phase.DRAINING),
        (pytest.approx(ended_at), Phase.LEAVING),
        (pytest.approx(ended_at + 0.5), Phase.ASLEEP),
        (pytest.approx(ended_at + 2.5), Phase.WAKING),
        (pytest.approx(ended_at + 4.0), Phase.SERVING),
        (pytest.approx(ended_at + 4.0), Phase.IDLE),
    ]
    assert len(result.switches) == 3


def test_measured_durations_take_precedence_over_costs() -> None:
    requests = [TrafficRequest(0.0, "a", 0, 1), TrafficRequest(10.0, "b", 0, 1), TrafficRequest(20.0, "a", 0, 1)]
    result = run(requests, measured=MeasuredSwitches([0.7], [1.0, 2.0]))
    assert list(result.admitted_at) == pytest.approx([1.0, 12.7, 22.0])


def test_requests_beyond_the_batch_limit_wait_in_the_scheduler() -> None:
    result = run([TrafficRequest(0.0, "a", 0, 41)] * 3, max_in_flight=2)
    assert list(result.admitted_at) == pytest.approx([1.5, 1.5, 2.5])


def test_a_request_that_waits_too_long_is_not_served() -> None:
    limits = Limits(request_timeout_seconds=5.0, min_active_seconds=0.0)
    result = run([TrafficRequest(0.0, "a", 0, 401), TrafficRequest(2.0, "b", 0, 1)], limits)
    assert result.served == [True, False]
    assert math.isnan(result.admitted_at[1])
    assert result.ended_at[1] == 7.0


def test_an_answer_that_is_cut_off_is_not_served() -> None:
    limits = Limits(drain_timeout_seconds=1.0, min_active_seconds=0.0)
    requests = [TrafficRequest(0.0, "a", 0, 401), TrafficRequest(2.0, "b", 0, 1)]
    assert run(requests, limits).served == [False, True]
    assert run(requests, limits).ended_at[0] == 3.0
    assert run(requests, drain=Drain.ABORT).ended_at[0] == 2.0


def test_a_frozen_request_is_recomputed_and_resumes() -> None:
    requests = [TrafficRequest(0.0, "a", 500, 401), TrafficRequest(4.0, "b", 0, 1)]
    result = run(requests, Limits(min_active_seconds=1.0), drain=Drain.FREEZE)
    # First token at 2, frozen at 4 with 81 tokens out; b is on the GPU from 6 to 7; a is back at 9 but for the canary,
    # and recomputes 581 tokens.
    assert result.first_token_at[0] == 2.0
    assert result.ended_at[1] == 6.0
    assert result.ended_at[0] == pytest.approx(9.0 - CANARY_SECONDS + 0.581 + (401 - 81 - 1) / 40)
    assert result.served == [True, True]
    assert [(one.at, one.tokens) for one in result.progress[0]] == [(4.0, 81), (pytest.approx(9.0 + 0.581), 82)]
    assert Phase.DRAINING not in [phase for _, phase in result.timeline.entries["a"]]


def test_where_the_kv_cache_is_kept_recompute_takes_a_share_of_the_prefill() -> None:
    requests = [TrafficRequest(0.0, "a", 500, 401), TrafficRequest(4.0, "b", 0, 1)]
    result = run(
        requests, Limits(min_active_seconds=1.0), drain=Drain.FREEZE, speed=replace(SPEED, recompute_share=0.1)
    )
    # As above, but for the 581 tokens, which take a tenth.
    assert result.ended_at[0] == pytest.approx(9.0 - CANARY_SECONDS + 0.0581 + (401 - 81 - 1) / 40)


def test_a_prefill_that_was_interrupted_begins_anew_even_so() -> None:
    requests = [TrafficRequest(0.0, "a", 2000, 401), TrafficRequest(2.0, "b", 0, 1)]
    kept, lost = (
        run(requests, Limits(min_active_seconds=1.0), drain=Drain.FREEZE, speed=replace(SPEED, recompute_share=share))
        for share in (0.1, 1.0)
    )
    assert kept.first_token_at[0] == lost.first_token_at[0]


def test_a_wake_is_done_after_the_recompute_and_the_canary_behind_it() -> None:
    requests = [TrafficRequest(0.0, "a", 2000, 401), TrafficRequest(2.0, "b", 0, 1), TrafficRequest(5.0, "a", 0, 1)]
    result = run(requests, Limits(min_active_seconds=1.0), drain=Drain.FREEZE)
    # Frozen at 3, as long after its wake as that had taken, during its prefill; b is on the GPU from 5 to 6; a is
    # back at 8, but for the canary, and the recompute takes 2 s.
    assert result.ended_at[1] == 5.0
    assert result.first_token_at[0] == pytest.approx(10.0)
    assert result.ended_at[0] == pytest.approx(10.0 - CANARY_SECONDS + 400 / 40)
    assert result.admitted_at[2] == pytest.approx(10.0)
    assert (pytest.approx(10.0), Phase.SERVING) in result.timeline.entries["a"]


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_an_answer_that_ends_before_the_wake_is_done_is_held_back(max_in_flight: int) -> None:
    requests = [TrafficRequest(0.0, "a", 1600, 2), TrafficRequest(2.0, "b", 0, 1)]
    result = run(requests, Limits(min_active_seconds=1.0), drain=Drain.FREEZE, max_in_flight=max_in_flight)
    # Frozen at 3, 0.1 s before its first token; a is back at 8, but for the canary.
    recomputed_at = 8.0 - CANARY_SECONDS + 1.6
    # In a full batch the canary waits for the end of the answer.
    done_at = recomputed_at + CANARY_SECONDS + (1 / 40 if max_in_flight == 1 else 0.0)
    assert result.first_token_at[0] == result.ended_at[0] == pytest.approx(done_at)
    assert not result.progress, "nobody read anything of it before"
    assert result.timeline.entries["a"][-1] == (pytest.approx(done_at), Phase.IDLE)


@pytest.mark.parametrize("tokens", [23, 300])
def test_a_frozen_request_whose_wake_takes_too_long_is_not_served(tokens: int) -> None:
    limits = Limits(request_timeout_seconds=6.0, min_active_seconds=1.0)
    requests = [TrafficRequest(0.0, "a", 1000, tokens), TrafficRequest(0.0, "a", 3000, 2)]
    requests += [TrafficRequest(2.0, "b", 0, 1), TrafficRequest(30.0, "b", 0, 1)]
    result = run(requests, limits, drain=Drain.FREEZE)
    # Both are frozen at 3 and given up at 9, when one is being decoded or has ended but is held back, and the other
    # one is in its prefill.
    assert result.served == [False, False, True, True]
    assert result.ended_at[0] == result.ended_at[1] == 9.0


def test_alternating_models_make_progress_even_without_a_minimum() -> None:
    requests = [TrafficRequest(0.0, "a", 500, 401), TrafficRequest(4.0, "b", 500, 1)]
    assert run(requests, Limits(min_active_seconds=0.0), drain=Drain.FREEZE).served == [True, True]


def test_a_run_without_progress_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_run, "STANDSTILL_SECONDS", 0.5)
    result = run([TrafficRequest(0.0, "a", 500, 401)], Limits(min_active_seconds=0.0))
    assert result.served == [False], "its wake alone takes longer than that"


def test_a_request_frozen_for_too_long_is_not_served() -> None:
    limits = Limits(request_timeout_seconds=9.0, min_active_seconds=10.0, max_wait_seconds=0.0)
    requests = [TrafficRequest(0.0, "a", 0, 4001), TrafficRequest(11.5, "b", 0, 1)]
    result = run(requests, limits, drain=Drain.FREEZE)
    assert result.served == [False, True]
    assert result.ended_at[0] == 20.5


def test_the_shares_are_of_the_whole_time() -> None:
    result = run([TrafficRequest(0.0, "a", 0, 81), TrafficRequest(2.0, "b", 0, 41), TrafficRequest(13.5, "b", 0, 41)])
    assert result.end == pytest.approx(14.5)
    share = result.timeline.shares(result.end)
    assert share.switching == pytest.approx((1.5 + 2.0) / 14.5)
    assert share.draining == pytest.approx(1.5 / 14.5)
    assert share.serving == pytest.approx(2.5 / 14.5)
    assert share.idle == pytest.approx(7.0 / 14.5)


def test_progress_is_reported() -> None:
    reported: list[float] = []
    scheduler = Scheduler([ModelSpec("a")], Fifo())
    VirtualRun(scheduler, [TrafficRequest(0.0, "a", 1, 1)], {"a": COST}, progress=reported.append).run()
    assert reported == [0]


FIRST, SECOND = GpuId("local", "0"), GpuId("local", "1")


def placed(name: str, size: int, *gpus: GpuId, eviction: Eviction = ASLEEP, **more: object) -> ModelSpec:
    residue = {ASLEEP: dict.fromkeys(gpus, 10)}
    return ModelSpec(name, eviction, placements=(Placement(dict.fromkeys(gpus, size), residue),), **more)  # type: ignore[arg-type]


def run_placed(specs: Sequence[ModelSpec], requests: Sequence[TrafficRequest]) -> RunResult:
    scheduler = Scheduler(specs, Fifo(), Limits(min_active_seconds=0.0), {FIRST: 100, SECOND: 100})
    return VirtualRun(scheduler, requests, {spec.name: COST for spec in specs}, SPEED).run()


def test_gpus_switch_independently_and_what_models_hold_is_recorded() -> None:
    specs = [placed("a", 80, FIRST), placed("b", 80, SECOND)]
    result = run_placed(specs, [TrafficRequest(0.0, "a", 0, 1), TrafficRequest(1.0, "b", 0, 1)])
    assert list(result.admitted_at) == [10.0, 11.0]
    assert result.occupancy.capacity == {FIRST: 100, SECOND: 100}
    assert result.occupancy.held == {"a": [(0.0, {FIRST: 80})], "b": [(1.0, {SECOND: 80})]}
    assert result.causes == SwitchCauses(first=2)


def test_a_switch_that_memory_forces_and_one_that_it_does_not() -> None:
    specs = [placed("a", 80, FIRST, idle_seconds=50.0), placed("b", 80, FIRST, idle_seconds=50.0)]
    arrivals = [(0.0, "a"), (15.0, "b"), (30.0, "a"), (200.0, "b"), (400.0, "b")]
    result = run_placed(specs, [TrafficRequest(at, model, 0, 1) for at, model in arrivals])
    # The second coming of a: it had left for b. Both later ones of b: it had left for a, then by itself.
    assert result.causes == SwitchCauses(first=2, forced=2, unforced=1)


def test_a_sleeper_that_is_stopped_gives_its_residue_back_and_is_not_on_the_gpu() -> None:
    specs = [placed("a", 80, FIRST), placed("b", 60, FIRST), placed("c", 95, FIRST)]
    result = run_placed(specs, [TrafficRequest(20.0 * number, name, 0, 1) for number, name in enumerate("abc")])
    asleep_at, stopped_at = 20.5, 40.5
    assert result.occupancy.held["a"] == [(0.0, {FIRST: 80}), (asleep_at, {FIRST: 10}), (stopped_at, {})]
    assert result.timeline.entries["a"][-2:] == [(asleep_at, Phase.ASLEEP), (stopped_at, Phase.NOT_STARTED)]
    assert result.occupancy.held["c"] == [(stopped_at, {FIRST: 95})]


def test_a_preloaded_model_serves_at_once_and_the_default_model_comes_back() -> None:
    """``a`` leaves for ``b``, and comes back by itself when nobody asks for ``b`` any more."""
    requests = [TrafficRequest(0.0, "a", 0, 1), TrafficRequest(1.0, "b", 0, 1), TrafficRequest(100.0, "a", 0, 1)]
    limits = Limits(min_active_seconds=0.0, default_returns_seconds=5.0)
    scheduler = Scheduler([ModelSpec(name, ASLEEP) for name in "ab"], Fifo(), limits)
    preparation = Preparation(preload=(("a",),), default_model="a")
    result = VirtualRun(scheduler, requests, dict.fromkeys("ab", COST), SPEED, preparation=preparation).run()
    came = 1.0 + COST.evict + COST.cold
    assert list(result.admitted_at) == [0.0, came, 100.0]
    assert result.timeline.strip("a", 0.0, 1.0, 1) == [Phase.IDLE]
    assert result.timeline.shares(came, ["a"]).idle > 0
    assert result.causes == SwitchCauses(first=1, forced=1)
