"""vLLM: its command line and environment, what it says, and the calls that put it to sleep and wake it.

Sleep mode's endpoints exist only in vLLM's development mode and are not authenticated, so every engine listens on
loopback alone, or on a Unix socket in its own directory.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import ClassVar

from llmux.core.eviction import Eviction, Process, Weights
from llmux.engines import arguments
from llmux.engines.base import DEFAULT_MAX_IN_FLIGHT, LOOPBACK, READ_BACK_SHARE, Abilities, Engine
from llmux.engines.calls import ControlTimeouts, Endpoints, told_max_model_length
from llmux.engines.identity import digest, file_identity
from llmux.engines.paths import RequestRules
from llmux.engines.steps import (
    DumpProcess,
    EngineControls,
    PrepareRanks,
    Step,
    StopProcess,
    SuspendGpu,
    has_taken,
    is_suspended,
)
from llmux.engines.vllm_arguments import (
    API_KEY,
    GPU_FACTORS,
    GPU_SHARE,
    KV_CACHE_BYTES,
    KV_CONNECTOR,
    KV_OFFLOADING_BACKEND,
    KV_OFFLOADING_SIZE,
    LORA_MODULES,
    MAX_IN_FLIGHT,
    MAX_MODEL_LENGTH,
    SERVED_NAMES,
    lora_modules,
    max_model_length,
    served_names,
    unreadable_lora_modules,
)
from llmux.errors import ControlCallFailed, Problem

DEFAULT_GPU_SHARE = 0.92
"""vLLM's default of ``--gpu-memory-utilization``."""

SOCKET_FLAG = "--uds"
_SOCKET_REFUSED = re.compile(
    rf"(?:unrecogni[sz]ed|unknown|unexpected|invalid|no such) (?:arguments?|options?|flags?)\b.*{SOCKET_FLAG}\b",
    re.IGNORECASE,
)

SERVER_KEEP_ALIVE_SECONDS = 3600
"""Longer than llmux keeps an idle connection, so that the engine never closes one as it is being used."""

WITHOUT_IO_URING = {"UV_USE_IO_URING": "0", "USE_LIBUV": "0"}
"""Keeps older uvloop and torch's stores from io_uring, which criu cannot dump. Newer uvloop needs the shim's filter."""

_COMPILE_CACHES = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
}
"""Variables that name directories of compiled code. FlashInfer puts ``.cache/flashinfer`` below its one."""

MULTI_GPU_FLAGS = ("--enforce-eager", "--disable-custom-all-reduce")
"""Without them, an engine over several GPUs crashes on resume: reported by 0.7.7, not tried here for want of GPUs."""

_LOADERS_THAT_CANNOT_RELOAD = (
    "runai_streamer",
    "runai_streamer_sharded",
    "sharded_state",
    "bitsandbytes",
    "tensorizer",
)
"""Values of ``--load-format`` whose loader raises NotImplementedError in ``reload_weights``, by vLLM's source: only the
default loader, and those built on it, have ``get_all_weights`` (vllm-project/vllm#57381)."""
_REMOTE_WEIGHTS = ("s3://", "gs://", "az://")
"""Paths of weights that vLLM reads with a streaming loader."""

KEEP_OFFLOADED_KV = "&clear_connector_cache=false"
"""Without it, ``/sleep`` and ``/pause`` empty what holds KV cache outside the GPU as well, in case the weights change
(vllm-project/vllm#57810). Versions that do not know the parameter (0.32) ignore it. Then nothing is left of vLLM's own
offloading; what an LMCache server holds is kept by all, since its connector cannot empty it (by 0.32's source)."""

FREEZES_FROM = (0, 17)
"""The first version whose ``/sleep`` and ``/pause`` know ``mode=keep``."""
RELEASES_KV_CACHE_FROM = (0, 30)
"""The first version with ``/release_kv_cache_memory`` (vllm-project/vllm#44890), by its release notes."""

