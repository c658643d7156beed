"""SGLang: its command line, and in which order it is told to give up its memory and to take it back."""

from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from llmux.core.eviction import STOP, Eviction, Weights
from llmux.core.names import NameKind
from llmux.engines.base import Abilities
from llmux.engines.registry import NEVER_FORWARDED
from llmux.engines.sglang import Release, can_retract
from llmux.engines.steps import Step, SuspendGpu
from llmux.errors import ControlCallFailed
from tests.support.engines import sglang_engine

T = TypeVar("T")
RETAIN = Eviction.parse("retain+keep_running")
OFFLOAD = Eviction.parse("offload+keep_running")
DISCARD = Eviction.parse("discard+keep_running")
RELEASE = "/release_memory_occupation"
RESUME = "/resume_memory_occupation"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("python3", ("python3", "-m", "sglang.launch_server")),
        ("/opt/venv/bin/python3.12", ("/opt/venv/bin/python3.12", "-m", "sglang.launch_server")),
        ("/opt/venv/bin/sglang", ("/opt/venv/bin/sglang", "serve")),
        ("/opt/launcher", ("/opt/launcher",)),
    ],
)
def test_the_program_may_be_an_interpreter_the_command_or_any_other(program: str, words: tuple[str, ...]) -> None:
    engine = sglang_engine("name", "--context-length", "4096", program=program, model_path="org/model")
    assert engine.command_line(8001) == (
        *words,
        *("--model-path", "org/model", "--served-model-name", "name", "--host", "127.0.0.1", "--port", "8001"),
        *("--enable-memory-saver", "--context-length", "4096"),
    )


def test_weights_are_kept_in_host_memory_only_if_the_model_may_leave_that_way() -> None:
    flag = "--enable-weights-cpu-backup"
    assert flag not in sglang_engine().command_line(1)
    assert sglang_engine(may_offload=True).command_line(1).count(flag) == 1
    assert sglang_engine("m", flag, may_offload=True).command_line(1).count(flag) == 1
    assert [problem.path for problem in sglang_engine("m", flag).problems(DISCARD)] == ["extra_args"]
    assert not list(sglang_engine("m", flag).problems(OFFLOAD))


def test_a_health_check_does_not_generate() -> None:
    made = sglang_engine(environment={"X": "1"}).environment({"PATH": "/bin"}, "/short", checkpointable=False)
    assert made == {
        "PATH": "/bin",
        "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
        "TMPDIR": "/short",
        "X": "1",
    }


def test_what_its_arguments_say() -> None:
    engine = sglang_engine(
        *("m", "--max-running-requests", "7", "--tp", "2", "--mem-fraction-static", "0.8", "--context-length", "4096"),
        *("--api-key", "secret"),
    )
    assert (engine.max_in_flight, engine.gpu_count, engine.start_share) == (7, 2, 0.8)
    assert (engine.max_model_length, engine.api_key) == (4096, "secret")
    assert sglang_engine().start_share is None


def test_an_adapter_is_asked_for_behind_the_models_name() -> None:
    words = ("sql=/l", "/unnamed", '{"lora_name": "law", "lora_path": "/law"}', '{"lora_name": 1}', "{broken}")
    engine = sglang_engine("m", "--lora-paths", "overridden=/o", "--lora-paths", *words)
    assert engine.adapters == (("sql", "/l"), ("/unnamed", "/unnamed"), ("law", "/law"))
    asked = {name.name: name.served for name in engine.names() if name.kind is NameKind.ADAPTER}
    assert asked == {"sql": "m:sql", "/unnamed": "m:/unnamed", "law": "m:law"}, "a bare name is answered without it"


@pytest.mark.parametrize(
    ("name", "words", "eviction", "path"),
    [
        ("m", ("--admin-api-key", "x"), OFFLOAD, "extra_args"),
        ("m", ("--weight-cache-mode", "attach"), OFFLOAD, "extra_args"),
        ("m", ("--weight-cache-mode", "attach"), STOP, None),
        ("m", ("--weight-cache-mode", "off"), OFFLOAD, None),
        ("qwen:7b", (), OFFLOAD, "engine"),
    ],
)
def test_what_cannot_work_is_said(name: str, words: tuple[str, ...], eviction: Eviction, path: str | None) -> None:
    problems = list(sglang_engine(name, *words).problems(eviction))
    assert [problem.path for problem in problems] == ([] if path is None else [path])


class Controls:
    """Records the calls; paths in ``refused`` fail with a status."""

    def __init__(self, refused: dict[str, int] | None = None, version: str = "0.5.9") -> None:
        self.applied: tuple[Step, ...] = ()
        self.refused = refused or {}
        self.version = version
        self.calls: list[tuple[str, object]] = []

    @property
    def endpoints(self) -> "Controls":
        return self

    async def post(self, path: str, timeout_seconds: float, document: object = None) -> object:
        self.calls.append((path, document))
        if path in self.refused:
            raise ControlCallFailed(f"POST {path}", "no", self.refused[path])
        return None

    async def get(self, path: str, timeout_seconds: float) -> object:
        if path in self.refused:
            raise ControlCallFailed(f"GET {path}", "no", self.refused[path])
        if path == "/v1/models":
            return {"data": [{"max_model_len": 32768}]}
        # ``max_total_num_tokens`` is what the KV cache holds, whatever one request may have.
        return {"version": self.version, "context_length": None, "max_total_num_tokens": 999999}

    async def perform(self, work: Coroutine[Any, Any, T], what: str) -> T:
        return await work


