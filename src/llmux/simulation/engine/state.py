"""The engine proper: its scheduler and its sleep, with what vLLM does wrong when it is used wrongly."""

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Any

from llmux.simulation.engine.faults import Fault, Faults
from llmux.simulation.engine.generation import Generation
from llmux.simulation.engine.latency import Timings
from llmux.simulation.engine.memory import TAGS, WEIGHTS, EngineMemory
from llmux.simulation.engine.options import EngineOptions
from llmux.simulation.ledger import LedgerFull

KNOWN_RPC_METHODS = frozenset(
    {"reload_weights", "suspend_nccl", "resume_nccl", "checkpoint_prepare", "checkpoint_restore"}
)

SLIP_SECONDS = 0.05
"""A token that is later than this does not make the next ones come faster."""

ILLEGAL_ACCESS = "CUDA error: an illegal memory access was encountered"


class PauseMode(StrEnum):
    """What a pause does about requests in flight."""

    ABORT = "abort"
    WAIT = "wait"
    KEEP = "keep"


class _Pause(Enum):
    NONE = auto()
    NEW = auto()
    """Running requests go on, waiting ones stay waiting."""
    ALL = auto()


class EngineDead(Exception):
    """The engine core is gone; only the HTTP server is left."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A control request's outcome."""

    status: int
    body: dict[str, Any]


@dataclass(slots=True)
class Counters:
    """What tests ask of an engine afterwards (``GET /stats``)."""

    request_count: int = 0
    requests_while_asleep: int = 0
    """Requests that came while it slept, was falling asleep, waking up or paused: an orchestrator's mistake."""
    slept_under_requests: int = 0
    """Calls of /sleep, not in mode keep, that found requests in flight: another one."""
    aborted: int = 0
    garbage_tokens: int = 0
    tokens: int = 0
    sleeps: int = 0
    wakes: int = 0
    peak_running: int = 0


