from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from llmux.core.eviction import Eviction
from llmux.engines import vllm
from llmux.engines.calls import ControlTimeouts
from llmux.engines.vllm import SleepLevel
from llmux.errors import ControlCallFailed
from llmux.instances.control_calls import ControlSession, EngineEndpoints
from llmux.instances.health import Health, check_health, listens
from tests.support.engines import vllm_engine
from tests.support.simulated_engine import engine

TIMEOUTS = ControlTimeouts()
DEV_MODE = {"VLLM_SERVER_DEV_MODE": "1"}


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (
            ["torch.OutOfMemoryError: CUDA out of memory.", "RuntimeError: Engine core initialization failed."],
            "out of GPU memory",
        ),
        (["vllm: error: unrecognized arguments: --max-num-seqs 4"], "wrong extra_args"),
        (["OSError: [Errno 98] Address already in use"], "its port is taken"),
        (["huggingface_hub.errors.GatedRepoError: 401 Client Error."], "no access to its weights"),
        (["OSError: x is not a local folder and is not a valid model identifier"], "its model_path is not found"),
        (["CUDA error: an illegal memory access", "OSError: [Errno 28] No space left on device"], "the disk is full"),
        (["INFO: started"], None),
        ([], None),
    ],
)
def test_what_the_last_lines_tell(lines: list[str], cause: str | None) -> None:
    assert vllm_engine().known_cause(lines) == cause


def test_command_line() -> None:
    line = vllm_engine("name", "--max-model-len", "4096", model_path="org/model").command_line(8001)
    assert line == (
        *("vllm", "serve", "org/model", "--served-model-name", "name", "org/model"),
        *("--host", "127.0.0.1", "--port", "8001", "--enable-sleep-mode", "--max-model-len", "4096"),
    )


def test_environment_has_the_engines_own_directory_and_the_models_settings_win() -> None:
    engine = vllm_engine(environment={"NO_COLOR": "0", "X": "1"})
    made = engine.environment({"PATH": "/bin", "TMPDIR": "/elsewhere"}, "/short", checkpointable=False)
    assert made["PATH"] == "/bin"
    assert (made["TMPDIR"], made["VLLM_RPC_BASE_PATH"]) == ("/short", "/short")
    assert made["VLLM_SERVER_DEV_MODE"] == "1"
    assert (made["NO_COLOR"], made["X"]) == ("0", "1")


@pytest.mark.parametrize("level", SleepLevel)
async def test_a_woken_engine_answers_as_before(level: SleepLevel) -> None:
    async with ControlSession() as session, engine("--enable-sleep-mode", environment=DEV_MODE) as process:
        endpoints = EngineEndpoints(session, process.port)
        before = await process.answer("hello")
        await vllm.fall_asleep(endpoints, level, TIMEOUTS)
        assert (await process.stats())["sleep_level"] == level.value
        await vllm.wake_up(endpoints, level, TIMEOUTS)
        assert await process.answer("hello") == before
        assert (await process.stats())["garbage_tokens"] == 0


@pytest.mark.parametrize(
    ("fault", "level", "fails"),
    [
        ("sleep-500", SleepLevel.OFFLOAD, "sleep"),
        ("wake-500", SleepLevel.OFFLOAD, "wake"),
        ("wake-500", SleepLevel.DISCARD, "wake"),
        ("reload-500", SleepLevel.DISCARD, "wake"),
    ],
)
async def test_failures_name_the_call_and_the_status(fault: str, level: SleepLevel, fails: str) -> None:
    async with (
        ControlSession() as session,
        engine("--enable-sleep-mode", "--sim-fault", fault, environment=DEV_MODE) as process,
    ):
        endpoints = EngineEndpoints(session, process.port)
        if fails == "wake":
            await vllm.fall_asleep(endpoints, level, TIMEOUTS)
        call = vllm.fall_asleep if fails == "sleep" else vllm.wake_up
        with pytest.raises(ControlCallFailed, match=r"POST /.*: status 500") as failure:
            await call(endpoints, level, TIMEOUTS)
        assert failure.value.status == 500


