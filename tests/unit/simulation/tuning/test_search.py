from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.core.need import SeenNeed
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.tuning.changes import GpuMemory, key_of
from llmux.simulation.tuning.search import LOST_SECONDS, Tuning, TuningFailed, tune
from llmux.simulation.virtual.leases import PlannedLease
from llmux.simulation.virtual.scenario import Scenario, build_scenario

GIB = 1024
LEAST = {"a": 8 * GIB, "b": 8 * GIB}
TURNS = [TrafficRequest(5.0 * number, "ab"[number % 2], 80, 20) for number in range(80)]
"""Two models that are asked in turn."""


def settings(**more: Any) -> Settings:
    models = {name: {"model_path": name, "gpu_memory": "20GiB", "eviction": "offload+keep_running"} for name in "ab"}
    return loads(str({"models": models, "gpus": [{"memory": "24GiB"}], **more})).settings


def tuned(requests: Sequence[TrafficRequest], some: Settings, runs_max: int = 200, costs: Sequence[str] = ()) -> Tuning:
    build = partial(build_scenario, costs=costs)
    return tune(some, build, requests, PolicyType.FIFO, LEAST, runs_max, lambda runs: None)


def test_models_that_are_asked_in_turn_are_made_to_fit_together() -> None:
    found = tuned(TURNS, settings())
    assert found.together.changes == (GpuMemory("a", 12 * GIB), GpuMemory("b", 12 * GIB))
    assert found.holds and found.is_complete
    for before, after in (
        (found.before.chosen_on, found.together.chosen_on),
        (found.before.judged_on, found.together.judged_on),
    ):
        assert before.switches > after.switches == 2
        assert after.waited < before.waited
    assert {one.chosen_on.switches for one in found.alone} == {found.before.chosen_on.switches}, "each needs the other"


def test_what_saves_nothing_is_taken_back() -> None:
    """Equal parts are tried for all three, but nobody asks for ``c``."""
    models = {name: {"model_path": name, "gpu_memory": "20GiB", "eviction": "offload+keep_running"} for name in "abc"}
    some = loads(str({"models": models, "gpus": [{"memory": "24GiB"}]})).settings
    found = tune(some, build_scenario, TURNS, PolicyType.FIFO, {**LEAST, "c": 8 * GIB}, 200, lambda runs: None)
    assert {change.model for change in found.together.changes} == {"a", "b"}


def test_nothing_that_loses_requests_holds() -> None:
    found = tuned(TURNS, settings())
    loses = replace(found.together, judged_on=replace(found.together.judged_on, lost=1))
    assert found.holds and not replace(found, together=loses).holds


def test_the_outcome_is_always_the_same() -> None:
    assert tuned(TURNS, settings()) == tuned(TURNS, settings())


def test_an_eviction_that_comes_back_sooner() -> None:
    slow = loads(str({"models": {name: {"model_path": name, "eviction": "retain+stop"} for name in "ab"}})).settings
    found = tuned(TURNS, slow)
    assert found.together.changes and {key_of(change) for change in found.together.changes} == {"eviction"}


def test_costs_that_are_the_same_for_every_eviction_make_none_better() -> None:
    found = tuned(TURNS, settings(), costs=["2"])
    assert "eviction" not in {key_of(change) for change in found.together.changes}


def test_every_chosen_change_is_needed() -> None:
    requests = [TrafficRequest(3.0 * number, "aabab"[number % 5], 800, 40) for number in range(100)]
    some = settings(policy={"idle_seconds": 4})
    found = tuned(requests, some)
    assert len(found.together.changes) > 1
    assert all(found.together.chosen_on.waited < one.chosen_on.waited for one in found.alone)


def test_what_saves_by_the_first_half_only_is_not_proposed() -> None:
    """In the second half only one model is asked: nothing can be saved there."""
    found = tuned([*TURNS[:40], *(TrafficRequest(200.0 + 5 * number, "a", 80, 20) for number in range(40))], settings())
    assert found.together.changes and found.together.chosen_on.waited < found.before.chosen_on.waited
    assert not found.holds


def test_leases_are_in_the_halves_to_which_they_belong() -> None:
    """The second half begins at 200 s; a program takes the whole GPU for 20 s after 50 of them."""

    def build(changed: Settings) -> Scenario:
        return replace(build_scenario(changed, ["2"]), leases=[PlannedLease(250.0, 20.0)])

    found = tune(settings(), build, TURNS, PolicyType.FIFO, {}, 1, lambda runs: None)
    assert found.before.chosen_on.use.leases == ()
    (times,) = found.before.judged_on.use.leases
    assert times.asked_at == 50.0


def test_runs_are_bounded() -> None:
    counts: list[float] = []
    found = tune(settings(), build_scenario, TURNS, PolicyType.FIFO, LEAST, 2, counts.append)
    assert not found.is_complete
    assert max(counts) == found.runs <= 2 + len(found.together.changes)


def test_lost_requests_count_as_long_waits() -> None:
    """A time-out that loses requests must not look like one that makes nobody wait."""
    hasty = settings(policy={"request_timeout_seconds": 0.5})
    waited = tuned(TURNS, hasty, costs=["100"]).before.chosen_on
    assert waited.lost > 30
    assert waited.waited >= LOST_SECONDS * waited.lost


def test_too_few_requests_say_nothing() -> None:
    with pytest.raises(TuningFailed, match="the trace has 39 requests; tuning needs 40"):
        tuned(TURNS[:39], settings())


def test_a_size_counts_although_the_engine_was_seen_to_hold_more() -> None:
    """It was seen with its present size."""
    build = partial(build_scenario, seen=dict.fromkeys("ab", SeenNeed(21 * GIB)))
    found = tune(settings(), build, TURNS, PolicyType.FIFO, LEAST, 200, lambda runs: None)
    assert found.together.changes == (GpuMemory("a", 12 * GIB), GpuMemory("b", 12 * GIB))
    assert found.together.chosen_on.switches == 2
