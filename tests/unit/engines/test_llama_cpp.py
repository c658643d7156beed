"""llama-server: what its command line becomes, what is refused, how it leaves and what it says."""

import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llmux.core.eviction import STOP, Eviction, Process, Weights
from llmux.engines.base import EngineOptions
from llmux.engines.calls import Endpoints
from llmux.engines.llama_cpp import DEFAULT_SLOTS, LlamaCpp, NoGpu, Prompts, SavePrompts
from llmux.engines.prompt_files import PromptFiles
from llmux.engines.registry import KINDS
from llmux.engines.saved_prompts import Report
from llmux.engines.steps import DumpProcess, Step, StopProcess, SuspendGpu
from llmux.errors import ControlCallFailed
from tests.support import gguf_files

pytestmark = pytest.mark.anyio

CHECKPOINT = Eviction(Weights.RETAIN, Process.CHECKPOINT)


def llama(*extra_args: str, **options: Any) -> LlamaCpp:
    given = {"name": "m", "model_path": "/models/m.gguf", "program": "llama-server"} | options
    return LlamaCpp(EngineOptions(extra_args=extra_args, **given))


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    return gguf_files.write(tmp_path / "m.gguf", tensors=[gguf_files.f32("t", (32, 4))])


def messages(engine: LlamaCpp, eviction: Eviction = STOP) -> list[str]:
    return [f"{problem.path}: {problem.message}" for problem in engine.problems(eviction)]


def warnings(engine: LlamaCpp) -> list[str]:
    return [f"{problem.path}: {problem.message}" for problem in engine.warnings()]


def test_adapters_are_models_that_requests_choose_by_their_positions() -> None:
    engine = llama(adapters={"sql": "/lora/sql.gguf", "chat": "/lora/chat.gguf"})
    command = engine.command_line(8001)
    assert command[-4:] == ("--lora", "/lora/sql.gguf", "--lora", "/lora/chat.gguf")
    scales = {name.name: [one["scale"] for one in name.added_fields["lora"]] for name in engine.names()}  # type: ignore[attr-defined]
    assert scales == {"m": [0.0, 0.0], "sql": [1.0, 0.0], "chat": [0.0, 1.0]}
    assert [one["id"] for one in engine.added_fields()["lora"]] == [0, 1]  # type: ignore[attr-defined]
    assert llama().added_fields() == {}


def test_adapters_exclude_what_would_apply_to_every_request() -> None:
    assert messages(llama("--lora", "/lora/x.gguf", adapters={"sql": "/lora/sql.gguf"})) == [
        "adapters: adapters and --lora exclude each other: requests choose adapters by their positions"
    ]
    assert messages(llama(adapters={"sql": "/lora/a,b.gguf"})) == [
        "adapters.sql: llama-server takes a comma for the end of a path"
    ]


def test_with_adapters_no_prompts_are_saved(tmp_path: Path, model_file: Path) -> None:
    options: dict[str, Any] = {
        "model_path": str(model_file),
        "cache_directory": tmp_path,
        "saved_prompts_bytes": 1 << 30,
    }
    assert isinstance(llama("-ngl", "0", **options).prepare_start(), Prompts)
    assert llama("-ngl", "0", adapters={"sql": "/lora/sql.gguf"}, **options).prepare_start() is None


def test_it_is_a_kind_of_engine() -> None:
    assert KINDS["llama_cpp"] is LlamaCpp


def test_a_local_file_is_loaded_onto_the_gpu_or_not_at_all() -> None:
    assert llama("-c", "8192").command_line(8001) == (
        *("llama-server", "-m", "/models/m.gguf", "--no-ui", "--offline"),
        *("--alias", "m", "--host", "127.0.0.1", "--port", "8001", "-np", "1"),
        *("-ngl", "all", "--fit", "off"),
        *("-c", "8192"),
    )


@pytest.mark.parametrize(
    ("path", "repository"),
    [
        ("hf:ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"),
        ("ggml-org/gemma-3-4b-it-GGUF", "ggml-org/gemma-3-4b-it-GGUF"),
        ("ggml-org/gemma-3-4b-it-GGUF:Q8_0", "ggml-org/gemma-3-4b-it-GGUF:Q8_0"),
    ],
)
def test_a_repository_is_downloaded(path: str, repository: str) -> None:
    words = llama(model_path=path).command_line(1)
    assert words[1:4] == ("-hf", repository, "--no-ui")
    assert "--offline" not in words and "-m" not in words