@pytest.mark.parametrize("sleeps", [True, False])
async def test_an_engine_that_says_200_and_does_nothing_is_not_believed(sleeps: bool) -> None:
    class Idle:
        async def post(self, path: str, timeout_seconds: float, document: object = None) -> None:
            """Answer 200."""

        async def get(self, path: str, timeout_seconds: float) -> dict[str, bool]:
            return {"is_sleeping": sleeps}

    endpoints: Any = Idle()
    call = vllm.wake_up if sleeps else vllm.fall_asleep
    with pytest.raises(ControlCallFailed, match=f"should be {'awake' if sleeps else 'asleep'}"):
        await call(endpoints, SleepLevel.OFFLOAD, TIMEOUTS)


async def test_a_call_to_an_engine_that_hangs_times_out() -> None:
    async with (
        ControlSession() as session,
        engine("--enable-sleep-mode", "--sim-fault", "wake-hang", environment=DEV_MODE) as process,
    ):
        endpoints = EngineEndpoints(session, process.port)
        await vllm.fall_asleep(endpoints, SleepLevel.OFFLOAD, TIMEOUTS)
        with pytest.raises(ControlCallFailed, match=r"no answer within 0.2 s") as failure:
            await vllm.wake_up(endpoints, SleepLevel.OFFLOAD, ControlTimeouts(wake_seconds=0.2))
        assert failure.value.is_timeout


async def test_health(tmp_path: Path) -> None:
    async with ControlSession() as session:
        async with engine() as process:
            endpoints = EngineEndpoints(session, process.port)
            assert await check_health(endpoints, 5.0) is Health.ALIVE
            assert listens(process.pid, process.port)
            assert not listens(process.pid, process.port + 1)
        assert await check_health(endpoints, 5.0) is Health.DEAD
        assert not listens(process.pid, process.port)


def test_the_name_is_served_first_then_the_path_then_the_files_own_names() -> None:
    own = vllm_engine("name", "--served-model-name", "gpt-4", "name", "--seed", "1", model_path="org/a")
    assert own.served_names == ("name", "org/a", "gpt-4")
    assert own.arguments == ("--seed", "1")
    assert vllm_engine("org/a").served_names == ("org/a",)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"extra_args": ["--api-key", "k1", "k2"]}, "k1"),
        ({"extra_args": ["--api-key=k1"]}, "k1"),
        ({"environment": {"VLLM_API_KEY": "k3"}}, "k3"),
        ({"extra_args": ["--api-key", "k1"], "environment": {"VLLM_API_KEY": "k3"}}, "k1"),
    ],
)
def test_the_engines_own_api_key(keys: dict[str, Any], expected: str | None) -> None:
    assert vllm_engine("m", *keys.pop("extra_args", ()), **keys).api_key == expected


@pytest.mark.parametrize(
    ("arguments", "share"),
    [
        ([], 0.92),
        (["--gpu-memory-utilization", "0.85"], 0.85),
        (["--gpu_memory_utilization=0.5"], 0.5),
        (["--gpu-memory-utilization", "most"], None),
        (["--kv-cache-memory-bytes", "4G", "--gpu-memory-utilization", "0.9"], None),
    ],
)
def test_the_share_of_memory_that_a_start_needs(arguments: list[str], share: float | None) -> None:
    assert vllm_engine("m", *arguments).start_share == share