async def take(controls: Any, eviction: Eviction, *, freeze: bool) -> list[tuple[str, object]]:
    for step in sglang_engine(model_path="org/m").steps(eviction, freeze=freeze):
        controls.applied += await step.apply(controls)
    taken, controls.calls = controls.calls, []
    return taken


async def come_back(controls: Any) -> list[tuple[str, object]]:
    for step in reversed(controls.applied):
        await step.undo(controls)
    return controls.calls


async def test_weights_that_are_retained_are_neither_released_nor_resumed() -> None:
    controls = Controls()
    assert await take(controls, RETAIN, freeze=False) == [(RELEASE, {"tags": ["kv_cache"]})]
    assert await come_back(controls) == [(RESUME, {"tags": ["kv_cache"]}), ("/flush_cache", None)]


@pytest.mark.parametrize("eviction", [OFFLOAD, DISCARD])
async def test_each_tag_is_released_once_and_resumed_once_weights_first(eviction: Eviction) -> None:
    controls = Controls()
    assert await take(controls, eviction, freeze=False) == [(RELEASE, {"tags": ["kv_cache", "weights", "cuda_graph"]})]
    assert await take(controls, eviction, freeze=False) == [], "a second release would kill it"
    reload = [("/update_weights_from_disk", {"model_path": "org/m"})] if eviction == DISCARD else []
    assert await come_back(controls) == [
        (RESUME, {"tags": ["weights", "cuda_graph"]}),
        *reload,
        (RESUME, {"tags": ["kv_cache"]}),
        ("/flush_cache", None),
    ]


async def test_requests_are_retracted_before_the_release_and_go_on_after_the_return() -> None:
    controls = Controls()
    taken = await take(controls, OFFLOAD, freeze=True)
    assert [path for path, _ in taken] == ["/pause_generation", RELEASE]
    assert taken[0][1] == {"mode": "retract"}
    assert any(step.keeps_requests for step in controls.applied)
    back = [path for path, _ in await come_back(controls)]
    assert back == [RESUME, RESUME, "/continue_generation"], "the cache of what goes on is not flushed"


@pytest.mark.parametrize("refused", [{}, {"/server_info": 404}, {"/get_server_info": 404}])
async def test_what_it_says_of_itself(refused: dict[str, int]) -> None:
    controls = Controls(refused)
    abilities = await sglang_engine().find_abilities(controls, freezes=True)
    assert (abilities.keeps_requests, abilities.version, abilities.max_model_length) == (True, "0.5.9", 32768)
    assert not controls.calls, "asking changes nothing"
    assert not (await sglang_engine().find_abilities(controls, freezes=False)).keeps_requests


async def test_an_engine_that_says_nothing_of_itself_keeps_no_requests() -> None:
    controls = Controls({"/server_info": 404, "/get_server_info": 404, "/v1/models": 404})
    assert await sglang_engine().find_abilities(controls, freezes=True) == Abilities()


@pytest.mark.parametrize(
    ("version", "keeps"),
    [
        ("0.5.5.post3", False),  # every pause aborts, and says 200
        ("0.5.6", False),  # loses what has just been prefilled
        ("0.5.8", True),
        ("0.5.9+cu130", True),
        ("0.5.10", False),  # dies when it is released with requests waiting
        ("0.5.20", False),
        ("0.5.21", True),
        ("0.5.23.post1", True),
        ("0.6.0", True),
        ("0.5.21.dev7", False),
        ("unknown", False),
        (None, False),
    ],
)
def test_requests_are_kept_by_versions_that_survive_it(version: str | None, keeps: bool) -> None:
    assert can_retract(version) is keeps


def test_steps_are_read_back_from_their_text() -> None:
    engine = sglang_engine()
    for eviction in (OFFLOAD, DISCARD):
        (release,) = engine.steps(eviction)
        assert isinstance(release, Release)
        assert engine.parse_step(str(release)) == release


def test_it_is_suspended_with_or_without_a_release_before() -> None:
    (suspend,) = sglang_engine().steps(Eviction.parse("retain+cuda_suspend"))
    assert isinstance(suspend, SuspendGpu)
    # Without a copy in host memory, which nobody has asked for, only discarded weights come back.
    assert isinstance(suspend.otherwise, Release) and suspend.otherwise.leaves_weights is Weights.DISCARD
    release, after = sglang_engine().steps(Eviction.parse("offload+cuda_suspend"))
    assert after == SuspendGpu(otherwise=release)


def test_its_controls_are_never_forwarded() -> None:
    assert {
        "release_memory_occupation",
        "resume_memory_occupation",
        "flush_cache",
        "pause_generation",
    } <= NEVER_FORWARDED
