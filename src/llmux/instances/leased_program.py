"""The program of a GPU lease, as far as llmux has to do with it: it comes when memory is free, and leaves when it ends.

llmux neither starts nor stops it, its holder does: ``llmux run``, or whoever asked for the lease. What a holder that
died has left behind is found by a variable in its environment.
"""

import asyncio
import secrets

import structlog

from llmux.core.eviction import Eviction
from llmux.core.states import Cold
from llmux.errors import FailureReason
from llmux.gpus.memory import GpuHeadroom
from llmux.hosts.marked import kill_marked
from llmux.instances.outcomes import EvictOutcome, WakeOutcome

log = structlog.get_logger("llmux.leases")

LEASE_VARIABLE = "LLMUX_GPU_LEASE"
"""Holders set it for their program, to what llmux tells them."""
HOLDER_SECONDS = 5.0
"""How much longer than its program a holder may take to end it and to close its connection."""
KILL_SECONDS = 10.0
"""As of an engine: one that takes longer hangs in the kernel, usually in a driver call."""
KILL_INTERVAL_SECONDS = 0.05


class LeasedProgram:
    """The memory that one GPU lease is about, and the end of the program that has it."""

    def __init__(self, headroom: GpuHeadroom, stop_timeout_seconds: float) -> None:
        """``stop_timeout_seconds``: how long the program may take to end when it is asked to."""
        self.token = secrets.token_hex(8)
        """The value of ``LEASE_VARIABLE``."""
        self.devices: tuple[str, ...] = ()
        """The GPUs that it is on, as CUDA_VISIBLE_DEVICES names them; empty for all that llmux sees."""
        self.stop_timeout_seconds = stop_timeout_seconds
        self.holder_left = asyncio.Event()
        """Set when the holder's connection has closed."""
        self.outlives_llmux = False
        """llmux is shutting down, and needs the memory for nobody: the program goes on without a lease."""
        self._headroom = headroom

    async def wake(self, devices: tuple[str, ...]) -> WakeOutcome:
        """Wait until the memory is really free; an error if it is not in time."""
        self.devices = devices
        self._headroom.move_to(devices)
        missing = await self._headroom.missing_to_start()
        return WakeOutcome() if missing is None else WakeOutcome(FailureReason(missing), is_out_of_memory=True)

    async def evict(self, eviction: Eviction, *, freeze: bool = False) -> EvictOutcome:
        """Wait until the program is gone, and kill what is left of it when its time to end is over."""
        if self.outlives_llmux:
            return EvictOutcome(Cold())
        try:
            async with asyncio.timeout(self.stop_timeout_seconds + HOLDER_SECONDS):
                await self.holder_left.wait()
        except TimeoutError:
            log.warning("the holder of a GPU lease does not end its program", devices=self.devices)
        left = await self._kill()
        if left:
            reason = f"processes of the program (pid {', '.join(map(str, left))}) survive SIGKILL: see dmesg"
            return EvictOutcome(Cold(), error=FailureReason(reason))
        if (missing := await self._headroom.missing_to_start()) is not None:
            log.warning("a GPU lease has ended, and its memory is not free", memory=missing)
        return EvictOutcome(Cold())

    async def end(self) -> None:
        """Kill what there is of the program."""
        await self._kill()

    def interrupt(self, reason: str) -> None:
        """Both ``wake`` and, when llmux is shutting down, ``evict`` end by themselves."""

    async def _kill(self) -> list[int]:
        """Kill the processes of the program until none is found; returns those that do not end."""
        give_up_at = asyncio.get_running_loop().time() + KILL_SECONDS
        while left := await asyncio.to_thread(kill_marked, LEASE_VARIABLE, self.token):
            if asyncio.get_running_loop().time() >= give_up_at:
                break
            await asyncio.sleep(KILL_INTERVAL_SECONDS)
        return left