_CONTROL_PATHS = frozenset(
    """
    sleep wake_up is_sleeping is_paused is_suspended suspend pause resume collective_rpc server_info abort_request
    abort_requests release_kv_cache_memory weight_info weight_checker get_world_size scale_elastic_ep
    is_scaling_elastic_ep start_profile stop_profile shutdown kv_event_sources load_lora_adapter
    unload_lora_adapter fault_tolerance start_weight_update start_draft_weight_update finish_weight_update
    shutdown_weight_transfer_engine
    """.split()  # noqa: SIM905
)
_CONTROL_PREFIXES = ("reset_", "update_weight", "init_weight", "destroy_weight", "get_weight")

_CAUSES = (
    (
        re.compile(r"larger than the (?:maximum number of tokens|available KV cache)"),
        "too little GPU memory for its context",
    ),
    (re.compile(r"address already in use|Errno 98\b", re.IGNORECASE), "its port is taken"),
    (re.compile(r"unrecognized arguments|invalid choice:|expected (?:one|at least one) argument"), "wrong extra_args"),
    (re.compile(r"GatedRepoError|gated repo|\b40[13] Client Error", re.IGNORECASE), "no access to its weights"),
    (re.compile(r"RepositoryNotFound|not a valid model identifier|HFValidationError"), "its model_path is not found"),
    (re.compile(r"No space left on device|Errno 28\b"), "the disk is full"),
    (
        re.compile(r"No CUDA GPUs are available|Found no NVIDIA driver|CUDA driver version is insufficient"),
        "no usable GPU",
    ),
    (re.compile(r"are not supported for now|does not recognize this architecture"), "an unsupported architecture"),
    (re.compile(r"CUDA error|cudaError"), "a CUDA error"),
    (re.compile(r"ModuleNotFoundError"), "a Python package is missing"),
)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


class SleepLevel(IntEnum):
    """What ``/sleep`` does with the weights."""

    OFFLOAD = 1
    DISCARD = 2


_LEVELS = {Weights.OFFLOAD: SleepLevel.OFFLOAD, Weights.DISCARD: SleepLevel.DISCARD}
_WEIGHTS = {level: weights for weights, level in _LEVELS.items()}


