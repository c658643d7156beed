"""The steps of each eviction, what each step does to the engine, and how manifests name it."""

from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest

from llmux.core.eviction import Eviction
from llmux.core.states import Asleep, Cold
from llmux.engines.base import EngineOptions
from llmux.engines.calls import ControlTimeouts, RankCalls
from llmux.engines.command import Command
from llmux.engines.llama_cpp import LlamaCpp
from llmux.engines.remote import Remote
from llmux.engines.steps import DumpProcess, PrepareRanks, Step, StopProcess, SuspendGpu, residency_after
from llmux.engines.vllm import PauseRequests, ReleaseKvCache, Sleep, SleepLevel
from llmux.errors import ControlCallFailed, UnsupportedEviction
from tests.support.engines import sglang_engine, vllm_engine

T = TypeVar("T")
TIMEOUTS = ControlTimeouts()
ENGINE = vllm_engine()
OFFLOAD, DISCARD = Sleep(TIMEOUTS, SleepLevel.OFFLOAD), Sleep(TIMEOUTS, SleepLevel.DISCARD)
KEEPING = Sleep(TIMEOUTS, SleepLevel.OFFLOAD, keeps_requests=True)
RELEASE, RELEASE_KEEPING = ReleaseKvCache(TIMEOUTS), ReleaseKvCache(TIMEOUTS, keeps_requests=True)
PAUSE = PauseRequests(TIMEOUTS)
SUSPEND, SUSPEND_KEEPING = SuspendGpu(otherwise=OFFLOAD), SuspendGpu(True, KEEPING)
SUSPEND_FIRST = SuspendGpu(otherwise=OFFLOAD, is_for_dump=True)
SUSPEND_FIRST_KEEPING = SuspendGpu(True, KEEPING, is_for_dump=True)
RANKS = PrepareRanks(RankCalls(), 5.0)
DUMP, DUMP_KEEPING = DumpProcess(otherwise=OFFLOAD), DumpProcess(keeps_requests=True, otherwise=KEEPING)


@pytest.mark.parametrize(
    ("eviction", "steps"),
    [
        ("retain+keep_running", (RELEASE,)),
        ("offload+keep_running", (OFFLOAD,)),
        ("discard+keep_running", (DISCARD,)),
        ("retain+cuda_suspend", (SUSPEND,)),
        ("offload+cuda_suspend", (OFFLOAD, SUSPEND)),
        ("discard+cuda_suspend", (DISCARD, SUSPEND)),
        ("retain+checkpoint", (SUSPEND_FIRST, DUMP)),
        ("offload+checkpoint", (OFFLOAD, SUSPEND_FIRST, DUMP)),
        ("discard+checkpoint", (DISCARD, SUSPEND_FIRST, DUMP)),
        ("retain+stop", (StopProcess(),)),
        ("offload+stop", (StopProcess(),)),
        ("discard+stop", (StopProcess(),)),
    ],
)
def test_steps(eviction: str, steps: tuple[object, ...]) -> None:
    assert ENGINE.steps(Eviction.parse(eviction)) == steps


@pytest.mark.parametrize(
    ("eviction", "steps"),
    [
        ("retain+keep_running", (RELEASE_KEEPING,)),
        ("offload+keep_running", (Sleep(TIMEOUTS, SleepLevel.OFFLOAD, keeps_requests=True),)),
        ("retain+cuda_suspend", (PAUSE, SUSPEND_KEEPING)),
        (
            "discard+checkpoint",
            (Sleep(TIMEOUTS, SleepLevel.DISCARD, keeps_requests=True), SUSPEND_FIRST_KEEPING, DUMP_KEEPING),
        ),
        ("retain+checkpoint", (PAUSE, SUSPEND_FIRST_KEEPING, DUMP_KEEPING)),
    ],
)
def test_steps_that_keep_requests(eviction: str, steps: tuple[object, ...]) -> None:
    assert ENGINE.steps(Eviction.parse(eviction), freeze=True) == steps


def test_an_unsupported_eviction_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedEviction, match=r"offload\+keep_running"):
        Command(ENGINE.options).steps(Eviction.parse("offload+keep_running"))