class SimulatedEngine:
    """One model's engine; all methods run on one event loop."""

    def __init__(
        self,
        options: EngineOptions,
        timings: Timings,
        faults: Faults,
        memory: EngineMemory,
        ended: Callable[[bool], None],
    ) -> None:
        """``ended`` is told of the engine's death: whether the whole process has to go at once."""
        self.options = options
        self.timings = timings
        self.faults = faults
        self.counters = Counters()
        self.level = 0
        self.running = 0
        self._waiting: deque[Generation] = deque()
        self._generations: dict[Generation, None] = {}
        """In the order in which they came: what slept goes on in it."""
        self._writing: set[Generation] = set()
        """Those that have been read: only they slow each other down."""
        self._dead = False
        self._memory = memory
        self._ended = ended
        self._asleep: set[str] = set()
        self._weights_valid = True
        self._has_read_at = 0.0
        self._pause_kind = _Pause.NONE
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._waiting)

    @property
    def paused(self) -> bool:
        """Whether the scheduler takes on no requests."""
        return self._pause_kind is not _Pause.NONE

    @property
    def sleeping(self) -> bool:
        """As vLLM has it: asleep in part or in whole, or merely paused."""
        return self.paused or bool(self._asleep)

    @contextmanager
    def request(self, generation: Generation) -> Iterator[None]:
        """Queue a request; leaving the block, however that comes about, takes it out of the engine."""
        self.counters.request_count += 1
        self.counters.requests_while_asleep += self.sleeping
        if Fault.DIE_ON_REQUEST in self.faults:
            at_once = self.faults.argument(Fault.DIE_ON_REQUEST, "engine") == "exit"
            self.die("no kernel for this head size", at_once=at_once)
        if not self.lives():
            raise EngineDead
        self._generations[generation] = None
        self._waiting.append(generation)
        try:
            self._admit()
            yield
        finally:
            self._release(generation)

    async def next_token(self, generation: Generation) -> str | None:
        """The next token when its time has come; None at the end. Raises EngineDead."""
        if generation.produced == generation.limit:
            return None
        goes_on = await self._turn(generation)
        has_slept = True
        while goes_on and has_slept:
            sleeps = self.counters.sleeps
            if delay := self._delay_before_token(generation):
                await generation.wait(delay)
                goes_on = await self._turn(generation)
            has_slept = self.counters.sleeps != sleeps
        if not goes_on:
            return None
        self._count_token()
        self._writing.add(generation)
        token = generation.next_token(self._weights_valid)
        if generation.produced == generation.limit:
            self._release(generation)
        return token

    def _delay_before_token(self, generation: Generation) -> float:
        """Tokens follow each other at their rate, not at their rate after whatever else was done in between."""
        unread, generation.unread = generation.unread, None
        now = asyncio.get_running_loop().time()
        if unread is None:
            share = (len(self._writing) - 1) / max(1, self.options.max_running - 1)
            due_at = generation.due_at + self.timings.before_token(share)
            generation.due_at = due_at if due_at > now - SLIP_SECONDS else now
            return max(0.0, generation.due_at - now)
        delay = 0.0 if generation.produced else self.timings.first_token_seconds
        if reading := self.timings.prefill_seconds(unread):
            self._has_read_at = max(self._has_read_at, now) + reading
            delay += self._has_read_at - now
        generation.due_at = now + delay
        return delay

    async def _turn(self, generation: Generation) -> bool:
        """Wait while the engine is paused or full; False: the request was aborted."""
        while self.lives():
            if generation.aborted:
                return False
            if generation.admitted and self._pause_kind is not _Pause.ALL:
                if not self._asleep:
                    return True
                self.die(ILLEGAL_ACCESS)
            else:
                await generation.wait()
        raise EngineDead

    def _admit(self) -> None:
        while self._waiting and self.running < self.options.max_running and not self.paused and self.lives():
            if self._asleep:
                self.die(ILLEGAL_ACCESS)
                return
            generation = self._waiting.popleft()
            generation.admitted = True
            generation.interrupt()
            self.running += 1
            self.counters.peak_running = max(self.counters.peak_running, self.running)
            self._idle.clear()

    def _release(self, generation: Generation) -> None:
        if generation not in self._generations:
            return
        del self._generations[generation]
        self._writing.discard(generation)
        if generation.admitted:
            self.running -= 1
        else:
            self._waiting.remove(generation)
        self._admit()
        if not self.running:
            self._idle.set()

    def _count_token(self) -> None:
        self.counters.tokens += 1
        self.counters.garbage_tokens += not self._weights_valid
        if Fault.DIE_AFTER_TOKENS in self.faults:
            left = int(self.faults.argument(Fault.DIE_AFTER_TOKENS, "1")) - 1
            if left < 0:
                self.die("worker process died unexpectedly")
                raise EngineDead
            self.faults.switch(Fault.DIE_AFTER_TOKENS, True, str(left))

    async def pause(self, mode: PauseMode) -> None:
        """Stop scheduling; in mode wait this returns when the running requests have ended."""
        self._pause_kind = _Pause.NEW if mode is PauseMode.WAIT else _Pause.ALL
        if mode is PauseMode.ABORT:
            for generation in list(self._generations):
                self.counters.aborted += 1
                generation.aborted = True
                generation.interrupt()
                self._release(generation)
        elif mode is PauseMode.WAIT:
            await self.idle()

    async def idle(self) -> None:
        """Wait until no request runs."""
        await self._idle.wait()

    def resume(self) -> None:
        """Schedule again, even while asleep: then the next request kills the engine."""
        self._pause_kind = _Pause.NONE
        self._admit()
        for generation in list(self._generations):
            generation.interrupt()

    async def sleep(self, level: int, mode: PauseMode) -> Answer:
        """As ``POST /sleep``; the memory is free when this returns."""
        if not self.lives():
            return _DEAD
        if self._generations and mode is not PauseMode.KEEP:
            self.counters.slept_under_requests += 1
        await self.pause(mode)
        await asyncio.sleep(self.timings.sleep_seconds)
        if not self.lives():
            return _DEAD
        if self.faults.strikes(Fault.SLEEP_500):
            return _failure("injected failure of sleep")
        if level and not self._asleep:
            self.counters.sleeps += 1
            self._asleep = set(TAGS)
            self.level = level
            self._forget()
            if self.options.sleep_mode:
                self._weights_valid = self._weights_valid and level == 1
                self._memory.hold(self._asleep, keep_weights=level == 1)
        log(f"It took {self.timings.sleep_seconds:.6f} seconds to fall asleep.")
        return Answer(200, {"status": "sleeping", "level": level})

    def _forget(self) -> None:
        """The KV cache is gone: what is suspended has to be read again, with what has been written of it."""
        self._has_read_at = 0.0
        self._writing.clear()
        for generation in self._generations:
            generation.unread = generation.prompt_tokens + generation.produced

    async def wake(self, tags: Collection[str]) -> Answer:
        """As ``POST /wake_up``; no tags means all of them. The scheduler resumes with the last one."""
        if not self.lives():
            return _DEAD
        if self.faults.strikes(Fault.WAKE_HANG):
            await asyncio.Event().wait()
        await asyncio.sleep(self.timings.wake_seconds)
        if self.faults.strikes(Fault.WAKE_500):
            return _failure("injected failure of wake_up")
        wanted = [tag for tag in TAGS if tag in self._asleep and (not tags or tag in tags)]
        if wanted and not self._take_memory(self._asleep.difference(wanted)):
            return _DEAD
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
        """As ``POST /collective_rpc``."""
        if not self.lives():
            return _DEAD
        if method not in KNOWN_RPC_METHODS:
            return _failure(f"'Worker' object has no attribute '{method}'")
        if method == "reload_weights":
            if self.faults.strikes(Fault.RELOAD_500):
                return _failure("injected failure of reload_weights")
            if WEIGHTS in self._asleep:
                self.die(ILLEGAL_ACCESS)
                return _DEAD
            await asyncio.sleep(self.timings.reload_seconds)
            self._weights_valid = True
        return Answer(200, {"results": [None]})

    def lives(self) -> bool:
        """Whether the engine core still runs."""
        return not self._dead

    def healthy(self) -> bool:
        """As ``lives``; also takes the memory again after a restore from an image."""
        if self.lives():
            try:
                self._memory.claim_again_if_restored()
            except LedgerFull as error:
                self.die_of_memory(error)
        return self.lives()

    def _take_memory(self, asleep: set[str]) -> bool:
        try:
            if self.options.sleep_mode:
                self._memory.hold(asleep, keep_weights=self.level == 1)
        except LedgerFull as error:
            self.die_of_memory(error)
            return False
        return True

    def die_of_memory(self, error: LedgerFull) -> None:
        """The virtual GPU has no room."""
        log_out_of_memory(error)
        self.die("torch.OutOfMemoryError")

    def die(self, reason: str, *, at_once: bool = False) -> None:
        """The engine core ends: every request gets a 500, and the process follows with exit code 0."""
        if not self.lives():
            return
        log(f"ERROR EngineCore encountered a fatal error: {reason}")
        self._dead = True
        self._ended(at_once)
        for generation in list(self._generations):
            generation.interrupt()
        self._idle.set()


def log(line: str) -> None:
    """Write a line as vLLM's log does."""
    sys.stderr.write(f"(EngineCore) {line}\n")


def log_out_of_memory(error: LedgerFull) -> None:
    """What CUDA out of memory looks like in a log."""
    sys.stderr.write(
        "(EngineCore) Traceback (most recent call last):\n"
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {error.wanted_mib}.00 MiB. GPU 0 has a total "
        f"capacity of {error.capacity_mib}.00 MiB of which {error.free_mib}.00 MiB is free.\n"
    )


def _failure(message: str) -> Answer:
    return Answer(500, {"error": {"message": message, "type": "InternalServerError", "param": None, "code": 500}})


_DEAD = _failure("EngineCore encountered an issue. See stack trace (above) for the root cause.")
DEAD_ERROR: dict[str, Any] = _DEAD.body