@dataclass(frozen=True, slots=True)
class Vllm(Engine):
    """vLLM's OpenAI-compatible server in sleep mode."""

    kind: ClassVar[str] = "vllm"
    suspends_requests: ClassVar[bool] = True
    default_program: ClassVar[str] = "vllm"
    takes_socket: ClassVar[bool] = True
    key_variable: ClassVar[str] = "VLLM_API_KEY"
    package: ClassVar[str] = "vllm"
    gpu_share_flag: ClassVar[str] = GPU_SHARE[0]
    has_ranks: ClassVar[bool] = True
    has_rank_calls: ClassVar[bool] = True
    cuda_process_names: ClassVar[tuple[str, ...]] = ("EngineCore", "engine_core", "VLLM::Worker")
    own_keys: ClassVar[frozenset[str]] = frozenset(("checkpoint_calls",))
    reserved_flags: ClassVar[tuple[str, ...]] = ("--port", "--host", SOCKET_FLAG)
    read_flags: ClassVar[tuple[str, ...]] = (
        *(flags[0] for flags in GPU_FACTORS),
        *MAX_IN_FLIGHT,
        *GPU_SHARE,
        *KV_CACHE_BYTES,
        *SERVED_NAMES,
        *LORA_MODULES,
        *MAX_MODEL_LENGTH,
        *API_KEY,
        *KV_OFFLOADING_SIZE,
        *KV_OFFLOADING_BACKEND,
        *KV_CONNECTOR,
    )
    environment_prefixes: ClassVar[tuple[str, ...]] = ("VLLM_", "FLASHINFER_")
    temporary_variables: ClassVar[frozenset[str]] = frozenset(("TMPDIR", "VLLM_RPC_BASE_PATH"))
    rules: ClassVar[RequestRules] = RequestRules(
        never_forwarded=_CONTROL_PATHS, never_forwarded_prefixes=_CONTROL_PREFIXES
    )
    out_of_memory: ClassVar[re.Pattern[str]] = re.compile(
        r"out of memory|OutOfMemoryError|less than desired GPU memory utilization"
        r"|No available memory for the cache blocks",
        re.IGNORECASE,
    )
    causes: ClassVar[tuple[tuple[re.Pattern[str], str], ...]] = _CAUSES

    @property
    def served_names(self) -> tuple[str, ...]:
        # Its answers carry the first one.
        return tuple(dict.fromkeys((self.options.name, self.options.model_path, *self.further_names)))

    @property
    def further_names(self) -> tuple[str, ...]:
        return served_names(self.options.extra_args)

    @property
    def adapters(self) -> tuple[tuple[str, str], ...]:
        return lora_modules(self.options.extra_args)

    @property
    def api_key(self) -> str | None:
        return arguments.value(self.options.extra_args, API_KEY) or super(Vllm, self).api_key

    @property
    def max_in_flight(self) -> int:
        return arguments.number(self.options.extra_args, MAX_IN_FLIGHT) or DEFAULT_MAX_IN_FLIGHT

    @property
    def gpu_count(self) -> int:
        return math.prod(arguments.number(self.options.extra_args, flags) or 1 for flags in GPU_FACTORS)

    @property
    def offloads_kv(self) -> bool:
        """Whether its KV cache is held outside the GPU, too, in host memory or by another server."""
        return bool(arguments.present(self.options.extra_args, (*KV_OFFLOADING_SIZE, *KV_CONNECTOR)))

    @property
    def start_share(self) -> float | None:
        if arguments.present(self.options.extra_args, KV_CACHE_BYTES):
            return None
        text = arguments.value(self.options.extra_args, GPU_SHARE)
        try:
            return DEFAULT_GPU_SHARE if text is None else float(text)
        except ValueError:
            return None

    @property
    def max_model_length(self) -> int | None:
        return max_model_length(self.options.extra_args)

    @property
    def arguments(self) -> tuple[str, ...]:
        # The names are part of ``served_names``.
        return arguments.without(self.options.extra_args, SERVED_NAMES)

    def problems(self, eviction: Eviction) -> Iterator[Problem]:
        yield from super(Vllm, self).problems(eviction)
        words = self.options.extra_args
        if arguments.value(words, SERVED_NAMES) == "":
            yield Problem("extra_args", "--served-model-name without a name", "add one or remove it")
        yield from self._missing_multi_gpu_flags(eviction)
        if eviction.weights is Weights.DISCARD and eviction.process is not Process.STOP:
            yield from self._irretrievable_weights(eviction)

    def _missing_multi_gpu_flags(self, eviction: Eviction) -> Iterator[Problem]:
        words = self.options.extra_args
        try:
            size = self.gpu_count
        except ValueError:
            return
        if size == 1 or eviction.process not in (Process.CUDA_SUSPEND, Process.CHECKPOINT):
            return
        if missing := [flag for flag in MULTI_GPU_FLAGS if not arguments.switched_on(words, flag)]:
            yield Problem(
                "extra_args",
                f"{eviction.process} over {size} GPUs needs {' and '.join(missing)}, else the engine crashes on resume",
                f"add {' '.join(missing)}",
            )

    def _irretrievable_weights(self, eviction: Eviction) -> Iterator[Problem]:
        loader = arguments.value(self.options.extra_args, ("--load-format",))
        remedy = f"use {Eviction(Weights.OFFLOAD, eviction.process)}"
        if loader in _LOADERS_THAT_CANNOT_RELOAD:
            yield Problem("eviction", f"--load-format {loader} cannot reload discarded weights", remedy)
        elif loader is None and self.options.model_path.startswith(_REMOTE_WEIGHTS):
            message = "weights from an object store are streamed, and cannot be reloaded once discarded"
            yield Problem("eviction", message, remedy)

    def warnings(self) -> Iterator[Problem]:
        for _ in unreadable_lora_modules(self.options.extra_args):
            yield Problem(
                "extra_args",
                "an item after --lora-modules is no adapter, so that nobody can ask for it",
                'write NAME=PATH, or \'{"name": "NAME", "path": "PATH"}\'',
            )

    def recompute_share(self, eviction: Eviction) -> float:
        share = super(Vllm, self).recompute_share(eviction)
        backend = arguments.value(self.options.extra_args, KV_OFFLOADING_BACKEND)
        # Whether vLLM's own offloading outlives a sleep depends on its version (``KEEP_OFFLOADED_KV``).
        return READ_BACK_SHARE if share and eviction.keeps_process and backend == "lmcache" else share

    def advice(self, eviction: Eviction) -> Iterator[Problem]:
        sleeps = eviction.process is Process.KEEP_RUNNING or eviction.weights is not Weights.RETAIN
        if eviction.keeps_process and sleeps and not self.offloads_kv:
            yield Problem(
                "extra_args",
                "what frozen requests had computed is lost in a sleep, and computed again",
                "have the KV cache held outside the GPU, too: docs/residency.md, 'The KV cache over a switch'",
            )

    def command_line(self, port: int, socket_path: Path | None = None) -> tuple[str, ...]:
        # With a socket vLLM ignores the port; a program that ignores the socket instead listens there.
        on_socket = () if socket_path is None else (SOCKET_FLAG, str(socket_path))
        return (
            self.options.program,
            "serve",
            self.options.model_path,
            "--served-model-name",
            *self.served_names,
            "--host",
            LOOPBACK,
            "--port",
            str(port),
            *on_socket,
            "--enable-sleep-mode",
            *self.arguments,
        )

    def memory_arguments(self, gpu_total_mib: int) -> tuple[str, ...]:
        declared_mib = self.options.gpu_memory_mib
        if not declared_mib or arguments.present(self.options.extra_args, (*GPU_SHARE, *KV_CACHE_BYTES)):
            return ()
        # Rounded down: a share that is a little too large would not fit beside the others.
        return (GPU_SHARE[0], f"{declared_mib * 1000 // gpu_total_mib / 1000:.3f}")

    def environment(
        self, inherited: Mapping[str, str], temporary_directory: str, *, checkpointable: bool
    ) -> dict[str, str]:
        return {
            **self._compile_caches(),
            **inherited,
            "VLLM_SERVER_DEV_MODE": "1",
            "NO_COLOR": "1",
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(SERVER_KEEP_ALIVE_SECONDS),
            "TMPDIR": temporary_directory,
            "VLLM_RPC_BASE_PATH": temporary_directory,
            **(WITHOUT_IO_URING if checkpointable else {}),
            **self.options.environment,
        }

    def _compile_caches(self) -> dict[str, str]:
        """Where compiled kernels outlive a start, so that the next one compiles nothing. What is set otherwise wins.

        The caches' own keys tell GPUs and versions of their libraries apart; the directory tells programs and models
        apart, so that those of a replaced program or a removed model can be deleted.
        """
        cache = self.options.cache_directory
        if cache is None:
            return {}
        directory = cache / self.kind / file_identity(self.options.program) / digest(self.options.model_path)
        return {name: str(directory / part) for name, part in _COMPILE_CACHES.items()}

    def lacks(self, version: str, eviction: Eviction, *, freezes: bool) -> str | None:
        numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
        if freezes and numbers < FREEZES_FROM:
            first = _dotted(FREEZES_FROM)
            return f"suspend its requests, which vLLM does from {first} on: a switch waits until they have ended"
        is_part = eviction.process is Process.KEEP_RUNNING and eviction.weights is Weights.RETAIN
        if is_part and numbers < RELEASES_KV_CACHE_FROM:
            first = _dotted(RELEASES_KV_CACHE_FROM)
            return f"release its KV cache alone, which vLLM does from {first} on: it is offloaded instead"
        return None

    def refuses_socket(self, lines: Sequence[str]) -> bool:
        return any(_SOCKET_REFUSED.search(line) for line in lines)

    async def find_abilities(self, endpoints: Endpoints, *, freezes: bool) -> Abilities:
        timeouts = self.options.timeouts
        return Abilities(
            keeps_requests=freezes and await can_keep_requests(endpoints, timeouts),
            max_model_length=await told_max_model_length(endpoints, timeouts),
            version=await told_version(endpoints, timeouts),
        )

    def steps(self, eviction: Eviction, *, freeze: bool = False) -> tuple[Step, ...]:
        level, timeouts, offloads_kv = _LEVELS.get(eviction.weights), self.options.timeouts, self.offloads_kv
        sleep = () if level is None else (Sleep(timeouts, level, freeze, offloads_kv),)
        match eviction.process:
            case Process.STOP:
                return (StopProcess(),)
            case Process.KEEP_RUNNING:
                return sleep or (ReleaseKvCache(timeouts, freeze, offloads_kv),)
            case Process.CHECKPOINT | Process.CUDA_SUSPEND:
                # Frozen at any point. Paused before, the engine does not find its requests timed out after.
                pause = (PauseRequests(timeouts),) if freeze and level is None else ()
                calls = PrepareRanks(self.options.rank_calls, timeouts.sleep_seconds)
                ranks = (calls,) if self._has_several_gpus else ()
                otherwise = Sleep(timeouts, SleepLevel.OFFLOAD, freeze, offloads_kv)
                if eviction.process is Process.CUDA_SUSPEND:
                    return (*pause, *sleep, *ranks, SuspendGpu(freeze, otherwise))
                suspend = SuspendGpu(freeze, otherwise, is_for_dump=True)
                return (*pause, *sleep, *ranks, suspend, DumpProcess(freeze, otherwise))


