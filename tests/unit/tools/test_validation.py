"""How a trial is judged, with an engine that does as the test says."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from llmux.core.eviction import Eviction
from llmux.core.states import Asleep, Cold
from llmux.errors import CommandFailed
from llmux.tools.standalone import Memory, StandaloneEngine
from llmux.tools.validation import Trial, Validation, validate

OFFLOAD = Eviction.parse("offload+keep_running")
STOP = Eviction.parse("retain+stop")


class Canary:
    """Costs a known time."""

    seconds = 0.0


class FakeEngine:
    """An engine alone, and its instance. What it holds: 100 MiB empty GPU, 900 awake, ``asleep_mib`` asleep."""

    def __init__(self) -> None:
        self.canary = Canary()
        self.instance = self
        self.spec = self
        self.model = "m"
        self.shim_pid = 4_194_304
        self.is_running = self.is_awake = False
        self.asleep_mib: int | None = 120
        self.has_gpu = True
        self.answers = ["4"]
        self.fails_to_wake = 0
        self.starts = 0
        self.fallback_reason: str | None = None

    @property
    def lost(self) -> str | None:
        return None if self.is_running else "no engine runs"

    async def wake(self) -> None:
        if self.is_running and self.fails_to_wake:
            self.fails_to_wake -= 1
            raise CommandFailed("it does not wake")
        self.starts += not self.is_running
        self.is_running = self.is_awake = True

    async def evict(self, eviction: Eviction) -> Asleep | Cold:
        self.is_awake = False
        if not eviction.keeps_process or self.fallback_reason:
            self.is_running = False
            return Cold()
        return Asleep(eviction)

    async def end(self) -> None:
        self.is_running = self.is_awake = False

    async def ask(self) -> str:
        return self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)

    async def measure(self) -> Memory:
        used = 900 if self.is_awake else (self.asleep_mib or 0) if self.is_running else 100
        return Memory(used if self.has_gpu else None, used)

    def other_than(self, eviction: Eviction, residency: Asleep | Cold) -> str | None:
        return StandaloneEngine.other_than(cast("StandaloneEngine", self), eviction, residency)


async def judged(engine: FakeEngine, *evictions: Eviction) -> tuple[Validation, list[str]]:
    told: list[str] = []
    result = await validate(cast("StandaloneEngine", engine), evictions, told.append, pause_seconds=0.0)
    return result, told


async def test_all_is_well() -> None:
    result, told = await judged(FakeEngine(), OFFLOAD, STOP)
    assert result.passed and result.is_judged_by_gpu
    assert [trial.asleep for trial in result.trials] == [Memory(120, 120), Memory(100, 100)]
    assert told[:2] == ["starting the engine", "offload+keep_running: leaving the GPU"]


@pytest.mark.parametrize(
    ("asleep_mib", "passed"),
    [(120, True), (500, True), (501, False), (900, False)],
)
async def test_at_least_half_of_what_it_held_of_the_gpu(asleep_mib: int, passed: bool) -> None:
    engine = FakeEngine()
    engine.asleep_mib = asleep_mib
    result, _ = await judged(engine, OFFLOAD)
    assert result.passed is passed
    assert ["of its GPU memory of 800 MiB" in reason for reason in result.trials[0].reasons] == [True] * (not passed)


@pytest.mark.parametrize(("asleep_mib", "passed"), [(884, True), (885, False)])
async def test_without_a_gpu_some_of_the_hosts(asleep_mib: int, passed: bool) -> None:
    engine = FakeEngine()
    engine.has_gpu, engine.asleep_mib = False, asleep_mib
    result, _ = await judged(engine, OFFLOAD)
    assert result.passed is passed and not result.is_judged_by_gpu


def another_answer(engine: FakeEngine) -> None:
    engine.answers = ["4", "5", "4"]


def no_wake(engine: FakeEngine) -> None:
    engine.fails_to_wake = 1


@pytest.mark.parametrize(
    ("go_wrong", "reason", "is_same"),
    [(another_answer, "the answer is '5', before it was '4'", False), (no_wake, "it does not wake", None)],
)
async def test_after_a_failure_the_next_begins_afresh(
    go_wrong: Callable[[FakeEngine], None], reason: str, is_same: bool | None
) -> None:
    engine = FakeEngine()
    go_wrong(engine)
    result, told = await judged(engine, OFFLOAD, OFFLOAD)
    first, second = result.trials
    assert (first.reasons, first.is_same_answer, first.passed) == ([reason], is_same, False)
    assert second.passed
    assert engine.starts == 2
    assert "offload+keep_running: starting a fresh engine" in told


async def test_a_substitute_does_not_pass() -> None:
    engine = FakeEngine()
    engine.fallback_reason = "stopped instead: it said 500"
    result, _ = await judged(engine, OFFLOAD)
    assert result.trials[0].reasons == ["stopped instead: it said 500"]
    assert result.trials[0].is_same_answer


async def test_what_cannot_be_done_costs_no_engine() -> None:
    engine = FakeEngine()
    result, _ = await judged(engine, Eviction.parse("retain+cuda_suspend"), OFFLOAD)
    assert "not available yet" in result.trials[0].reasons[0]
    assert result.trials[1].passed
    assert engine.starts == 1


def test_a_trial_that_was_not_finished_has_not_passed() -> None:
    assert not Trial(OFFLOAD).passed
    fields: dict[str, Any] = {"model": "m", "baseline": "4", "is_judged_by_gpu": True}
    assert not Validation(**fields, trials=(Trial(OFFLOAD),)).passed