@pytest.mark.parametrize("path", ["models/m.gguf", "./a/b", "/a/b", "m.gguf"])
def test_what_is_written_as_a_file_is_one(path: str) -> None:
    assert llama(model_path=path).command_line(1)[1:3] == ("-m", path)


def test_a_file_that_is_there_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m").touch()
    monkeypatch.chdir(tmp_path)
    assert llama(model_path="models/m").command_line(1)[1:3] == ("-m", "models/m")


@pytest.mark.parametrize(
    ("extra_args", "added"),
    [
        ((), ["-ngl", "all", "--fit", "off"]),
        (("-ngl", "20"), ["--fit", "off"]),
        (("--gpu-layers", "20", "-fit", "on"), []),
        (("--fit", "on"), ["-ngl", "all"]),
        (("-ngl", "0"), []),
        (("-dev", "none"), []),
        (("--device", "CUDA1"), ["-ngl", "all", "--fit", "off"]),
    ],
)
def test_the_gpu_is_asked_for_unless_the_processor_is(extra_args: tuple[str, ...], added: list[str]) -> None:
    words = llama(*extra_args).command_line(1)
    assert list(words[words.index("-np") + 2 : len(words) - len(extra_args)]) == added


@pytest.mark.parametrize(
    ("extra_args", "slots"),
    [
        ((), DEFAULT_SLOTS),
        (("-np", "4"), 4),
        (("--parallel", "3"), 3),
        (("--n_parallel", "3"), DEFAULT_SLOTS),
        (("-np", "2", "--parallel", "8"), 8),
    ],
)
def test_the_number_of_slots_is_always_said(extra_args: tuple[str, ...], slots: int) -> None:
    engine = llama(*extra_args)
    words = engine.command_line(1)
    assert engine.max_in_flight == slots
    assert words[words.index("-np") + 1] == str(slots)


@pytest.mark.parametrize("number", ["0", "-1", "x", "2x", ""])
def test_a_wrong_number_of_slots_is_said(number: str) -> None:
    with pytest.raises(ValueError, match="--parallel needs a whole number"):
        assert llama("-np", number).max_in_flight


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--sleep-idle-seconds", "without asking llmux"),
        ("--models-dir", "router"),
        ("--models-new", "router"),
        ("--no-models-autoload", "router"),
        ("--tools", "reach files"),
        ("--agent", "reach files"),
        ("-ag", "reach files"),
        ("--mcp-servers-config", "reach files"),
        ("--ui-mcp-proxy", "reach files"),
        ("--webui-mcp-proxy", "reach files"),
        ("--api-prefix", "paths as they are"),
        ("--host", "loopback"),
        ("--port", "loopback"),
        ("--ssl-key-file", "TLS"),
        ("--ssl_cert_file", "TLS"),
        ("--reuse-port", "share a port"),
        ("-a", "model's name"),
        ("--alias", "model's name"),
        ("-m", "another model"),
        ("-hf", "another model"),
        ("--hf-repo", "another model"),
        ("-mu", "another model"),
        ("--slot-save-path", "where prompts are saved"),
        ("--api-key-file", "would not know the key"),
        ("--lora-init-without-apply", "earlier requests"),
    ],
)
def test_refused_flags_each_have_a_reason(flag: str, reason: str) -> None:
    (found,) = [message for message in messages(llama(flag, "x")) if message.startswith("extra_args")]
    assert flag in found and reason in found


@pytest.mark.parametrize("words", [("--no-agent",), ("--no-ui-mcp-proxy",), ("--temp", "-1"), ("-hff", "m.gguf")])
def test_harmless_flags_are_not_refused(words: tuple[str, ...]) -> None:
    assert messages(llama(*words)) == []


def test_a_value_cannot_share_a_word_with_its_flag() -> None:
    assert messages(llama("--ctx-size=8192")) == [
        "extra_args: --ctx-size=VALUE is one word, which llama-server does not take apart"
    ]


def test_variables_that_llmux_must_know_are_refused() -> None:
    variables = {"LLAMA_ARG_HOST": "0.0.0.0", "LLAMA_ARG_CTX_SIZE": "1", "LLAMA_ARG_N_PARALLEL": "2"}
    found = messages(llama(environment={**variables, "LLAMA_ARG_THREADS": "2", "CUDA_VISIBLE_DEVICES": "0"}))
    assert [message.partition(":")[0] for message in found] == [f"env.{name}" for name in variables]