@dataclass(frozen=True, slots=True)
class Sleep:
    """The engine itself releases its GPU memory and keeps running."""

    timeouts: ControlTimeouts
    level: SleepLevel
    keeps_requests: bool = False
    offloads_kv: bool = False
    """Whether KV cache is held outside the GPU, too. It is left there, unless the weights are to be read anew."""
    leaves_process: ClassVar[Process] = Process.KEEP_RUNNING

    @property
    def leaves_weights(self) -> Weights:
        return _WEIGHTS[self.level]

    def __str__(self) -> str:
        return f"sleep {self.level.value}{' keep' if self.keeps_requests else ''}"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        if _is_asleep(engine) or is_suspended(engine):
            # A second /sleep is answered with 200 and does nothing; a suspended engine answers nothing.
            return ()
        step = self
        if self.level is SleepLevel.OFFLOAD and not await engine.fits_into_host_memory():
            engine.note_fallback("the weights are discarded instead of offloaded", "too little host memory for them")
            step = replace(self, level=SleepLevel.DISCARD)
        keep_kv = step.offloads_kv and step.level is SleepLevel.OFFLOAD
        call = fall_asleep(
            engine.endpoints, step.level, step.timeouts, keep_requests=step.keeps_requests, keep_offloaded_kv=keep_kv
        )
        await engine.perform(call, "going to sleep")
        return (step,)

    async def undo(self, engine: EngineControls) -> None:
        call = wake_up(engine.endpoints, self.level, self.timeouts, keep_requests=self.keeps_requests)
        await engine.perform(call, "waking up")


