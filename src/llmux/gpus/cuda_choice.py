"""Chooses what suspends CUDA processes on this machine: the driver's API, or else the program cuda-checkpoint."""

import asyncio

import structlog

from llmux.gpus.cuda import CudaAction, CudaState, CudaUnusable
from llmux.gpus.cuda_driver import CudaDriver
from llmux.gpus.cuda_program import CudaProgram

log = structlog.get_logger("llmux.gpus")

REFUSAL_SECONDS = 60.0
"""How long what does not work is taken not to: what was missing may be installed while llmux runs."""
REMEDY = (
    "install driver 570 or later and 'pip install llmux-gateway[cuda]', or put cuda-checkpoint on PATH and into "
    "checkpoint.cuda_checkpoint_path"
)


class ChosenCuda:
    """The first of the two that works, chosen at the first use and then kept."""

    def __init__(self, driver: CudaDriver, program: CudaProgram) -> None:
        self._candidates = (driver, program)
        self._chosen: CudaDriver | CudaProgram | None = None
        self._refusal: CudaUnusable | None = None
        self._refused_at = 0.0
        self._choosing = asyncio.Lock()

    async def check(self) -> None:
        """Choose; raises CudaUnusable. Success is remembered, failure for a minute."""
        await self._choice()

    async def state(self, pid: int) -> CudaState | None:
        return await (await self._choice()).state(pid)

    async def act(self, action: CudaAction, pid: int, limit_seconds: float) -> None:
        await (await self._choice()).act(action, pid, limit_seconds)

    async def close(self) -> None:
        """End what was started."""
        for candidate in self._candidates:
            await candidate.close()

    async def _choice(self) -> CudaDriver | CudaProgram:
        async with self._choosing:
            if self._chosen is None:
                now = asyncio.get_running_loop().time()
                if self._refusal is not None and now - self._refused_at < REFUSAL_SECONDS:
                    raise self._refusal
                try:
                    self._chosen = await self._choose()
                except CudaUnusable as refusal:
                    self._refusal, self._refused_at = refusal, now
                    raise
                log.info("CUDA processes are suspended by", means=str(self._chosen))
            return self._chosen

    async def _choose(self) -> CudaDriver | CudaProgram:
        reasons: list[str] = []
        for candidate in self._candidates:
            try:
                await candidate.check()
            except CudaUnusable as refusal:
                reasons.append(str(refusal))
            else:
                return candidate
        raise CudaUnusable(f"CUDA processes cannot be suspended here: {'; '.join(reasons)}: {REMEDY}")