def test_what_it_would_inherit_is_removed() -> None:
    inherited = {"LLAMA_ARG_CTX_SIZE": "1", "LLAMA_API_KEY": "k", "HF_TOKEN": "t", "PATH": "/bin", "AIP_MODE": "x"}
    environment = llama(environment={"LLAMA_ARG_THREADS": "2"}).environment(inherited, "/t", checkpointable=False)
    assert environment == {"HF_TOKEN": "t", "PATH": "/bin", "TMPDIR": "/t", "LLAMA_ARG_THREADS": "2"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"extra_args": ("--api-key", "k1,k2")}, "k1"),
        ({"environment": {"LLAMA_API_KEY": "k3"}}, "k3"),
        ({"extra_args": ("--api-key", "k1"), "environment": {"LLAMA_API_KEY": "k3"}}, "k1"),
    ],
)
def test_its_own_api_key(keys: dict[str, Any], expected: str | None) -> None:
    assert llama(*keys.pop("extra_args", ()), **keys).api_key == expected


@pytest.mark.parametrize(
    ("extra_args", "length"),
    [
        (("-c", "8192"), 8192),
        (("-c", "8192", "-np", "4"), 2048),
        (("--ctx-size", "8192", "-np", "4", "--kv-unified"), 8192),
        ((), None),
        (("-c", "8192", "--fit", "on"), None),
        (("-c", "8192", "--fit", "on", "-ngl", "0"), 8192),
        (("-c", "8k"), None),
    ],
)
def test_how_long_a_request_may_be(extra_args: tuple[str, ...], length: int | None) -> None:
    assert llama(*extra_args).max_model_length == length


def test_without_a_context_the_file_says_how_long_a_request_may_be(model_file: Path) -> None:
    trained = LlamaCpp(EngineOptions(name="m", model_path=str(model_file), program="p"))._readable_model()
    assert trained is not None
    assert llama(model_path=str(model_file)).max_model_length == trained.cells()
    assert llama("-np", "2", model_path=str(model_file)).max_model_length == trained.cells(0, 2) // 2


def test_a_file_of_another_kind_is_a_problem_and_one_that_may_still_come_a_warning(
    tmp_path: Path, model_file: Path
) -> None:
    assert messages(llama(model_path=str(model_file))) == warnings(llama(model_path=str(model_file))) == []
    other = tmp_path / "other.gguf"
    other.write_text("PK")
    assert messages(llama(model_path=str(other))) == [f"model_path: {other} is not a GGUF file"]
    assert messages(llama(model_path=str(tmp_path))) == ["model_path: is a directory"]
    missing = llama(model_path="no-such.gguf")
    assert messages(missing) == [] and warnings(missing) == ["model_path: no-such.gguf does not exist"]
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model_file.read_bytes()[:-1])
    assert messages(llama(model_path=str(cut))) == []
    assert "incomplete" in warnings(llama(model_path=str(cut)))[0]


def test_what_may_end_on_the_processor_or_read_the_disk_is_warned_of(model_file: Path) -> None:
    engine = llama("--fit", "on", "-dio", model_path=str(model_file))
    assert ["--fit on" in warnings(engine)[0], "page cache" in warnings(engine)[1]] == [True, True]


def test_files_that_its_arguments_name_count_as_the_models(model_file: Path) -> None:
    for name in ("lora.gguf", "other.gguf", "mm.gguf"):
        model_file.with_name(name).touch()
    directory = model_file.parent
    words = ("--lora-scaled", f"{directory}/lora.gguf:0.5,{directory}/other.gguf:1", "-mm", f"{directory}/mm.gguf")
    engine = llama(*words, model_path=str(model_file))
    assert {path.name for path in engine.files()} == {"m.gguf", "lora.gguf", "other.gguf", "mm.gguf"}