@dataclass(frozen=True, slots=True)
class ReleaseKvCache:
    """The engine releases its KV cache and keeps running, with its weights on the GPU.

    A version that cannot (before 0.30) sleeps with its weights in host memory, which frees more.
    """

    timeouts: ControlTimeouts
    keeps_requests: bool = False
    offloads_kv: bool = False
    """Whether KV cache is held outside the GPU, too; it is left there."""
    leaves_process: ClassVar[Process] = Process.KEEP_RUNNING
    leaves_weights: ClassVar[Weights] = Weights.RETAIN

    def __str__(self) -> str:
        return f"release kv_cache{' keep' if self.keeps_requests else ''}"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        if _is_asleep(engine) or is_suspended(engine):
            return ()
        call = release_kv_cache(
            engine.endpoints, self.timeouts, keep_requests=self.keeps_requests, keep_offloaded_kv=self.offloads_kv
        )
        if await engine.perform(call, "releasing its KV cache"):
            return (self,)
        engine.note_fallback("the weights are offloaded too", "this version cannot release its KV cache alone")
        return await Sleep(self.timeouts, SleepLevel.OFFLOAD, self.keeps_requests, self.offloads_kv).apply(engine)

    async def undo(self, engine: EngineControls) -> None:
        call = restore_kv_cache(engine.endpoints, self.timeouts, keep_requests=self.keeps_requests)
        await engine.perform(call, "taking its KV cache back")


