"""GPU memory: how much there is, which processes hold it, and waiting until an engine's share of it is free."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from llmux.errors import GpusUnreadable

log = structlog.get_logger("llmux.gpus")

MIB = 1 << 20
READ_LIMIT_SECONDS = 10.0
"""A read takes milliseconds unless the driver hangs."""
POLL_INTERVAL_SECONDS = 0.1
LEAST_SHARE_FREED = 0.2
"""Of what an engine held, that any real release gives back: a small model's CUDA context and graphs may be half of
it. Engines that answer 200 and release nothing give back none."""
LEAST_SHARE_OF_A_PART = 0.01
"""The same for an engine that keeps its weights: of a large model with a small KV cache that is little, not nothing."""
PROCESSES_SHOWN = 8
"""In a warning; the largest ones come first."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """One GPU's memory at one moment."""

    gpu: str
    """A name for the operator, such as the GPU's UUID."""
    total_mib: int
    used_mib: int
    name: str = ""
    """Its model, such as NVIDIA A100-SXM4-80GB; empty if that is not known."""

    @property
    def free_mib(self) -> int:
        """Memory that can be allocated now."""
        return self.total_mib - self.used_mib


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process and what it holds of one GPU; ``mib`` is None where the driver does not report the amount."""

    pid: int
    name: str
    mib: int | None
    gpu: str = ""
    """As ``GpuMemory.gpu``."""

    def __str__(self) -> str:
        amount = "unknown" if self.mib is None else f"{self.mib} MiB"
        return f"{self.name} (pid {self.pid}, {amount})"


class GpuReader(Protocol):
    """Reads the GPUs that are visible to one engine, in the engine's order. Both methods block."""

    def read_memory(self) -> tuple[GpuMemory, ...]:
        """Memory of each GPU; raises GpusUnreadable."""

    def read_processes(self) -> tuple[GpuProcess, ...]:
        """Processes with memory on these GPUs, largest first, each once for every GPU; raises GpusUnreadable."""


@dataclass(frozen=True, slots=True)
class StartNeed:
    """Free memory that an engine needs on each of its GPUs to start: a share of the total, or an amount."""

    share: float = 0.0
    mib: int = 0

    def on(self, gpu: GpuMemory) -> int:
        """The need on this GPU, in MiB."""
        return max(self.mib, int(self.share * gpu.total_mib))


def total_used_mib(memory: Sequence[GpuMemory]) -> int:
    """Used memory of all GPUs together."""
    return sum(gpu.used_mib for gpu in memory)


