"""SGLang: its command line, and the calls by which it releases its memory by tags and takes it back.

Written from the sources of its releases 0.5.5 to 0.5.23, and run against a stand-in only.

A mistake in the use of these calls kills the engine: releasing while requests run, and resuming what is not released
(``release_memory_occupation`` and ``resume_memory_occupation`` of its scheduler). So each step releases what it has not
released yet, once, and ``/health``, which generates a token by default, is told not to.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import ClassVar

from llmux.core.eviction import Eviction, Process, Weights
from llmux.engines import arguments
from llmux.engines.base import LOOPBACK, Abilities, Engine
from llmux.engines.calls import ControlTimeouts, Endpoints, told_max_model_length
from llmux.engines.paths import RequestRules
from llmux.engines.steps import (
    DumpProcess,
    EngineControls,
    Step,
    StopProcess,
    SuspendGpu,
    has_taken,
    is_suspended,
)
from llmux.errors import ControlCallFailed, Problem

MAX_IN_FLIGHT = ("--max-running-requests",)
TENSOR_PARALLEL_SIZE = ("--tensor-parallel-size", "--tp-size", "--tp")
PIPELINE_PARALLEL_SIZE = ("--pipeline-parallel-size", "--pp-size")
DATA_PARALLEL_SIZE = ("--data-parallel-size", "--dp-size", "--dp")
SHARED_BY_DATA = "--enable-dp-attention"
"""The ranks of data parallelism are then those of tensor parallelism."""
GPU_SHARE = ("--mem-fraction-static",)
MAX_MODEL_LENGTH = ("--context-length",)
API_KEY = ("--api-key",)
ADMIN_KEY = ("--admin-api-key",)
LORA_PATHS = ("--lora-paths",)
WEIGHT_CACHE = ("--weight-cache-mode",)
MEMORY_SAVER = "--enable-memory-saver"
WEIGHTS_BACKUP = "--enable-weights-cpu-backup"

KV_CACHE, WEIGHTS, CUDA_GRAPH = "kv_cache", "weights", "cuda_graph"
RELEASED = (KV_CACHE, WEIGHTS, CUDA_GRAPH)
"""Everything, by name: a tag that a version does not know does nothing. CUDA graphs give memory back only if the engine
was started with ``SGLANG_MEMORY_SAVER_CUDA_GRAPH=1``."""

_RELEASE = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:\.post\d+)?")
_RETRACTS = (((0, 5, 8), (0, 5, 10)), ((0, 5, 21), None))
"""Releases, from the first to before the second, that survive a release of their memory with requests retracted.