def test_how_it_can_leave() -> None:
    engine = llama()
    assert engine.steps(STOP) == (StopProcess(),)
    assert engine.steps(CHECKPOINT, freeze=True) == (SuspendGpu(is_for_dump=True), DumpProcess(keeps_requests=True))
    assert engine.steps(Eviction(Weights.RETAIN, Process.CUDA_SUSPEND), freeze=True) == (SuspendGpu(True),)
    for weights in (Weights.OFFLOAD, Weights.DISCARD):
        assert "holds its GPU memory" in (engine.why_not(Eviction(weights, Process.KEEP_RUNNING)) or "")
        assert "cannot leave before an image" in (engine.why_not(Eviction(weights, Process.CHECKPOINT)) or "")
    (problem,) = engine.problems(Eviction(Weights.OFFLOAD, Process.KEEP_RUNNING))
    assert "retain+stop" in problem.remedy and "retain+checkpoint" in problem.remedy
    assert engine.nearest(Eviction(Weights.OFFLOAD, Process.KEEP_RUNNING)) == STOP


def saving(model_file: Path, *extra_args: str, **more: Any) -> LlamaCpp:
    given = {"cache_directory": model_file.parent / "cache", "saved_prompts_bytes": 1 << 20} | more
    return llama("-dev", "none", *extra_args, model_path=str(model_file), **given)


def test_prompts_are_saved_before_it_stops_and_not_before_it_is_dumped(model_file: Path) -> None:
    engine = saving(model_file)
    assert engine.steps(STOP) == (SavePrompts(), StopProcess())
    assert engine.steps(CHECKPOINT) == (SuspendGpu(is_for_dump=True), DumpProcess())
    assert "--slot-save-path" not in engine.command_line(1)
    assert isinstance(engine.prepare_start(), Prompts)
    words = engine.command_line(1)
    directory = Path(words[words.index("--slot-save-path") + 1])
    assert directory.is_relative_to(model_file.parent / "cache")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("extra_args", "more"),
    [
        (("--embeddings",), {}),
        (("--reranking",), {}),
        (("--no-slots",), {}),
        ((), {"saved_prompts_bytes": 0}),
        ((), {"cache_directory": None}),
    ],
)
def test_prompts_are_not_saved_where_there_are_none_or_nobody_wants_it(
    model_file: Path, extra_args: tuple[str, ...], more: dict[str, Any]
) -> None:
    engine = saving(model_file, *extra_args, **more)
    assert engine.steps(STOP) == (StopProcess(),)
    assert engine.prepare_start() is None


def test_a_directory_that_cannot_be_made_costs_the_prompts_and_not_the_start(model_file: Path) -> None:
    engine = saving(model_file, cache_directory=model_file)
    assert engine.prepare_start() is None
    assert "--slot-save-path" not in engine.command_line(1)


