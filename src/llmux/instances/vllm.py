"""vLLM: its command line and environment, and the calls that put it to sleep and wake it.

Sleep mode's endpoints exist only in vLLM's development mode and are not authenticated, so every engine listens on
loopback alone, or on a Unix socket in its own directory.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmux.errors import ControlCallFailed
from llmux.hosts.local import LOOPBACK
from llmux.instances.control_calls import EngineEndpoints
from llmux.instances.steps import SleepLevel

KEEP_ALIVE_SECONDS = 3600
"""Longer than the gateway's pool keeps an idle connection, so that the engine never closes one as it is being used."""

WITHOUT_IO_URING = {"UV_USE_IO_URING": "0", "USE_LIBUV": "0"}
"""Keeps older uvloop and torch's stores from io_uring, which criu cannot dump. Newer uvloop needs the shim's filter."""

SOCKET_FLAG = "--uds"
_SOCKET_REFUSED = re.compile(
    rf"(?:unrecogni[sz]ed|unknown|unexpected|invalid|no such) (?:arguments?|options?|flags?)\b.*{SOCKET_FLAG}\b",
    re.IGNORECASE,
)

_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|less than desired GPU memory utilization|No available memory for the cache blocks",
    re.IGNORECASE,
)

_CAUSES = (
    (_OUT_OF_MEMORY, "out of GPU memory"),
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
"""What a line of output tells about an engine's end."""


@dataclass(frozen=True, slots=True)
class ControlTimeouts:
    """How long each control call may take."""

    sleep_seconds: float = 120.0
    wake_seconds: float = 120.0
    reload_seconds: float = 600.0
    reset_seconds: float = 30.0
    read_back_seconds: float = 30.0


def command_line(
    program: str,
    model_path: str,
    port: int,
    served_names: Sequence[str],
    extra_args: Sequence[str],
    *,
    socket_path: Path | None = None,
) -> tuple[str, ...]:
    """The command line of an engine. Its answers carry the first of the served names.

    With a socket vLLM ignores the port; a program that ignores the socket instead listens there.
    """
    on_socket = () if socket_path is None else (SOCKET_FLAG, str(socket_path))
    return (
        program,
        "serve",
        model_path,
        "--served-model-name",
        *served_names,
        "--host",
        LOOPBACK,
        "--port",
        str(port),
        *on_socket,
        "--enable-sleep-mode",
        *extra_args,
    )


def environment(
    inherited: Mapping[str, str], configured: Mapping[str, str], temporary_directory: str
) -> dict[str, str]:
    """The environment of an engine, whose sockets and temporary files stay in its own directory."""
    return {
        **inherited,
        "VLLM_SERVER_DEV_MODE": "1",
        "NO_COLOR": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_SECONDS),
        "TMPDIR": temporary_directory,
        "VLLM_RPC_BASE_PATH": temporary_directory,
        **configured,
    }


def refuses_socket(lines: Sequence[str]) -> bool:
    """Whether an engine's last lines of output say that it does not know the flag for a Unix socket."""
    return any(_SOCKET_REFUSED.search(line) for line in lines)


def reports_out_of_memory(lines: Sequence[str]) -> bool:
    """Whether an engine's last lines of output say that the GPU had too little memory for it."""
    return any(_OUT_OF_MEMORY.search(line) for line in lines)


def known_cause(lines: Sequence[str]) -> str | None:
    """Why an engine ended, if its last lines of output tell: in words of our own, since clients must not see those."""
    causes = (cause for line in reversed(lines) for pattern, cause in _CAUSES if pattern.search(line))
    return next(causes, None)


async def fall_asleep(
    endpoints: EngineEndpoints, level: SleepLevel, timeouts: ControlTimeouts, *, keep_requests: bool = False
) -> None:
    """Put the engine to sleep and read back that it sleeps; raises ControlCallFailed.

    After a failure the engine's state is unknown (its scheduler stays paused) and it must be stopped.
    """
    # In the query string: in a body vLLM silently ignores the level.
    mode = "&mode=keep" if keep_requests else ""
    await endpoints.post(f"/sleep?level={level.value}{mode}", timeouts.sleep_seconds)
    await _read_back(endpoints, asleep=True, timeouts=timeouts)


async def wake_up(
    endpoints: EngineEndpoints, level: SleepLevel, timeouts: ControlTimeouts, *, keep_requests: bool = False
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


async def can_keep_requests(endpoints: EngineEndpoints, timeouts: ControlTimeouts) -> bool:
    """Whether the engine can suspend its requests: vLLM 0.17 and later, which also has ``/is_paused``."""
    try:
        await endpoints.get("/is_paused", timeouts.read_back_seconds)
    except ControlCallFailed as failure:
        if failure.status in (404, 405):
            return False
        raise
    return True


async def max_model_length(endpoints: EngineEndpoints, timeouts: ControlTimeouts) -> int | None:
    """How many tokens a request may have, from the engine's list of models; None if it does not say."""
    try:
        listed = await endpoints.get("/v1/models", timeouts.read_back_seconds)
        length = listed["data"][0]["max_model_len"]
    except (ControlCallFailed, LookupError, TypeError):
        return None
    return length if isinstance(length, int) else None


async def pause_requests(endpoints: EngineEndpoints, timeouts: ControlTimeouts) -> None:
    """Stop the engine's scheduler, keeping all requests and their KV cache; raises ControlCallFailed."""
    await endpoints.post("/pause?mode=keep&clear_cache=false", timeouts.sleep_seconds)


async def resume_requests(endpoints: EngineEndpoints, timeouts: ControlTimeouts) -> None:
    """Undo ``pause_requests``; raises ControlCallFailed. Not to be called while the engine sleeps: it would die."""
    await endpoints.post("/resume", timeouts.wake_seconds)


async def _reset_prefix_cache(endpoints: EngineEndpoints, timeouts: ControlTimeouts) -> None:
    try:
        await endpoints.post("/reset_prefix_cache", timeouts.reset_seconds)
    except ControlCallFailed:
        # A precaution that may fail: /sleep has emptied the cache already.
        return


async def _read_back(endpoints: EngineEndpoints, *, asleep: bool, timeouts: ControlTimeouts) -> None:
    document = await endpoints.get("/is_sleeping", timeouts.read_back_seconds)
    is_sleeping = document.get("is_sleeping") if isinstance(document, dict) else None
    if is_sleeping is not asleep:
        wanted = "asleep" if asleep else "awake"
        raise ControlCallFailed("GET /is_sleeping", f"the engine should be {wanted} and says {document!r}")
