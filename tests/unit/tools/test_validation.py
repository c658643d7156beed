"""How trials are judged, over a scripted engine."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from llmux.core.eviction import Eviction
from llmux.core.states import Asleep, Cold
from llmux.engines.base import Abilities, Engine
from llmux.errors import FailureReason
from llmux.instances.outcomes import EvictOutcome, WakeOutcome
from llmux.tools.standalone import Memory, StandaloneEngine
from llmux.tools.validation import Trial, Validation, pick_best, validate
from tests.support.engines import sglang_engine, vllm_engine

OFFLOAD = Eviction.parse("offload+keep_running")
STOP = Eviction.parse("retain+stop")


class FakeEngine:
    """A standalone engine and its instance in one. GPU memory in use: 100 MiB without it, 900 while it is awake."""

    def __init__(self) -> None:
        self.instance = self
        self.spec = self
        self.engine: Engine = vllm_engine()
        self.abilities = Abilities(version="1")
        self.model = "m"
        self.shim_pid = 4_194_304
        self.is_running = self.is_awake = False
        self.asleep_mib: int | None = 120
        self.has_gpu = True
        self.answers = ["4"]
        self.fails_to_wake = 0
        self.starts = 0
        self.fallback: str | None = None
        self.fails_to_leave = 0

    @property
    def has_engine(self) -> bool:
        return self.is_running

    async def wake(self, devices: tuple[str, ...] = ()) -> WakeOutcome:
        if self.is_running and self.fails_to_wake:
            self.fails_to_wake -= 1
            return WakeOutcome(FailureReason("it does not wake"))
        self.starts += not self.is_running
        self.is_running = self.is_awake = True
        return WakeOutcome()

    async def evict(self, eviction: Eviction) -> EvictOutcome:
        if self.fails_to_leave:
            self.fails_to_leave -= 1
            return EvictOutcome(Cold(), error=FailureReason("it is stuck"))
        self.is_awake = False
        if not eviction.keeps_process or self.fallback:
            self.is_running = False
            return EvictOutcome(Cold(), self.fallback)
        return EvictOutcome(Asleep(eviction))

    async def end(self) -> None:
        self.is_running = self.is_awake = False

    async def ask(self) -> str:
        return self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)

    async def measure(self) -> Memory:
        used = 900 if self.is_awake else (self.asleep_mib or 0) if self.is_running else 100
        return Memory(used if self.has_gpu else None, used)


async def judged(engine: FakeEngine, *evictions: Eviction) -> tuple[Validation, list[str]]:
    progress: list[str] = []
    result = await validate(cast("StandaloneEngine", engine), evictions, progress.append, pause_seconds=0.0)
    return result, progress


async def test_every_trial_passes() -> None:
    result, progress = await judged(FakeEngine(), OFFLOAD, STOP)
    assert result.passed and result.is_judged_by_gpu
    assert [trial.asleep for trial in result.trials] == [Memory(120, 120), Memory(100, 100)]
    assert progress[:2] == ["starting the engine", "offload+keep_running: leaving the GPU"]


@pytest.mark.parametrize(
    ("asleep_mib", "passed"),
    [(120, True), (500, True), (501, False), (900, False)],
)
async def test_at_least_half_of_its_gpu_memory_must_be_freed(asleep_mib: int, passed: bool) -> None:
    engine = FakeEngine()
    engine.asleep_mib = asleep_mib
    result, _ = await judged(engine, OFFLOAD)
    assert result.passed is passed
    assert ["of its GPU memory of 800 MiB" in reason for reason in result.trials[0].reasons] == [True] * (not passed)


@pytest.mark.parametrize(("asleep_mib", "passed"), [(892, True), (893, False)])
async def test_weights_that_stay_on_the_gpu_are_not_missed(asleep_mib: int, passed: bool) -> None:
    engine = FakeEngine()
    engine.asleep_mib = asleep_mib
    result, _ = await judged(engine, Eviction.parse("retain+keep_running"))
    assert result.passed is passed


@pytest.mark.parametrize(("asleep_mib", "passed"), [(884, True), (885, False)])
async def test_without_a_gpu_some_host_memory_must_be_freed(asleep_mib: int, passed: bool) -> None:
    engine = FakeEngine()
    engine.has_gpu, engine.asleep_mib = False, asleep_mib
    result, _ = await judged(engine, OFFLOAD)
    assert result.passed is passed and not result.is_judged_by_gpu


def another_answer(engine: FakeEngine) -> None:
    engine.answers = ["4", "5", "4"]


def no_wake(engine: FakeEngine) -> None:
    engine.fails_to_wake = 1


def no_eviction(engine: FakeEngine) -> None:
    engine.fails_to_leave = 1


@pytest.mark.parametrize(
    ("go_wrong", "reason", "is_same"),
    [
        (another_answer, "the answer is '5', before it was '4'", False),
        (no_wake, "it does not wake", None),
        (no_eviction, "it is stuck", None),
    ],
)
async def test_a_fresh_engine_follows_a_failed_trial(
    go_wrong: Callable[[FakeEngine], None], reason: str, is_same: bool | None
) -> None:
    engine = FakeEngine()
    go_wrong(engine)
    result, progress = await judged(engine, OFFLOAD, OFFLOAD)
    first, second = result.trials
    assert (first.reasons, first.is_same_answer, first.passed) == ([reason], is_same, False)
    assert second.passed
    assert engine.starts == 2
    assert "offload+keep_running: starting a fresh engine" in progress


async def test_a_fallback_does_not_pass() -> None:
    engine = FakeEngine()
    engine.fallback = "stopped instead: it said 500"
    result, _ = await judged(engine, OFFLOAD)
    assert result.trials[0].reasons == ["stopped instead: it said 500"]
    assert result.trials[0].is_same_answer


async def test_an_unsupported_eviction_leaves_the_engine_running() -> None:
    engine = FakeEngine()
    engine.engine = sglang_engine("m", "--tp", "2")
    result, _ = await judged(engine, Eviction.parse("retain+cuda_suspend"), OFFLOAD)
    assert "cannot leave by" in result.trials[0].reasons[0]
    assert result.trials[1].passed
    assert engine.starts == 1


def test_an_unfinished_trial_has_not_passed() -> None:
    assert not Trial(OFFLOAD).passed
    about = {"model": "m", "engine": "vllm", "version": None, "model_path": "m"}
    fields: dict[str, Any] = {**about, "baseline": "4", "is_judged_by_gpu": True}
    assert not Validation(**fields, trials=(Trial(OFFLOAD),)).passed


def trial(eviction: str, sleep_seconds: float, wake_seconds: float, host_mib: int, *reasons: str) -> Trial:
    return Trial(
        Eviction.parse(eviction),
        sleep_seconds,
        wake_seconds,
        asleep=Memory(None, host_mib),
        is_same_answer=True,
        reasons=list(reasons),
    )


def picked(*trials: Trial) -> str | None:
    best = pick_best(Validation("m", "vllm", None, "x", "4", True, trials))
    return None if best is None else str(best.trial.eviction)


def test_the_quickest_that_passed_is_picked() -> None:
    quick, slow = trial("offload+keep_running", 0.1, 0.2, 900), trial("retain+stop", 0.3, 20.0, 0)
    assert picked(slow, quick) == "offload+keep_running"
    assert picked(slow, trial("offload+keep_running", 0.1, 0.2, 900, "it keeps its memory")) == "retain+stop"
    assert picked(trial("retain+stop", 0.3, 20.0, 0, "it does not start")) is None


def test_what_stays_on_the_gpu_is_not_picked() -> None:
    assert picked(trial("retain+keep_running", 0.1, 0.1, 0), trial("retain+stop", 0.3, 20.0, 0)) == "retain+stop"


def test_of_those_that_are_about_as_quick_the_one_that_holds_least_is_picked() -> None:
    offload, discard = trial("offload+keep_running", 0.5, 0.5, 900), trial("discard+keep_running", 0.5, 0.59, 100)
    assert picked(offload, discard) == "discard+keep_running"
    assert picked(offload, trial("discard+keep_running", 0.5, 0.7, 100)) == "offload+keep_running"