@pytest.mark.parametrize("process", ["cuda_suspend", "checkpoint"])
def test_several_ranks_are_prepared_after_the_sleep(process: str) -> None:
    calls = RankCalls("suspend_nccl", "resume_nccl")
    steps = vllm_engine("m", "-tp", "2", rank_calls=calls).steps(Eviction.parse(f"discard+{process}"))
    assert steps[:2] == (DISCARD, PrepareRanks(calls, TIMEOUTS.sleep_seconds))
    assert isinstance(steps[2], SuspendGpu)


@pytest.mark.parametrize("process", ["cuda_suspend", "checkpoint"])
def test_several_ranks_of_an_engine_without_such_calls_are_refused(process: str) -> None:
    eviction = Eviction.parse(f"retain+{process}")
    engine = sglang_engine("m", "--tp", "2")
    assert "no call by which they let go" in (engine.why_not(eviction) or "")
    assert [problem.path for problem in engine.problems(eviction)] == ["eviction"]
    assert sglang_engine("m", "--tp", "1").why_not(eviction) is None
    assert LlamaCpp(engine.options).why_not(eviction) is None, "it has one process, however many GPUs"


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (Command(replace(ENGINE.options, start_command=("x",), stop_command=("docker",))), "as those in a container"),
        (Remote(ENGINE.options), "none of this machine's GPUs"),
    ],
)
def test_what_does_not_run_here_is_not_suspended(engine: Any, reason: str) -> None:
    assert reason in (engine.why_not(Eviction.parse("retain+cuda_suspend")) or "")


@dataclass(slots=True)
class Engine:
    """Records what the steps do to it, and answers as an engine that does what it is told."""

    applied: tuple[Step, ...] = ()
    has_host_memory: bool = True
    dump_failure: str | None = None
    suspend_failure: str | None = None
    needs_suspend: bool = False
    calls: list[str] = field(default_factory=list)
    is_sleeping: bool = False
    releases_kv_cache: bool = True

    @property
    def endpoints(self) -> "Engine":
        return self

    async def post(self, path: str, timeout_seconds: float, document: object = None) -> None:
        self.calls.append(path)
        self.is_sleeping = path.startswith(("/sleep", "/pause", "/release"))

    async def get(self, path: str, timeout_seconds: float) -> dict[str, bool]:
        if path == "/release_kv_cache_memory":
            raise ControlCallFailed(path, "no", 405 if self.releases_kv_cache else 404)
        assert path == "/is_sleeping"
        return {"is_sleeping": self.is_sleeping}

    async def fits_into_host_memory(self) -> bool:
        return self.has_host_memory

    async def perform(self, work: Coroutine[Any, Any, T], what: str) -> T:
        return await work

    async def dump(self, *, keep_requests: bool) -> str | None:
        self.calls.append(f"dump {keep_requests}")
        return self.dump_failure

    async def suspend_gpu(self) -> str | None:
        self.calls.append("suspend")
        return self.suspend_failure

    async def resume_gpu(self) -> None:
        self.calls.append("resume")

    async def must_suspend_before_dump(self) -> bool:
        return self.needs_suspend

    async def take_back(self) -> None:
        step, self.applied = self.applied[-1], self.applied[:-1]
        await step.undo(self)

    async def stop(self) -> None:
        self.calls.append("stop")

    def fail(self, reason: str) -> None:
        raise AssertionError(reason)

    def note_fallback(self, what: str, reason: str) -> None:
        self.calls.append(f"{what}: {reason}")


def asleep(**state: Any) -> Engine:
    return Engine(applied=(OFFLOAD,), is_sleeping=True, **state)


def suspended(**state: Any) -> Engine:
    return Engine(applied=(SUSPEND,), **state)


NOT_SUSPENDED = "the GPU was not suspended, the engine sleeps instead: refused"
STAYS = "no image was made, the engine stays suspended: criu failed"
TOO_LITTLE = "the weights are discarded instead of offloaded: too little host memory for them"
TOO_OLD = "the weights are offloaded too: this version cannot release its KV cache alone"
NO_IMAGE = "no image was made, the engine sleeps instead: criu failed"


