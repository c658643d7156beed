"""vLLM: its command line, and how it is put to sleep and woken.

Sleep mode's endpoints exist only in vLLM's development mode, which is why every engine listens on loopback alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmux.engines.control_calls import ControlCallFailed, EngineEndpoints
from llmux.engines.steps import Sleep, SleepLevel

KEEP_ALIVE_SECONDS = 3600
"""Longer than the gateway's pool keeps an idle connection, so that the engine never closes one as it is being used."""


WITHOUT_IO_URING = {"UV_USE_IO_URING": "0", "USE_LIBUV": "0"}
"""What keeps older uvloops and torch's stores from files that criu cannot dump; the shim's filter keeps newer ones."""

_LACK_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|less than desired GPU memory utilization|No available memory for the cache blocks",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ControlTimeouts:
    """How long each control call may take."""

    sleep_seconds: float = 120.0
    wake_seconds: float = 120.0
    reload_seconds: float = 600.0
    reset_seconds: float = 30.0
    read_back_seconds: float = 30.0


def command_line(
    program: str, model_path: str, port: int, served_names: Sequence[str], extra_args: Sequence[str]
) -> tuple[str, ...]:
    """The arguments to start vLLM with. Answers carry the first of the served names."""
    return (
        program,
        "serve",
        model_path,
        "--served-model-name",
        *served_names,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--enable-sleep-mode",
        *extra_args,
    )


def environment(
    inherited: Mapping[str, str], configured: Mapping[str, str], temporary_directory: str
) -> dict[str, str]:
    """The environment of an engine: its sockets and temporary files stay in its own directory."""
    return {
        **inherited,
        "VLLM_SERVER_DEV_MODE": "1",
        "NO_COLOR": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_SECONDS),
        "TMPDIR": temporary_directory,
        "VLLM_RPC_BASE_PATH": temporary_directory,
        **configured,
    }


def tells_lack_of_memory(lines: Sequence[str]) -> bool:
    """Whether an engine's last words are that the GPU had too little memory for it."""
    return any(_LACK_OF_MEMORY.search(line) for line in lines)


async def fall_asleep(endpoints: EngineEndpoints, step: Sleep, timeouts: ControlTimeouts) -> None:
    """Apply the step and read back that it worked; raises ControlCallFailed.

    The level goes into the query string: in a body it is silently ignored. After a failure the engine's state is
    unknown (its scheduler stays paused) and it must be stopped.
    """
    mode = "&mode=keep" if step.keeps_requests else ""
    await endpoints.post(f"/sleep?level={step.level.value}{mode}", timeouts.sleep_seconds)
    await _read_back(endpoints, asleep=True, timeouts=timeouts)


async def wake_up(endpoints: EngineEndpoints, step: Sleep, timeouts: ControlTimeouts) -> None:
    """Undo the step and read back that it worked; raises ControlCallFailed, after which the engine must be stopped.

    Level 2 lost the weights. They are mapped, reloaded, and only then the KV cache is mapped, at which vLLM's scheduler
    resumes: in any other order requests would run on garbage. An engine without tags wakes wholly at the first call;
    the order is right for it too, since nothing is admitted before the end.
    """
    match step.level:
        case SleepLevel.OFFLOAD:
            await endpoints.post("/wake_up", timeouts.wake_seconds)
        case SleepLevel.DISCARD:
            await endpoints.post("/wake_up?tags=weights", timeouts.wake_seconds)
            await endpoints.post("/collective_rpc", timeouts.reload_seconds, {"method": "reload_weights"})
            await endpoints.post("/wake_up?tags=kv_cache", timeouts.wake_seconds)
            if not step.keeps_requests:
                await _reset_prefix_cache(endpoints, timeouts)
    await _read_back(endpoints, asleep=False, timeouts=timeouts)


async def can_keep_requests(endpoints: EngineEndpoints, timeouts: ControlTimeouts) -> bool:
    """Whether the engine can suspend its requests: since 0.17, which also brought ``/is_paused``."""
    try:
        await endpoints.get("/is_paused", timeouts.read_back_seconds)
    except ControlCallFailed as failure:
        if failure.status in (404, 405):
            return False
        raise
    return True


async def pause_requests(endpoints: EngineEndpoints, timeouts: ControlTimeouts) -> None:
    """Stop scheduling with all requests and their caches kept; raises ControlCallFailed."""
    await endpoints.post("/pause?mode=keep&clear_cache=false", timeouts.sleep_seconds)


async def resume_requests(endpoints: EngineEndpoints, timeouts: ControlTimeouts) -> None:
    """Undo ``pause_requests``; raises ControlCallFailed. Never while the engine sleeps: that kills it."""
    await endpoints.post("/resume", timeouts.wake_seconds)


async def _reset_prefix_cache(endpoints: EngineEndpoints, timeouts: ControlTimeouts) -> None:
    try:
        await endpoints.post("/reset_prefix_cache", timeouts.reset_seconds)
    except ControlCallFailed:
        # /sleep has emptied the cache already; this second time is a precaution that may fail.
        return


async def _read_back(endpoints: EngineEndpoints, *, asleep: bool, timeouts: ControlTimeouts) -> None:
    document = await endpoints.get("/is_sleeping", timeouts.read_back_seconds)
    said = document.get("is_sleeping") if isinstance(document, dict) else None
    if said is not asleep:
        wanted = "asleep" if asleep else "awake"
        raise ControlCallFailed("GET /is_sleeping", f"the engine should be {wanted} and says {document!r}")