class GpuHeadroom:
    """Waits, for a bounded time, until the memory that one model's engine is about to allocate is free.

    The driver frees the memory of an ended or sleeping engine a moment after the engine reports success. Processes of
    others are never killed: after the time limit a warning names them and the engine is tried regardless.
    """

    def __init__(
        self,
        model: str,
        reader: GpuReader | None,
        start_need: StartNeed | None,
        *,
        wait_seconds: float = 10.0,
        reader_of: Callable[[tuple[str, ...]], GpuReader | None] | None = None,
    ) -> None:
        """``reader`` is None without GPUs to read; ``start_need`` is None if unknown: a start then does not wait.

        ``reader_of`` makes a reader of certain GPUs, for an engine that is not always started on the same ones.
        """
        self.reader = reader
        self._reader_of = reader_of
        self._model = model
        self._start_need = start_need
        self._wait_seconds = wait_seconds
        self._freed_mib: dict[str, int] = {}
        """By GPU: what the engine released since it was last awake, and allocates again when it wakes."""
        self._held_awake_mib: int | None = None
        """What its processes held when it was last awake; None if that is not known."""
        self._is_readable = True

    async def read(self) -> tuple[GpuMemory, ...]:
        """The GPUs' memory now; empty if it cannot be read. After the first failure it is not tried again."""
        if self.reader is None or not self._is_readable:
            return ()
        try:
            # A driver that hangs must not block evictions too.
            async with asyncio.timeout(READ_LIMIT_SECONDS):
                return await asyncio.to_thread(self.reader.read_memory)
        except (GpusUnreadable, TimeoutError) as error:
            self._is_readable = False
            log.debug("GPU memory cannot be read", model=self._model, reason=str(error) or "no answer")
            return ()

    def record_freed(
        self, before: Sequence[GpuMemory], after: Sequence[GpuMemory], held_mib: int | None = None
    ) -> None:
        """Add what an eviction step freed to what the next wake must find free.

        ``held_mib``: what the engine's processes held before, by which ``wait_to_wake`` sees what is freed later.
        """
        if self._held_awake_mib is None:
            self._held_awake_mib = held_mib
        used_before = {gpu.gpu: gpu.used_mib for gpu in before}
        for gpu in after:
            freed_mib = used_before.get(gpu.gpu, 0) - gpu.used_mib
            if freed_mib > 0:
                self._freed_mib[gpu.gpu] = self._freed_mib.get(gpu.gpu, 0) + freed_mib

    async def held_mib(self, is_own: Callable[[int], bool]) -> int | None:
        """What an engine's processes hold on its GPUs together; as ``held_by_gpu``."""
        held = await self.held_by_gpu(is_own)
        return None if held is None else sum(held.values())

    async def held_by_gpu(self, is_own: Callable[[int], bool]) -> Mapping[str, int] | None:
        """What an engine's processes hold of each of its GPUs, in MiB; None if the driver does not tell.

        ``is_own`` says whether a process is the engine's; it is called in a thread. In a container the driver's
        process numbers may be others than ours: then nothing seems to be held.
        """
        if self.reader is None or not self._is_readable:
            return None
        reader = self.reader

        def read() -> Mapping[str, int] | None:
            held: dict[str, int] = {}
            for process in reader.read_processes():
                if is_own(process.pid):
                    if process.mib is None:
                        return None
                    held[process.gpu] = held.get(process.gpu, 0) + process.mib
            return held

        try:
            async with asyncio.timeout(READ_LIMIT_SECONDS):
                return await asyncio.to_thread(read)
        except (GpusUnreadable, TimeoutError):
            return None

    async def settled_by_gpu(self, is_own: Callable[[int], bool]) -> Mapping[str, int] | None:
        """As ``held_by_gpu``, once it does not change any more; None if it still does when the time is up."""
        give_up_at = asyncio.get_running_loop().time() + self._wait_seconds
        before = await self.held_by_gpu(is_own)
        while before is not None and asyncio.get_running_loop().time() < give_up_at:
            await asyncio.sleep(POLL_INTERVAL_SECONDS)
            now = await self.held_by_gpu(is_own)
            if now == before:
                return now
            before = now
        return None

    async def holders(self) -> frozenset[int]:
        """The processes that the driver lists on the GPUs, by their numbers; empty if it does not tell."""
        if self.reader is None or not self._is_readable:
            return frozenset()
        try:
            async with asyncio.timeout(READ_LIMIT_SECONDS):
                return frozenset(one.pid for one in await asyncio.to_thread(self.reader.read_processes))
        except (GpusUnreadable, TimeoutError):
            return frozenset()

    async def wait_until_freed(
        self, is_own: Callable[[int], bool], held_mib: int, least_share: float = LEAST_SHARE_FREED
    ) -> int | None:
        """Wait until an engine that held so much has given back a part of it that only a real release can be.

        Returns what it still holds if it keeps nearly all of it for the whole time, else None. Engines and drivers free
        memory a moment after the engine has said so.
        """
        if not self._wait_seconds:
            return None
        give_up_at = asyncio.get_running_loop().time() + self._wait_seconds
        while True:
            kept_mib = await self.held_mib(is_own)
            if kept_mib is None or kept_mib <= held_mib * (1 - least_share):
                return None
            if asyncio.get_running_loop().time() >= give_up_at:
                return kept_mib
            await asyncio.sleep(POLL_INTERVAL_SECONDS)

    def move_to(self, devices: tuple[str, ...]) -> None:
        """An engine is about to be started on these GPUs, as CUDA_VISIBLE_DEVICES names them; empty: on all."""
        self.forget_freed()
        if devices and self._reader_of is not None:
            self.reader = self._reader_of(devices)

    def forget_freed(self) -> None:
        """Start over: the engine is awake again, or has ended."""
        self._freed_mib.clear()
        self._held_awake_mib = None

    async def wait_to_start(self) -> None:
        """Return when the engine can start, or when the time is up."""
        if (need := self._start_need) is not None and self._wait_seconds:
            memory = await self.read()
            await self._wait({gpu.gpu: need.on(gpu) for gpu in memory}, memory)

    async def missing_to_start(self) -> str | None:
        """Wait as ``wait_to_start`` does, for a program that must not be started before: None once it can be.

        Else what is missing in the end, and who has it.
        """
        memory = await self.read()
        need = self._start_need or StartNeed()
        short = await self._until_free({gpu.gpu: need.on(gpu) for gpu in memory}, memory)
        if not short:
            return None
        missing = "; ".join(f"of GPU {gpu.gpu} {gpu.free_mib} MiB are free, {need.on(gpu)} wanted" for gpu in short)
        holders = ", ".join(map(str, (await self._processes())[:PROCESSES_SHOWN]))
        return f"{missing}; held by {holders or 'nobody that the driver names'}"

    async def wait_to_wake(self, is_own: Callable[[int], bool] | None = None) -> None:
        """Return when as much is free as the engine released, or when the time is up.

        ``is_own`` as in ``held_mib``: what was still in use when its eviction was over is then counted too.
        """
        if self._freed_mib and self._wait_seconds:
            await self._wait(await self._needed_to_wake(is_own), await self.read())

    async def _needed_to_wake(self, is_own: Callable[[int], bool] | None) -> Mapping[str, int]:
        held_mib = None if is_own is None or not self._held_awake_mib else await self.held_mib(is_own)
        seen_mib = sum(self._freed_mib.values())
        if held_mib is None or self._held_awake_mib is None or self._held_awake_mib - held_mib <= seen_mib:
            return self._freed_mib
        # How the rest is spread over the GPUs is not known: as what was seen.
        freed_mib = self._held_awake_mib - held_mib
        return {gpu: mib * freed_mib // seen_mib for gpu, mib in self._freed_mib.items()}

    async def _wait(self, needed_mib: Mapping[str, int], memory: Sequence[GpuMemory]) -> None:
        if short := await self._until_free(needed_mib, memory):
            await self._warn(needed_mib, short)

    async def _until_free(self, needed_mib: Mapping[str, int], memory: Sequence[GpuMemory]) -> Sequence[GpuMemory]:
        """Wait until so much is free; returns the GPUs on which it is not when the time is up."""
        began_at = asyncio.get_running_loop().time()
        while short := [gpu for gpu in memory if gpu.free_mib < needed_mib.get(gpu.gpu, 0)]:
            if asyncio.get_running_loop().time() - began_at >= self._wait_seconds:
                return short
            await asyncio.sleep(POLL_INTERVAL_SECONDS)
            memory = await self.read()
        return ()

    async def _processes(self) -> Sequence[GpuProcess]:
        try:
            async with asyncio.timeout(READ_LIMIT_SECONDS):
                return () if self.reader is None else await asyncio.to_thread(self.reader.read_processes)
        except (GpusUnreadable, TimeoutError):
            return ()

    async def _warn(self, needed_mib: Mapping[str, int], short: Sequence[GpuMemory]) -> None:
        processes = await self._processes()
        log.warning(
            "GPU memory is not free; the engine is tried all the same",
            model=self._model,
            waited_seconds=self._wait_seconds,
            gpus=[f"{gpu.gpu}: {needed_mib[gpu.gpu]} MiB needed, {gpu.free_mib} free" for gpu in short],
            held_by=[str(process) for process in processes[:PROCESSES_SHOWN]],
        )