Before 0.5.6, ``/pause_generation`` ignores its mode, aborts the requests and answers 200. 0.5.6 loses requests whose
prompts were just computed; 0.5.7 was not read. From 0.5.10 to 0.5.20 a release of memory asserts that no request is
queued, and retracted ones are: the engine dies (sgl-project/sglang#32153).
"""

HEALTH_WITHOUT_GENERATION = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false"}
"""A health check that generates would compute on released memory."""

_CAUSES = (
    (re.compile(r"address already in use|Errno 98\b", re.IGNORECASE), "its port is taken"),
    (re.compile(r"unrecognized arguments|invalid choice:|expected (?:one|at least one) argument"), "wrong extra_args"),
    (re.compile(r"GatedRepoError|gated repo|\b40[13] Client Error", re.IGNORECASE), "no access to its weights"),
    (re.compile(r"RepositoryNotFound|not a valid model identifier|HFValidationError"), "its model_path is not found"),
    (re.compile(r"No space left on device|Errno 28\b"), "the disk is full"),
    (re.compile(r"No CUDA GPUs are available|Found no NVIDIA driver"), "no usable GPU"),
    (re.compile(r"torch_memory_saver"), "the package torch_memory_saver is missing, which releasing memory needs"),
    (re.compile(r"ModuleNotFoundError|No module named"), "a Python package is missing"),
)


@dataclass(frozen=True, slots=True)
class Sglang(Engine):
    """SGLang's OpenAI-compatible server with its memory saver.

    The program may be a Python interpreter, which gets ``-m sglang.launch_server``; ``sglang``, which gets ``serve``;
    or any other program that takes the server's flags.
    """

    kind: ClassVar[str] = "sglang"
    suspends_requests: ClassVar[bool] = True
    default_program: ClassVar[str] = "python3"
    keep_alive_seconds: ClassVar[float] = 4.0
    """uvicorn closes an idle connection after 5 s, and SGLang has no flag for it."""
    gpu_share_flag: ClassVar[str] = GPU_SHARE[0]
    package: ClassVar[str] = "sglang"
    reserved_flags: ClassVar[tuple[str, ...]] = ("--host", "--port", "--served-model-name", "--model-path", "--model")
    read_flags: ClassVar[tuple[str, ...]] = (
        *MAX_IN_FLIGHT,
        *TENSOR_PARALLEL_SIZE[:1],
        *PIPELINE_PARALLEL_SIZE[:1],
        *DATA_PARALLEL_SIZE[:1],
        *GPU_SHARE,
        *MAX_MODEL_LENGTH,
        *API_KEY,
        *LORA_PATHS,
    )
    environment_prefixes: ClassVar[tuple[str, ...]] = ("SGLANG_", "SGL_", "FLASHINFER_")
    has_ranks: ClassVar[bool] = True
    cuda_process_names: ClassVar[tuple[str, ...]] = ("sglang::scheduler",)
    rules: ClassVar[RequestRules] = RequestRules(
        never_forwarded=frozenset(
            """
            flush_cache release_memory_occupation resume_memory_occupation pause_generation continue_generation
            abort_request weights_checker get_server_info server_info get_model_info health_generate get_internal_state
            set_internal_state load_lora_adapter load_lora_adapter_from_tensors unload_lora_adapter start_profile
            stop_profile open_session close_session configure_logging begin_weight_update end_weight_update
            send_weights_to_remote_instance get_remote_instance_transfer_engine_info
            remote_instance_transfer_engine_info start_expert_distribution_record stop_expert_distribution_record
            dump_expert_distribution_record slow_down freeze_gc dumper set_trace_level pd_role_switch get_load
            generate_from_file add_external_corpus remove_external_corpus list_external_corpora
            clear_hicache_storage_backend get_hicache_l3_cache_layout
            """.split()  # noqa: SIM905
        ),
        never_forwarded_prefixes=(
            "update_weight",
            "init_weight",
            "get_weight",
            "destroy_weight",
            "set_internal",
            "hicache",
        ),
    )
    out_of_memory: ClassVar[re.Pattern[str]] = re.compile(
        r"out of memory|OutOfMemoryError|Not enough memory\. Please try to increase --mem-fraction-static",
        re.IGNORECASE,
    )
    causes: ClassVar[tuple[tuple[re.Pattern[str], str], ...]] = _CAUSES

    @property
    def adapters(self) -> tuple[tuple[str, str], ...]:
        words = arguments.last_values(self.options.extra_args, LORA_PATHS)
        return tuple(adapter for word in words if (adapter := _adapter(word)) is not None)

    def adapter_in_requests(self, adapter: str) -> str:
        # By its name alone, the model would answer without it, and say nothing.
        return f"{self.served_names[0]}:{adapter}"

    @property
    def api_key(self) -> str | None:
        return arguments.value(self.options.extra_args, API_KEY) or super(Sglang, self).api_key

    @property
    def max_in_flight(self) -> int:
        return arguments.number(self.options.extra_args, MAX_IN_FLIGHT) or self.max_in_flight_default

    @property
    def gpu_count(self) -> int:
        words = self.options.extra_args
        sizes = [TENSOR_PARALLEL_SIZE, PIPELINE_PARALLEL_SIZE]
        sizes += [] if arguments.switched_on(words, SHARED_BY_DATA) else [DATA_PARALLEL_SIZE]
        return math.prod(arguments.number(words, flags) or 1 for flags in sizes)

    @property
    def start_share(self) -> float | None:
        # Without the flag it takes what it finds useful, by a formula of its own.
        text = arguments.value(self.options.extra_args, GPU_SHARE)
        try:
            return None if text is None else float(text)
        except ValueError:
            return None

    @property
    def max_model_length(self) -> int | None:
        try:
            return arguments.number(self.options.extra_args, MAX_MODEL_LENGTH)
        except ValueError:
            return None

    def problems(self, eviction: Eviction) -> Iterator[Problem]:
        yield from super(Sglang, self).problems(eviction)
        if eviction.weights is Weights.DISCARD and arguments.switched_on(self.options.extra_args, WEIGHTS_BACKUP):
            message = f"{WEIGHTS_BACKUP} keeps the weights in host memory, which discarding them is to spare"
            yield Problem("extra_args", message, f"remove it, or use {Eviction(Weights.OFFLOAD, eviction.process)}")
        if arguments.present(self.options.extra_args, ADMIN_KEY):
            message = "with --admin-api-key, the engine refuses llmux's control calls"
            yield Problem("extra_args", message, "remove it; clients never reach these calls")
        if ":" in self.options.name:
            message = "SGLang takes what follows a colon in a model's name for the name of an adapter"
            yield Problem("engine", message, "name the model without one, and give it this name as an alias")
        cache = arguments.value(self.options.extra_args, WEIGHT_CACHE)
        if cache not in (None, "off") and _releases(eviction):
            message = f"with --weight-cache-mode {cache}, the engine cannot release its weights"
            yield Problem("extra_args", message, "remove it, or use retain+stop")

    def command_line(self, port: int, socket_path: Path | None = None) -> tuple[str, ...]:
        own = (
            *("--model-path", self.options.model_path, "--served-model-name", self.served_names[0]),
            *("--host", LOOPBACK, "--port", str(port), MEMORY_SAVER),
        )
        # A copy of the weights in host memory for the engine's whole life: only if it is needed.
        has_backup = arguments.switched_on(self.options.extra_args, WEIGHTS_BACKUP)
        backup = (WEIGHTS_BACKUP,) if self.options.may_offload and not has_backup else ()
        return (*_program(self.options.program), *own, *backup, *self.arguments)

    def environment(
        self, inherited: Mapping[str, str], temporary_directory: str, *, checkpointable: bool
    ) -> dict[str, str]:
        return {
            **inherited,
            **HEALTH_WITHOUT_GENERATION,
            "TMPDIR": temporary_directory,
            **self.options.environment,
        }

    async def find_abilities(self, endpoints: Endpoints, *, freezes: bool) -> Abilities:
        timeouts = self.options.timeouts
        version = await told_version(endpoints, timeouts)
        return Abilities(
            keeps_requests=freezes and can_retract(version),
            max_model_length=await told_max_model_length(endpoints, timeouts),
            version=version,
        )

    def lacks(self, version: str, eviction: Eviction, *, freezes: bool) -> str | None:
        if freezes and not can_retract(version):
            return "suspend its requests and survive it: a switch waits until they have ended"
        return None

    def recompute_share(self, eviction: Eviction) -> float:
        # To be suspended, requests are retracted, which gives their KV cache up.
        return 1.0

    def steps(self, eviction: Eviction, *, freeze: bool = False) -> tuple[Step, ...]:
        timeouts = self.options.timeouts
        pause = (Retract(timeouts),) if freeze else ()
        release = Release(timeouts, eviction.weights, self.options.model_path)
        match eviction.process:
            case Process.STOP:
                return (StopProcess(),)
            case Process.KEEP_RUNNING:
                return (*pause, release)
            case Process.CHECKPOINT | Process.CUDA_SUSPEND:
                self.check_ranks(eviction)
                is_retained = eviction.weights is Weights.RETAIN
                # A copy of the weights in host memory exists only where the configuration asks for one.
                otherwise = Release(timeouts, Weights.DISCARD, self.options.model_path) if is_retained else release
                first = pause if is_retained else (*pause, release)
                if eviction.process is Process.CUDA_SUSPEND:
                    return (*first, SuspendGpu(freeze, otherwise))
                return (*first, SuspendGpu(freeze, is_for_dump=True), DumpProcess(keeps_requests=freeze))


def _releases(eviction: Eviction) -> bool:
    return eviction.weights is not Weights.RETAIN and eviction.process is not Process.STOP


def _program(program: str) -> Sequence[str]:
    name = PurePath(program).name
    if name.startswith("python"):
        return (program, "-m", "sglang.launch_server")
    return (program, "serve") if name == "sglang" else (program,)


@dataclass(frozen=True, slots=True)
class Release:
    """The engine releases its KV cache, its weights and its CUDA graphs, and keeps running.

    Where the weights are retained, only the KV cache goes. It answers before the memory is free. Weights come back from
    the copy in host memory, or are read from disk again.
    """

    timeouts: ControlTimeouts
    leaves_weights: Weights
    model_path: str
    keeps_requests: ClassVar[bool] = False
    leaves_process: ClassVar[Process] = Process.KEEP_RUNNING

    def __str__(self) -> str:
        return f"release {self.leaves_weights}"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        if is_suspended(engine) or has_taken(engine, Release):
            return ()
        document = {"tags": [KV_CACHE] if self.leaves_weights is Weights.RETAIN else list(RELEASED)}
        call = engine.endpoints.post("/release_memory_occupation", self.timeouts.sleep_seconds, document)
        await engine.perform(call, "releasing its memory")
        return (self,)

    async def undo(self, engine: EngineControls) -> None:
        has_requests = any(step.keeps_requests for step in engine.applied)
        work = self._resume(engine.endpoints, has_requests=has_requests)
        await engine.perform(work, "taking its memory back")

    async def _resume(self, endpoints: Endpoints, *, has_requests: bool) -> None:
        resume, seconds = "/resume_memory_occupation", self.timeouts.wake_seconds
        if self.leaves_weights is not Weights.RETAIN:
            await endpoints.post(resume, seconds, {"tags": [WEIGHTS, CUDA_GRAPH]})
        if self.leaves_weights is Weights.DISCARD:
            # What is resumed without a copy or a reload is garbage, and answered with 200 (sgl-project/sglang#6367).
            document = {"model_path": self.model_path}
            told = await endpoints.post("/update_weights_from_disk", self.timeouts.reload_seconds, document)
            if isinstance(told, dict) and told.get("success") is False:
                raise ControlCallFailed("POST /update_weights_from_disk", str(told.get("message")))
        await endpoints.post(resume, seconds, {"tags": [KV_CACHE]})
        if not has_requests:
            # A precaution that may fail: the release has emptied the cache already.
            with suppress(ControlCallFailed):
                await endpoints.post("/flush_cache", self.timeouts.reset_seconds)


@dataclass(frozen=True, slots=True)
class Retract:
    """Running requests go back to the engine's own queue, to be computed again when it goes on."""

    timeouts: ControlTimeouts
    keeps_requests: ClassVar[bool] = True
    leaves_process: ClassVar[Process] = Process.KEEP_RUNNING
    leaves_weights: ClassVar[None] = None

    def __str__(self) -> str:
        return "retract"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        if is_suspended(engine) or has_taken(engine, Retract):
            return ()
        call = engine.endpoints.post("/pause_generation", self.timeouts.sleep_seconds, {"mode": "retract"})
        await engine.perform(call, "retracting its requests")
        return (self,)

    async def undo(self, engine: EngineControls) -> None:
        call = engine.endpoints.post("/continue_generation", self.timeouts.wake_seconds, {})
        await engine.perform(call, "going on")


async def told_version(endpoints: Endpoints, timeouts: ControlTimeouts) -> str | None:
    """The engine's version; None if it does not say."""
    # The second is the older name, of which newer versions say that it will be removed.
    for path in ("/server_info", "/get_server_info"):
        with suppress(ControlCallFailed):
            document = await endpoints.get(path, timeouts.read_back_seconds)
            version = document.get("version") if isinstance(document, dict) else None
            if isinstance(version, str):
                return version
    return None


def can_retract(version: str | None) -> bool:
    """Whether this version keeps its requests over a release of its memory; an unknown one does not.

    It cannot be tried out: a version that does not know the mode says 200 too, and one that dies of it dies later.
    """
    found = _RELEASE.fullmatch((version or "").partition("+")[0])
    if found is None:
        return False
    number = (int(found[1]), int(found[2]), int(found[3]))
    return any(first <= number and (end is None or number < end) for first, end in _RETRACTS)


def _adapter(word: str) -> tuple[str, str] | None:
    """Name and path of an adapter, written as ``PATH``, ``NAME=PATH`` or a JSON object; None if it is none of these."""
    word = word.strip()
    if not (word.startswith("{") and word.endswith("}")):
        name, equals, path = word.partition("=")
        return (name, path if equals else word) if name else None
    try:
        adapter = json.loads(word)
    except (ValueError, RecursionError):
        return None
    match adapter:
        case {"lora_name": str(name), "lora_path": str(path)} if name:
            return name, path
        case _:
            return None
