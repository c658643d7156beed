"""Waiting, for a bounded time, until what an engine is about to take of its GPUs is really free."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

import structlog

from llmux.errors import GpusUnreadable
from llmux.gpus.memory import GpuMemory, GpuReader, Holder, StartNeed

log = structlog.get_logger("llmux.gpus")

READ_LIMIT_SECONDS = 10.0
LOOK_INTERVAL_SECONDS = 0.1
HOLDERS_SHOWN = 8


class GpuHeadroom:
    """One model's view of its GPUs: what its engine needs to start, and what it gave up when it left.

    Nobody's process is ever ended to make room: what stays taken is only named.
    """

    def __init__(
        self, model: str, reader: GpuReader | None, start_need: StartNeed | None, *, wait_seconds: float = 10.0
    ) -> None:
        """``reader``: None where there is none; ``start_need``: None where it is not known, and not waited for."""
        self.reader = reader
        self._model = model
        self._start_need = start_need
        self._wait_seconds = wait_seconds
        self._given_up: dict[str, int] = {}
        self._is_readable = True

    async def read(self) -> tuple[GpuMemory, ...]:
        """The GPUs' memory now; empty where it cannot be read, which is asked only once."""
        if self.reader is None or not self._is_readable:
            return ()
        try:
            # A driver that hangs must not hang the engine's evictions with it.
            async with asyncio.timeout(READ_LIMIT_SECONDS):
                return await asyncio.to_thread(self.reader.read_memory)
        except (GpusUnreadable, TimeoutError) as error:
            self._is_readable = False
            log.debug("memory is not looked at", model=self._model, reason=str(error) or "no answer")
            return ()

    def note_left(self, before: Sequence[GpuMemory], after: Sequence[GpuMemory]) -> None:
        """Remember what the engine gave up, by how much more is free than ``before``; it adds up until it is woken."""
        was = {gpu.gpu: gpu.used_mib for gpu in before}
        for gpu in after:
            freed_mib = was.get(gpu.gpu, 0) - gpu.used_mib
            if freed_mib > 0:
                self._given_up[gpu.gpu] = self._given_up.get(gpu.gpu, 0) + freed_mib

    def forget_left(self) -> None:
        """The engine is awake again, or gone."""
        self._given_up.clear()

    async def wait_to_start(self) -> None:
        """Return when an engine can start, or when the time is over."""
        if (need := self._start_need) is not None and self._wait_seconds:
            memory = await self.read()
            await self._wait({gpu.gpu: need.on(gpu) for gpu in memory}, memory)

    async def wait_to_wake(self) -> None:
        """Return when what the engine gave up is free, or when the time is over."""
        if self._given_up and self._wait_seconds:
            await self._wait(self._given_up, await self.read())

    async def _wait(self, needed_mib: Mapping[str, int], memory: Sequence[GpuMemory]) -> None:
        began_at = asyncio.get_running_loop().time()
        while lacking := _lacking(needed_mib, memory):
            waited_seconds = asyncio.get_running_loop().time() - began_at
            if waited_seconds >= self._wait_seconds:
                await self._warn(needed_mib, lacking, waited_seconds)
                return
            await asyncio.sleep(LOOK_INTERVAL_SECONDS)
            memory = await self.read()

    async def _warn(self, needed_mib: Mapping[str, int], lacking: Sequence[GpuMemory], waited_seconds: float) -> None:
        holders: tuple[Holder, ...] = ()
        with suppress(GpusUnreadable):
            holders = await asyncio.to_thread(self.reader.read_holders) if self.reader is not None else ()
        log.warning(
            "GPU memory is not free; the engine is tried all the same",
            model=self._model,
            waited_seconds=round(waited_seconds, 1),
            gpus=[f"{gpu.gpu}: {needed_mib[gpu.gpu]} MiB needed, {gpu.free_mib} free" for gpu in lacking],
            held_by=[str(holder) for holder in holders[:HOLDERS_SHOWN]],
        )


def _lacking(needed_mib: Mapping[str, int], memory: Sequence[GpuMemory]) -> list[GpuMemory]:
    return [gpu for gpu in memory if gpu.free_mib < needed_mib.get(gpu.gpu, 0)]
