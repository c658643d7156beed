"""The steps of each eviction, what each step does to the engine, and how manifests name it."""

from dataclasses import dataclass, field

import pytest

from llmux.core.eviction import Eviction
from llmux.core.states import Asleep, Cold
from llmux.errors import UnsupportedEviction
from llmux.instances.steps import (
    DumpProcess,
    PauseRequests,
    Sleep,
    SleepLevel,
    Step,
    StopProcess,
    parse_step,
    residency_after,
    steps_of,
)

OFFLOAD, DISCARD = Sleep(SleepLevel.OFFLOAD), Sleep(SleepLevel.DISCARD)


@pytest.mark.parametrize(
    ("eviction", "steps"),
    [
        ("retain+keep_running", ()),
        ("offload+keep_running", (OFFLOAD,)),
        ("discard+keep_running", (DISCARD,)),
        ("retain+checkpoint", (DumpProcess(),)),
        ("offload+checkpoint", (OFFLOAD, DumpProcess())),
        ("discard+checkpoint", (DISCARD, DumpProcess())),
        ("retain+stop", (StopProcess(),)),
        ("offload+stop", (StopProcess(),)),
        ("discard+stop", (StopProcess(),)),
    ],
)
def test_steps(eviction: str, steps: tuple[object, ...]) -> None:
    assert steps_of(Eviction.parse(eviction)) == steps


@pytest.mark.parametrize(
    ("eviction", "steps"),
    [
        ("offload+keep_running", (Sleep(SleepLevel.OFFLOAD, keeps_requests=True),)),
        ("discard+checkpoint", (Sleep(SleepLevel.DISCARD, keeps_requests=True), DumpProcess(keeps_requests=True))),
        ("retain+checkpoint", (PauseRequests(), DumpProcess(keeps_requests=True))),
    ],
)
def test_steps_that_keep_requests(eviction: str, steps: tuple[object, ...]) -> None:
    assert steps_of(Eviction.parse(eviction), freeze=True) == steps


def test_an_unsupported_eviction_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedEviction, match=r"offload\+cuda_suspend.*not available yet"):
        steps_of(Eviction.parse("offload+cuda_suspend"))


@dataclass(slots=True)
class Engine:
    """Records what the steps do to it."""

    is_asleep: bool = False
    has_host_memory: bool = True
    dump_failure: str | None = None
    calls: list[str] = field(default_factory=list)

    async def fits_into_host_memory(self) -> bool:
        return self.has_host_memory

    async def sleep(self, level: SleepLevel, *, keep_requests: bool) -> None:
        self.calls.append(f"sleep {level} {keep_requests}")

    async def wake_up(self, level: SleepLevel, *, keep_requests: bool) -> None:
        self.calls.append(f"wake up {level} {keep_requests}")

    async def pause(self) -> None:
        self.calls.append("pause")

    async def resume(self) -> None:
        self.calls.append("resume")

    async def dump(self, *, keep_requests: bool) -> str | None:
        self.calls.append(f"dump {keep_requests}")
        return self.dump_failure

    async def stop(self) -> None:
        self.calls.append("stop")

    def note_fallback(self, what: str, reason: str) -> None:
        self.calls.append(f"{what}: {reason}")


KEEPING = Sleep(SleepLevel.OFFLOAD, keeps_requests=True)
TOO_LITTLE = "the weights are discarded instead of offloaded: too little host memory for them"
NO_IMAGE = "no image was made, the engine sleeps instead: criu failed"


@pytest.mark.parametrize(
    ("step", "engine", "taken", "calls"),
    [
        (OFFLOAD, Engine(), (OFFLOAD,), ["sleep 1 False"]),
        (KEEPING, Engine(), (KEEPING,), ["sleep 1 True"]),
        (OFFLOAD, Engine(has_host_memory=False), (DISCARD,), [TOO_LITTLE, "sleep 2 False"]),
        (DISCARD, Engine(has_host_memory=False), (DISCARD,), ["sleep 2 False"]),
        (DISCARD, Engine(is_asleep=True), (), []),
        (PauseRequests(), Engine(), (PauseRequests(),), ["pause"]),
        (PauseRequests(), Engine(is_asleep=True), (), []),
        (DumpProcess(), Engine(), (DumpProcess(),), ["dump False"]),
        (DumpProcess(), Engine(dump_failure="criu failed"), (OFFLOAD,), ["dump False", NO_IMAGE, "sleep 1 False"]),
        (
            DumpProcess(keeps_requests=True),
            Engine(dump_failure="criu failed"),
            (KEEPING,),
            ["dump True", NO_IMAGE, "sleep 1 True"],
        ),
        (DumpProcess(), Engine(is_asleep=True, dump_failure="criu failed"), (), ["dump False", NO_IMAGE]),
        (StopProcess(), Engine(is_asleep=True), (StopProcess(),), ["stop"]),
    ],
)
async def test_apply(step: Step, engine: Engine, taken: tuple[Step, ...], calls: list[str]) -> None:
    assert await step.apply(engine) == taken
    assert engine.calls == calls


@pytest.mark.parametrize(
    ("step", "calls"),
    [
        (OFFLOAD, ["wake up 1 False"]),
        (Sleep(SleepLevel.DISCARD, keeps_requests=True), ["wake up 2 True"]),
        (PauseRequests(), ["resume"]),
        (DumpProcess(), []),
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
        ("offload+keep_running", (DISCARD,), "discard+keep_running"),
        ("discard+keep_running", (OFFLOAD,), "offload+keep_running"),
        ("retain+checkpoint", (DumpProcess(),), "retain+checkpoint"),
        ("offload+checkpoint", (DISCARD, DumpProcess()), "discard+checkpoint"),
        ("retain+checkpoint", (PauseRequests(), KEEPING), "offload+keep_running"),
    ],
)
def test_residency_is_what_was_really_done(eviction: str, taken: tuple[Step, ...], residency: str) -> None:
    assert residency_after(Eviction.parse(eviction), taken) == Asleep(Eviction.parse(residency))


def test_residency_after_a_stop() -> None:
    assert residency_after(Eviction.parse("discard+stop"), (DISCARD, StopProcess())) == Cold()


STEPS: list[Step] = [
    Sleep(SleepLevel.OFFLOAD),
    Sleep(SleepLevel.DISCARD),
    StopProcess(),
    PauseRequests(),
    DumpProcess(),
]


def test_each_step_has_a_text_of_its_own() -> None:
    words = list(map(str, STEPS))
    assert words == ["sleep 1", "sleep 2", "stop", "pause", "dump"]
    assert list(map(parse_step, words)) == STEPS


@pytest.mark.parametrize("level", SleepLevel)
def test_the_text_of_a_sleep_that_keeps_requests(level: SleepLevel) -> None:
    step = Sleep(level, keeps_requests=True)
    assert str(step) == f"sleep {level.value} keep"
    assert parse_step(str(step)) == step


def test_unknown_text() -> None:
    with pytest.raises(ValueError, match="no step is called 'sleep 3'"):
        parse_step("sleep 3")
