"""What vLLM does beside answering: its sleep, its workers' calls, and what goes wrong when they are used wrongly."""

import asyncio
from collections.abc import Collection

from llmux.simulation.engine.core import DEAD, ILLEGAL_ACCESS, Answer, PauseMode, SimulatedEngine, failure, log
from llmux.simulation.engine.faults import Fault
from llmux.simulation.engine.memory import KV_CACHE, TAGS, WEIGHTS, read_weights
from llmux.simulation.ledger import LedgerFull

KNOWN_RPC_METHODS = frozenset(
    {"reload_weights", "suspend_nccl", "resume_nccl", "checkpoint_prepare", "checkpoint_restore"}
)

PREPARATIONS = ("checkpoint_prepare", "suspend_nccl")


class SimulatedVllm(SimulatedEngine):
    """A simulated engine with vLLM's controls."""

    level = 0
    _keeps_offloaded_kv = False

    async def suspend(self, mode: PauseMode, *, clears_connector: bool) -> None:
        """``POST /pause``. ``clears_connector``: KV cache that is in host memory, too, is lost with that of the GPU."""
        self._keeps_offloaded_kv = self.options.kv_offloading_gib > 0 and not clears_connector
        await self.pause(mode)

    async def sleep(self, level: int, mode: PauseMode, *, clears_connector: bool = True) -> Answer:
        """``POST /sleep``. The memory is free when this returns."""
        if not self.lives():
            return DEAD
        if self._generations and mode is not PauseMode.KEEP:
            self.counters.slept_under_requests += 1
        await self.suspend(mode, clears_connector=clears_connector)
        await self._reach_workers()
        await asyncio.sleep(self.timings.sleep_seconds)
        if not self.lives():
            return DEAD
        if self.faults.strikes(Fault.SLEEP_500):
            return failure("injected failure of sleep")
        if level and not self._asleep:
            self.counters.sleeps += 1
            self._asleep = set(TAGS)
            self.level = level
            self._discard_kv_cache(is_offloaded=self._keeps_offloaded_kv)
            if self.options.sleep_mode:
                self._weights_valid = self._weights_valid and level == 1
                self._memory.hold(self._asleep, keep_weights=level == 1)
        log(f"It took {self.timings.sleep_seconds:.6f} seconds to fall asleep.")
        return Answer(200, {"status": "sleeping", "level": level})

    async def release_kv_cache(self) -> Answer:
        """``POST /release_kv_cache_memory``: the weights stay. It wants a pause, and everything awake."""
        if not self.lives():
            return DEAD
        if not self.paused:
            return failure("release_kv_cache_memory() requires a completed pause first")
        if self._asleep:
            return failure("release_kv_cache_memory() requires all executor memory to be resident")
        await self._computes.wait()
        await asyncio.sleep(self.timings.sleep_seconds)
        if self.faults.strikes(Fault.SLEEP_500):
            return failure("injected failure of release_kv_cache_memory")
        self.counters.sleeps += 1
        self._asleep = {KV_CACHE}
        self._discard_kv_cache(is_offloaded=self._keeps_offloaded_kv)
        if self.options.sleep_mode:
            self._memory.hold(self._asleep)
        return Answer(200, {"status": "kv_cache_released"})

    async def wake(self, tags: Collection[str]) -> Answer:
        """``POST /wake_up``; no tags means all of them. The scheduler resumes when the last tag is awake."""
        if not self.lives():
            return DEAD
        if self.faults.strikes(Fault.WAKE_HANG):
            await asyncio.Event().wait()
        await self._reach_workers()
        await asyncio.sleep(self.timings.wake_seconds)
        if self.faults.strikes(Fault.WAKE_500):
            return failure("injected failure of wake_up")
        wanted = [tag for tag in TAGS if tag in self._asleep and (not tags or tag in tags)]
        if wanted and not self._take_memory(self._asleep.difference(wanted)):
            return DEAD
        self._asleep.difference_update(wanted)
        if self.faults.strikes(Fault.WAKE_GARBAGE):
            self._weights_valid = False
        if not self._asleep and (wanted or not tags or "scheduling" in tags):
            self.counters.wakes += bool(wanted)
            self.level = 0
            self.resume()
        log(f"It took {self.timings.wake_seconds:.6f} seconds to wake up tags {wanted}.")
        return Answer(200, {"status": "sleeping" if self.sleeping else "awake", "tags": list(tags) or None})

    async def call_workers(self, method: str) -> Answer:
        """``POST /collective_rpc``."""
        if not self.lives():
            return DEAD
        if method not in KNOWN_RPC_METHODS:
            return failure(f"'Worker' object has no attribute '{method}'")
        await self._reach_workers()
        self.counters.worker_calls.append(method)
        if method in PREPARATIONS and self.faults.strikes(Fault.PREPARE_500):
            return failure(f"injected failure of {method}")
        if method == "reload_weights":
            if self.faults.strikes(Fault.RELOAD_500):
                return failure("injected failure of reload_weights")
            if WEIGHTS in self._asleep:
                self.die(ILLEGAL_ACCESS)
                return DEAD
            await asyncio.sleep(self.timings.reload_seconds)
            if self.options.reads_weights:
                await asyncio.to_thread(read_weights, self.options.model)
            self._weights_valid = True
        return Answer(200, {"results": [None]})

    async def _reach_workers(self) -> None:
        self._count_if_stopped()
        await self._computes.wait()

    def _take_memory(self, asleep: set[str]) -> bool:
        try:
            if self.options.sleep_mode:
                self._memory.hold(asleep, keep_weights=self.level == 1)
        except LedgerFull as error:
            self._die_of_memory(error)
            return False
        return True