@dataclass(frozen=True, slots=True)
class PauseRequests:
    """The engine's scheduler is paused with its requests kept."""

    timeouts: ControlTimeouts
    keeps_requests: ClassVar[bool] = True
    leaves_process: ClassVar[Process] = Process.KEEP_RUNNING
    leaves_weights: ClassVar[None] = None

    def __str__(self) -> str:
        return "pause"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        if _is_asleep(engine) or is_suspended(engine):
            return ()
        await engine.perform(pause_requests(engine.endpoints, self.timeouts), "pausing")
        return (self,)

    async def undo(self, engine: EngineControls) -> None:
        await engine.perform(resume_requests(engine.endpoints, self.timeouts), "resuming")


def _is_asleep(engine: EngineControls) -> bool:
    return has_taken(engine, Sleep, ReleaseKvCache)


async def fall_asleep(
    endpoints: Endpoints,
    level: SleepLevel,
    timeouts: ControlTimeouts,
    *,
    keep_requests: bool = False,
    keep_offloaded_kv: bool = False,
) -> None:
    """Put the engine to sleep and read back that it sleeps; raises ControlCallFailed.

    ``keep_offloaded_kv``: leave the KV cache that it holds outside the GPU, which is good only for the same weights.
    After a failure the engine's state is unknown (its scheduler stays paused) and it must be stopped.
    """
    # In the query string: in a body vLLM silently ignores the level.
    mode = "&mode=keep" if keep_requests else ""
    kept = KEEP_OFFLOADED_KV if keep_offloaded_kv else ""
    await endpoints.post(f"/sleep?level={level.value}{mode}{kept}", timeouts.sleep_seconds)
    await _read_back(endpoints, asleep=True, timeouts=timeouts)


async def wake_up(
    endpoints: Endpoints, level: SleepLevel, timeouts: ControlTimeouts, *, keep_requests: bool = False
) -> None:
    """Undo ``fall_asleep`` and read back that the engine is awake; raises ControlCallFailed.

    After a failure the engine must be stopped: one whose weights were not reloaded answers garbage with 200.
    """
    match level:
        case SleepLevel.OFFLOAD:
            await endpoints.post("/wake_up", timeouts.wake_seconds)
        case SleepLevel.DISCARD:
            # Waking the KV cache resumes vLLM's scheduler: in any other order, requests would run without weights. An
            # engine that ignores tags wakes entirely at the first call, and llmux admits nothing before the last.
            await endpoints.post("/wake_up?tags=weights", timeouts.wake_seconds)
            await endpoints.post("/collective_rpc", timeouts.reload_seconds, {"method": "reload_weights"})
            await endpoints.post("/wake_up?tags=kv_cache", timeouts.wake_seconds)
            if not keep_requests:
                await _reset_prefix_cache(endpoints, timeouts)
    await _read_back(endpoints, asleep=False, timeouts=timeouts)