@pytest.mark.parametrize(
    ("step", "engine", "taken", "calls"),
    [
        (OFFLOAD, Engine(), (OFFLOAD,), ["/sleep?level=1"]),
        (KEEPING, Engine(), (KEEPING,), ["/sleep?level=1&mode=keep"]),
        (OFFLOAD, Engine(has_host_memory=False), (DISCARD,), [TOO_LITTLE, "/sleep?level=2"]),
        (DISCARD, Engine(has_host_memory=False), (DISCARD,), ["/sleep?level=2"]),
        (DISCARD, asleep(), (), []),
        (RELEASE, Engine(), (RELEASE,), ["/pause?mode=abort", "/release_kv_cache_memory"]),
        (RELEASE_KEEPING, Engine(), (RELEASE_KEEPING,), ["/pause?mode=keep", "/release_kv_cache_memory"]),
        (RELEASE, Engine(releases_kv_cache=False), (OFFLOAD,), [TOO_OLD, "/sleep?level=1"]),
        (RELEASE_KEEPING, Engine(releases_kv_cache=False), (KEEPING,), [TOO_OLD, "/sleep?level=1&mode=keep"]),
        (RELEASE, asleep(), (), []),
        (OFFLOAD, Engine(applied=(RELEASE,), is_sleeping=True), (), []),
        (PAUSE, Engine(), (PAUSE,), ["/pause?mode=keep&clear_cache=false"]),
        (PAUSE, asleep(), (), []),
        (DUMP, Engine(), (DUMP,), ["dump False"]),
        (DUMP, Engine(dump_failure="criu failed"), (OFFLOAD,), ["dump False", NO_IMAGE, "/sleep?level=1"]),
        (
            DUMP_KEEPING,
            Engine(dump_failure="criu failed"),
            (KEEPING,),
            ["dump True", NO_IMAGE, "/sleep?level=1&mode=keep"],
        ),
        (DUMP, asleep(dump_failure="criu failed"), (), ["dump False", NO_IMAGE]),
        (DUMP, Engine(needs_suspend=True), (), []),
        (DUMP, suspended(needs_suspend=True), (DUMP,), ["dump False"]),
        (DUMP, suspended(dump_failure="criu failed"), (), ["dump False", STAYS]),
        (SUSPEND, Engine(), (SUSPEND,), ["suspend"]),
        (SUSPEND, suspended(), (), []),
        (SUSPEND, Engine(suspend_failure="refused"), (OFFLOAD,), ["suspend", NOT_SUSPENDED, "/sleep?level=1"]),
        (SUSPEND, asleep(suspend_failure="refused"), (), ["suspend", NOT_SUSPENDED]),
        (
            SUSPEND,
            Engine(applied=(RANKS,), suspend_failure="refused"),
            (OFFLOAD,),
            ["suspend", "/collective_rpc", NOT_SUSPENDED, "/sleep?level=1"],
        ),
        (SUSPEND_FIRST, Engine(), (), []),
        (SUSPEND_FIRST, Engine(needs_suspend=True), (SUSPEND_FIRST,), ["suspend"]),
        (RANKS, Engine(), (RANKS,), ["/collective_rpc"]),
        # A suspended engine is not called.
        (RANKS, suspended(), (), []),
        (OFFLOAD, suspended(), (), []),
        (PAUSE, suspended(), (), []),
        (StopProcess(), asleep(), (StopProcess(),), ["stop"]),
    ],
)
async def test_apply(step: Step, engine: Engine, taken: tuple[Step, ...], calls: list[str]) -> None:
    assert await step.apply(engine) == taken
    assert engine.calls == calls


@pytest.mark.parametrize(
    ("step", "calls"),
    [
        (OFFLOAD, ["/wake_up"]),
        (RELEASE, ["/wake_up?tags=kv_cache", "/reset_prefix_cache"]),
        (RELEASE_KEEPING, ["/wake_up?tags=kv_cache"]),
        (
            Sleep(TIMEOUTS, SleepLevel.DISCARD, keeps_requests=True),
            ["/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache"],
        ),
        (PAUSE, ["/resume"]),
        (SUSPEND, ["resume"]),
        (RANKS, ["/collective_rpc"]),
        (DUMP, []),
        (StopProcess(), []),
    ],
)
async def test_undo(step: Step, calls: list[str]) -> None:
    engine = Engine()
    await step.undo(engine)
    assert engine.calls == calls