class Saved:
    """Counts what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    async def save(self, endpoints: object, limit_seconds: float) -> Report:
        self.calls.append("save")
        return Report()

    async def restore(self, endpoints: object, limit_seconds: float, *, newer_than_ns: int) -> Report:
        self.calls.append(newer_than_ns)
        return Report()


@dataclass
class Controls:
    """As much of a running engine as the step needs."""

    state: object
    endpoints: object = None
    performed: list[str] = field(default_factory=list)
    applied: tuple[Step, ...] = ()

    async def perform(self, work: Any, what: str) -> None:
        self.performed.append(what)
        await work


async def test_prompts_are_restored_once_for_each_start() -> None:
    saved: Any = Saved()
    endpoints: Any = None
    prompts = Prompts("m", saved)
    for _ in range(2):
        await llama().came_back(endpoints, prompts)
    assert saved.calls == [0]
    await llama().came_back(endpoints, None)


async def test_of_an_image_only_later_prompts_are_restored() -> None:
    saved: Any = Saved()
    endpoints: Any = None
    await llama().came_back(endpoints, Prompts("m", saved, image_made_at=5.0))
    assert saved.calls == [5_000_000_000]


async def test_the_step_saves_and_leaves_nothing_to_undo() -> None:
    saved: Any = Saved()
    controls: Any = Controls(Prompts("m", saved))
    assert await SavePrompts().apply(controls) == ()
    assert saved.calls == ["save"]
    without: Any = Controls(None)
    assert await SavePrompts().apply(without) == ()
    assert without.performed == []
    suspended: Any = Controls(Prompts("m", saved), applied=(SuspendGpu(),))
    assert await SavePrompts().apply(suspended) == ()
    assert suspended.performed == [], "it answers nothing"


def devices(tmp_path: Path, listed: str, status: int = 0) -> str:
    """A program that lists these devices."""
    program = tmp_path / "llama-server"
    program.write_text(f"#!/bin/sh\nprintf 'Available devices:\\n{listed}'\nexit {status}\n")
    program.chmod(0o755)
    return str(program)


def test_it_is_not_started_where_it_finds_no_gpu(tmp_path: Path) -> None:
    for listed in ("", "  (none)\\n"):
        program = devices(tmp_path, listed)
        with pytest.raises(NoGpu, match="llama-server finds no GPU.*-ngl 0"):
            llama(program=program).prepare_start()
        assert llama("-ngl", "0", program=program).prepare_start() is None
        assert llama(program=program).prepare_start(image_made_at=1.0) is None


def test_it_is_started_where_it_finds_a_gpu_or_does_not_tell(tmp_path: Path) -> None:
    assert llama(program=devices(tmp_path, "  CUDA0: NVIDIA (24000 MiB, 23000 MiB free)\\n")).prepare_start() is None
    assert llama(program=devices(tmp_path, "", status=1)).prepare_start() is None
    assert llama(program=str(tmp_path / "missing")).prepare_start() is None


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("ggml_aligned_malloc: insufficient memory (attempted to allocate 1 MB)", "out of GPU memory"),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", "out of GPU memory"),
        ("alloc_tensor_range: failed to allocate CUDA0 buffer of size 9", "out of GPU memory"),
        ("failed to initialize the context: failed to allocate buffer for kv cache", "out of GPU memory"),
        ("llama_model_load: error loading model: unable to allocate CUDA0 buffer", "out of GPU memory"),
        ("vk::Device::allocateMemory: ErrorOutOfDeviceMemory", "out of GPU memory"),
        ("gguf_init_from_file: failed to open GGUF file '/m.gguf' (No such file or directory)", "file is not there"),
        ("tensor 'o' data is not within the file bounds, model is corrupted or incomplete", "incomplete"),
        ("gguf_init_from_file_impl: invalid magic characters: 'hell', expected 'GGUF'", "no GGUF file"),
        ("error: invalid argument: --no-such-flag", "wrong extra_args"),
        ('error while handling argument "-np": stoi', "wrong extra_args"),
        ('error while handling argument "-dev": invalid device: CUDA0', "-dev names"),
        ("main: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1", "port is taken"),
    ],
)
def test_what_its_output_says_of_its_end(line: str, cause: str) -> None:
    said = llama().known_cause(["loading", line, "srv  llama_server: exiting due to model loading error"])
    assert said is not None and cause in said
    assert llama().reports_out_of_memory([line]) == (cause == "out of GPU memory")


class Properties:
    """Answers ``/props``, or does not."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    async def get(self, path: str, timeout_seconds: float) -> Any:
        if self.answer is None:
            raise ControlCallFailed(path, "no")
        return self.answer

    async def post(self, path: str, timeout_seconds: float, document: object = None) -> Any:
        raise AssertionError


@pytest.mark.parametrize(
    ("answer", "length"),
    [({"default_generation_settings": {"n_ctx": 2048}}, 2048), ({}, None), ([], None), (None, None)],
)
async def test_it_is_asked_how_long_a_request_may_be(answer: object, length: int | None) -> None:
    endpoints: Endpoints = Properties(answer)
    found = await llama().find_abilities(endpoints, freezes=True)
    assert (found.max_model_length, found.keeps_requests) == (length, True)


def test_what_clients_may_reach() -> None:
    rules = LlamaCpp.rules
    assert {"/completion", "/infill", "/v1/messages", "/apply-template"} <= rules.endpoints.keys()
    assert {"lora-adapters", "tools", "control", "stream"} <= rules.never_forwarded
    assert all(rules.endpoints[path].methods == ("GET", "HEAD") for path in ("/props", "/slots"))
    assert not any(path.split("/")[1] in rules.never_forwarded for path in rules.endpoints)
    assert rules.removed_headers == {"x-conversation-id"}
    assert rules.removed_fields == {"id_slot", "lora"}


def test_the_canary_reads_the_weights_and_not_a_cached_prompt() -> None:
    assert LlamaCpp.canary.fields["cache_prompt"] is False


def test_saved_prompts_are_loaded_after_the_weights(model_file: Path) -> None:
    engine = saving(model_file)
    assert list(engine.files_to_load({})) == [model_file]
    directory = engine._prompts_directory
    assert directory is not None
    files = PromptFiles(directory, 1000)
    files.open("model")
    saved = directory / files.new_name()
    saved.write_bytes(b"x")
    assert list(engine.files_to_load({})) == [model_file, saved]
