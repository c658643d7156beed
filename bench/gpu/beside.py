"""llmux's reader of GPU memory against PyTorch's figures, and its wait for memory that another process holds."""

import asyncio
from dataclasses import dataclass, field
from time import monotonic

from structlog.testing import capture_logs

from bench.gpu.programs import EngineProgram, Holder, holding
from llmux.gpus.memory import GpuHeadroom, GpuMemory, GpuReader, StartNeed

TOLERANCE_MIB = 256
"""By which NVML and PyTorch may differ: both read the driver, not at the same moment."""
RELEASED_AFTER_SECONDS = 1.0
PATIENCE_SECONDS = 30.0
IMPATIENCE_SECONDS = 1.5


@dataclass(slots=True)
class Beside:
    """What was read, and how llmux behaved beside the other process; sizes in MiB."""

    pid: int = 0
    held_mib: int = 0
    reader_free_mib: int = 0
    torch_free_mib: int = 0
    seen_growth_mib: int = 0
    """By how much the reader's figure grew when the process took its memory: what it holds, and its CUDA context."""
    is_pid_visible: bool = False
    """Whether the driver names the process by the number that it has here. In some containers it does not."""
    told_mib: int | None = None
    """What the driver says that the process holds."""
    waited_seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def check_beside(program: EngineProgram, reader: GpuReader, mib: int) -> Beside:
    """Start a process that holds so much, and let llmux's reader and its wait for free memory find it."""
    result = Beside()
    [before] = reader.read_memory()[:1]
    async with holding(program, mib) as holder:
        await _compare(result, holder, reader, before)
        await _wait_in_vain(result, holder, reader)
        await _wait_until_released(result, holder, reader)
    return result


async def _compare(result: Beside, holder: Holder, reader: GpuReader, before: GpuMemory) -> None:
    result.pid = holder.pid
    said = await holder.look()
    [now] = reader.read_memory()[:1]
    result.held_mib = said["held_mib"]
    result.reader_free_mib = now.free_mib
    # Without a GPU the process knows only what it holds itself.
    result.torch_free_mib = said.get("free_mib", now.total_mib - said.get("used_mib", 0) - before.used_mib)
    result.seen_growth_mib = now.used_mib - before.used_mib
    if abs(result.reader_free_mib - result.torch_free_mib) > TOLERANCE_MIB:
        result.problems.append(f"llmux reads {result.reader_free_mib} MiB free, PyTorch {result.torch_free_mib}")
    if result.seen_growth_mib < result.held_mib:
        result.problems.append(f"a process took {result.held_mib} MiB, and llmux saw {result.seen_growth_mib}")
    own = [process for process in reader.read_processes() if process.pid == holder.pid]
    result.is_pid_visible = bool(own)
    result.told_mib = own[0].mib if own else None


async def _wait_in_vain(result: Beside, holder: Holder, reader: GpuReader) -> None:
    """What does not become free: the wait ends, with a warning that names the process."""
    [now] = reader.read_memory()[:1]
    need = StartNeed(mib=now.free_mib + result.held_mib // 2)
    headroom = GpuHeadroom("check", reader, need, wait_seconds=IMPATIENCE_SECONDS)
    with capture_logs() as logs:
        await headroom.wait_to_start()
    result.warnings = [f"{entry['event']}: {', '.join(entry.get('held_by', ()))}" for entry in logs]
    if not result.warnings:
        result.problems.append("llmux did not say that the memory which it waited for is not free")
    elif result.is_pid_visible and f"pid {holder.pid}," not in result.warnings[0]:
        result.problems.append(f"llmux did not name process {holder.pid}, which holds the memory: {result.warnings}")


async def _wait_until_released(result: Beside, holder: Holder, reader: GpuReader) -> None:
    """What becomes free during the wait: the start goes on then, without a warning."""
    [now] = reader.read_memory()[:1]
    need = StartNeed(mib=now.free_mib + result.held_mib // 2)
    headroom = GpuHeadroom("check", reader, need, wait_seconds=PATIENCE_SECONDS)
    began_at = monotonic()
    with capture_logs() as logs:
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(headroom.wait_to_start())
            await asyncio.sleep(RELEASED_AFTER_SECONDS)
            was_waiting = not waiting.done()
            await holder.release()
    result.waited_seconds = round(monotonic() - began_at, 2)
    if not was_waiting:
        result.problems.append("llmux did not wait for memory that another process held")
    if logs:
        result.problems.append(f"llmux waited for memory until it gave up, though it had become free: {logs}")