@pytest.mark.parametrize(
    ("eviction", "taken", "residency"),
    [
        ("retain+keep_running", (), "retain+keep_running"),
        ("retain+keep_running", (RELEASE,), "retain+keep_running"),
        ("retain+keep_running", (OFFLOAD,), "offload+keep_running"),
        ("offload+keep_running", (DISCARD,), "discard+keep_running"),
        ("discard+keep_running", (OFFLOAD,), "offload+keep_running"),
        ("retain+checkpoint", (DUMP,), "retain+checkpoint"),
        ("offload+checkpoint", (DISCARD, DUMP), "discard+checkpoint"),
        ("retain+checkpoint", (PAUSE, KEEPING), "offload+keep_running"),
        ("retain+checkpoint", (SUSPEND,), "retain+cuda_suspend"),
        ("retain+cuda_suspend", (OFFLOAD,), "offload+keep_running"),
        ("offload+cuda_suspend", (DISCARD, SUSPEND), "discard+cuda_suspend"),
    ],
)
def test_residency_is_what_was_really_done(eviction: str, taken: tuple[Step, ...], residency: str) -> None:
    assert residency_after(Eviction.parse(eviction), taken) == Asleep(Eviction.parse(residency))


def test_residency_after_a_stop() -> None:
    assert residency_after(Eviction.parse("discard+stop"), (DISCARD, StopProcess())) == Cold()


STEPS: list[Step] = [
    Sleep(TIMEOUTS, SleepLevel.OFFLOAD),
    Sleep(TIMEOUTS, SleepLevel.DISCARD),
    RELEASE,
    RELEASE_KEEPING,
    StopProcess(),
    PAUSE,
    SUSPEND,
    DUMP,
]


def test_each_step_has_a_text_of_its_own() -> None:
    words = list(map(str, STEPS))
    assert words == [
        "sleep 1",
        "sleep 2",
        "release kv_cache",
        "release kv_cache keep",
        "stop",
        "pause",
        "suspend",
        "dump",
    ]
    assert list(map(ENGINE.parse_step, words)) == STEPS


@pytest.mark.parametrize("level", SleepLevel)
def test_the_text_of_a_sleep_that_keeps_requests(level: SleepLevel) -> None:
    step = Sleep(TIMEOUTS, level, keeps_requests=True)
    assert str(step) == f"sleep {level.value} keep"
    assert ENGINE.parse_step(str(step)) == step


async def test_a_release_that_fails_or_leaves_the_engine_awake_fails() -> None:
    class Failing(Engine):
        async def post(self, path: str, timeout_seconds: float, document: object = None) -> None:
            if path == "/release_kv_cache_memory":
                raise ControlCallFailed(path, "no selective discard", 500)

    with pytest.raises(ControlCallFailed, match="no selective discard"):
        await RELEASE.apply(Failing())

    class Awake(Engine):
        async def post(self, path: str, timeout_seconds: float, document: object = None) -> None:
            return

    with pytest.raises(ControlCallFailed, match="should be asleep"):
        await RELEASE.apply(Awake())


def test_whether_any_memory_is_freed() -> None:
    retained = Eviction.parse("retain+keep_running")
    assert ENGINE.frees_memory(retained) and sglang_engine().frees_memory(retained)
    llama = LlamaCpp(EngineOptions(name="m", model_path="m.gguf", program="llama-server"))
    assert [one for one in llama.evictions() if not llama.frees_memory(one)] == [retained]


def test_the_texts_of_steps_over_several_ranks() -> None:
    engine = vllm_engine("m", "-tp", "2")
    steps = engine.steps(Eviction.parse("retain+cuda_suspend"), freeze=True)
    words = list(map(str, steps))
    assert words == ["pause", "prepare ranks checkpoint_prepare", "suspend keep"]
    assert tuple(map(engine.parse_step, words)) == steps


def test_unknown_text() -> None:
    with pytest.raises(ValueError, match="no step of a vllm engine is called 'sleep 3'"):
        ENGINE.parse_step("sleep 3")
