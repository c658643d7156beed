"""Notices when programs that are not ours take the GPU memory that should stay free for them."""

import asyncio
from collections.abc import Callable, Mapping

import structlog

from llmux.core.events import MemoryPressure
from llmux.core.identifiers import EVERY_GPU, GpuId
from llmux.core.scheduler import Scheduler
from llmux.core.states import Cold, Failed
from llmux.errors import GpusUnreadable
from llmux.gpus.foreign import ForeignUse
from llmux.gpus.memory import PROCESSES_SHOWN, READ_LIMIT_SECONDS
from llmux.runtime.controller import Controller

log = structlog.get_logger("llmux.gpus")

LOOK_SECONDS = 1.0


class MemoryPressureWatch:
    """Looks at the GPUs while any engine of ours is on them, and tells the core what idle models shall give up."""

    def __init__(
        self,
        scheduler: Scheduler,
        controller: Controller,
        reserve_mib: int,
        read: Callable[[], Mapping[GpuId, ForeignUse]],
        on_begin: Callable[[], None] = lambda: None,
    ) -> None:
        """``reserve_mib``: what should be free of each GPU. ``read`` is called in a thread.

        ``on_begin`` is called whenever memory begins to be missing.
        """
        self._scheduler = scheduler
        self._controller = controller
        self._reserve_mib = reserve_mib
        self._read = read
        self._on_begin = on_begin
        self._is_pressed = False

    async def run(self) -> None:
        """Watch until cancelled, or until the GPUs cannot be read."""
        try:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                await self.look()
        except (GpusUnreadable, TimeoutError) as error:
            log.warning("gpu_memory_reserve has no effect", reason=str(error) or "the driver does not answer")

    async def look(self) -> None:
        """Look once, if there is anything to be given up or back. Raises GpusUnreadable, TimeoutError."""
        if not self._is_pressed and not self._has_engines():
            return
        async with asyncio.timeout(READ_LIMIT_SECONDS):
            uses = await asyncio.to_thread(self._read)
        missing = {gpu: mib for gpu, use in uses.items() if (mib := use.missing_mib(self._reserve_mib)) > 0}
        if missing and not self._is_pressed:
            self._begin(uses, missing)
        elif self._is_pressed and not missing:
            log.info("no GPU memory is missing any more")
        if missing or self._is_pressed:
            self._is_pressed = bool(missing)
            self._controller.feed(MemoryPressure({gpu: 1 if gpu == EVERY_GPU else mib for gpu, mib in missing.items()}))

    def _has_engines(self) -> bool:
        models = self._scheduler.models
        return any(model.spec.uses_gpu and not isinstance(model.state, Cold | Failed) for model in models)

    def _begin(self, uses: Mapping[GpuId, ForeignUse], missing: Mapping[GpuId, int]) -> None:
        self._on_begin()
        processes = [process for gpu in missing for process in uses[gpu].processes]
        log.warning(
            "other programs have taken GPU memory: idle models make room",
            gpus=[f"{gpu.uuid}: {uses[gpu].free_mib} MiB free, {mib} missing" for gpu, mib in missing.items()],
            reserve_mib=self._reserve_mib,
            held_by=[str(process) for process in processes[:PROCESSES_SHOWN]],
        )