def test_weights_are_counted_and_other_files_are_not(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    weights = vllm_engine(model_path=str(tmp_path)).weight_files()
    assert {file.name for file in weights} == {"model-1.safetensors", "model-2.safetensors"}


def test_the_weights_of_a_model_on_a_hub_are_not_local(tmp_path: Path) -> None:
    assert not list(vllm_engine(model_path=str(tmp_path / "meta-llama" / "Llama-3.1-8B")).weight_files())


@pytest.mark.parametrize(
    ("extra_args", "model_path", "eviction", "reason"),
    [
        (["--load-format", "runai_streamer"], "org/a", "discard+keep_running", "runai_streamer cannot reload"),
        ([], "s3://bucket/a", "discard+checkpoint", "object store are streamed"),
        (["--load-format", "runai_streamer"], "org/a", "offload+keep_running", None),
        (["--load-format", "runai_streamer"], "org/a", "discard+stop", None),
        (["--load-format", "auto"], "org/a", "discard+keep_running", None),
    ],
)
def test_weights_that_cannot_be_reloaded_are_not_discarded(
    extra_args: list[str], model_path: str, eviction: str, reason: str | None
) -> None:
    engine = vllm_engine("m", *extra_args, model_path=model_path)
    problems = list(engine.problems(Eviction.parse(eviction)))
    assert [problem.path for problem in problems] == (["eviction"] if reason else [])
    assert not reason or reason in problems[0].message


def test_compiled_kernels_are_kept_from_one_start_to_the_next(tmp_path: Path) -> None:
    def caches(**options: Any) -> dict[str, str]:
        made = vllm_engine(cache_directory=tmp_path, **options).environment(
            {"TRITON_CACHE_DIR": "/mine"}, "/t", checkpointable=False
        )
        return {name: made[name] for name in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}

    program = tmp_path / "vllm"
    program.write_text("1.0")
    first = caches(program=str(program))
    assert first == caches(program=str(program))
    assert first["VLLM_CACHE_ROOT"].startswith(str(tmp_path))
    assert first["TRITON_CACHE_DIR"] == "/mine", "what the user has set stays"
    assert first != caches(program=str(program), model_path="another")
    program.write_text("1.0.1")
    assert first != caches(program=str(program)), "another version compiles anew"


class Refusing:
    """Endpoints of an engine that refuses one path and answers all else."""

    def __init__(self, path: str) -> None:
        self.refused = path
        self.asked: list[str] = []

    async def get(self, path: str, timeout_seconds: float) -> Any:
        return {"is_sleeping": False}

    async def post(self, path: str, timeout_seconds: float, document: Mapping[str, Any] | None = None) -> Any:
        self.asked.append(path)
        if path == self.refused:
            raise ControlCallFailed(f"POST {path}", "status 500", 500)

    async def request(
        self, method: str, path: str, timeout_seconds: float, document: Mapping[str, Any] | None = None
    ) -> Any:
        return await self.post(path, timeout_seconds, document)


async def test_a_prefix_cache_that_cannot_be_reset_is_no_failure_of_a_wake() -> None:
    refusing = Refusing("/reset_prefix_cache")
    await vllm.wake_up(refusing, SleepLevel.DISCARD, TIMEOUTS)
    assert "/reset_prefix_cache" in refusing.asked
    with pytest.raises(ControlCallFailed):
        await vllm.wake_up(Refusing("/collective_rpc"), SleepLevel.DISCARD, TIMEOUTS)


class Recorded:
    """An engine that does what it is told, and remembers the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.asleep = False

    async def post(self, path: str, timeout_seconds: float, document: object = None) -> None:
        self.calls.append(path)
        self.asleep = not path.startswith("/wake_up")

    async def get(self, path: str, timeout_seconds: float) -> dict[str, bool]:
        if path == "/release_kv_cache_memory":
            raise ControlCallFailed("GET", "status 405", status=405)
        return {"is_sleeping": self.asleep}


@pytest.mark.parametrize("flags", [("--kv-offloading-size", "8"), ("--kv-transfer-config", '{"kv_connector": "X"}')])
def test_an_engine_with_a_connector_keeps_kv_cache_outside_the_gpu(flags: tuple[str, str]) -> None:
    assert vllm_engine("a", *flags).offloads_kv
    assert not vllm_engine("a").offloads_kv


@pytest.mark.parametrize(
    ("eviction", "expected"),
    [
        ("offload+keep_running", "/sleep?level=1&mode=keep&clear_connector_cache=false"),
        ("retain+keep_running", "/pause?mode=keep&clear_connector_cache=false"),
        # The weights are read from their files again, which may be others by then.
        ("discard+keep_running", "/sleep?level=2&mode=keep"),
    ],
)
async def test_offloaded_kv_cache_is_left_where_it_is_while_the_weights_stay_the_same(
    eviction: str, expected: str
) -> None:
    for flags, call in ((("--kv-offloading-size", "8"), expected), ((), expected.removesuffix(vllm.KEEP_OFFLOADED_KV))):
        endpoints = Recorded()
        controls: Any = Controls(endpoints)
        for step in vllm_engine("a", *flags).steps(Eviction.parse(eviction), freeze=True):
            await step.apply(controls)
        assert endpoints.calls[0] == call


class Controls:
    """The controls of an engine that has taken no step yet, on a host with memory enough."""

    applied = ()

    def __init__(self, endpoints: Recorded) -> None:
        self.endpoints = endpoints

    async def fits_into_host_memory(self) -> bool:
        return True

    async def perform(self, work: Coroutine[Any, Any, object], what: str) -> object:
        return await work