async def release_kv_cache(
    endpoints: Endpoints, timeouts: ControlTimeouts, *, keep_requests: bool = False, keep_offloaded_kv: bool = False
) -> bool:
    """Have the engine release its KV cache alone, and read back that it is paused; raises ControlCallFailed.

    Returns False if its version knows no such call (those before 0.30): then nothing has changed. After a failure the
    engine must be stopped. ``/sleep`` itself has no tags, and takes them in silence: it would sleep at level 1.
    """
    path = "/release_kv_cache_memory"
    try:
        # A path that exists refuses the method; to pause an engine that lacks it, and which may be old, is not safe.
        await endpoints.get(path, timeouts.read_back_seconds)
    except ControlCallFailed as failure:
        if failure.status == 404:
            return False
        if failure.status != 405:
            raise
    # It asks for a pause that is complete. Requests that are kept are computed again afterwards.
    mode, kept = "keep" if keep_requests else "abort", KEEP_OFFLOADED_KV if keep_offloaded_kv else ""
    await endpoints.post(f"/pause?mode={mode}{kept}", timeouts.sleep_seconds)
    await endpoints.post(path, timeouts.sleep_seconds)
    await _read_back(endpoints, asleep=True, timeouts=timeouts)
    return True


async def restore_kv_cache(endpoints: Endpoints, timeouts: ControlTimeouts, *, keep_requests: bool = False) -> None:
    """Undo ``release_kv_cache`` and read back that the engine is awake; raises ControlCallFailed."""
    await endpoints.post("/wake_up?tags=kv_cache", timeouts.wake_seconds)
    if not keep_requests:
        await _reset_prefix_cache(endpoints, timeouts)
    await _read_back(endpoints, asleep=False, timeouts=timeouts)


async def can_keep_requests(endpoints: Endpoints, timeouts: ControlTimeouts) -> bool:
    """Whether the engine can suspend its requests: vLLM 0.17 and later, which also has ``/is_paused``."""
    try:
        await endpoints.get("/is_paused", timeouts.read_back_seconds)
    except ControlCallFailed as failure:
        if failure.status in (404, 405):
            return False
        raise
    return True


async def told_version(endpoints: Endpoints, timeouts: ControlTimeouts) -> str | None:
    """The engine's version; None if it does not say."""
    try:
        document = await endpoints.get("/version", timeouts.read_back_seconds)
    except ControlCallFailed:
        return None
    version = document.get("version") if isinstance(document, dict) else None
    return version if isinstance(version, str) else None


async def pause_requests(endpoints: Endpoints, timeouts: ControlTimeouts) -> None:
    """Stop the engine's scheduler, keeping all requests and their KV cache; raises ControlCallFailed."""
    await endpoints.post("/pause?mode=keep&clear_cache=false", timeouts.sleep_seconds)


async def resume_requests(endpoints: Endpoints, timeouts: ControlTimeouts) -> None:
    """Undo ``pause_requests``; raises ControlCallFailed. Not to be called while the engine sleeps: it would die."""
    await endpoints.post("/resume", timeouts.wake_seconds)


async def _reset_prefix_cache(endpoints: Endpoints, timeouts: ControlTimeouts) -> None:
    try:
        await endpoints.post("/reset_prefix_cache", timeouts.reset_seconds)
    except ControlCallFailed:
        # A precaution that may fail: /sleep has emptied the cache already.
        return


async def _read_back(endpoints: Endpoints, *, asleep: bool, timeouts: ControlTimeouts) -> None:
    document = await endpoints.get("/is_sleeping", timeouts.read_back_seconds)
    is_sleeping = document.get("is_sleeping") if isinstance(document, dict) else None
    if is_sleeping is not asleep:
        wanted = "asleep" if asleep else "awake"
        raise ControlCallFailed("GET /is_sleeping", f"the engine should be {wanted} and says {document!r}")
