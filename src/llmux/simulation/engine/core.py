"""The simulated engine's scheduler: requests, tokens, pauses and death. What a kind of engine adds is in its module."""

import asyncio
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Any

from llmux.simulation.engine import text
from llmux.simulation.engine.faults import Fault, Faults
from llmux.simulation.engine.memory import EngineMemory
from llmux.simulation.engine.options import EngineOptions, Timings
from llmux.simulation.ledger import LedgerFull

CATCH_UP_SECONDS_MAX = 0.05
"""Tokens delayed by the event loop by up to this much are caught up; after a longer delay the rate starts anew."""

OFFLOADED_SHARE = 0.1
"""What it takes to read KV cache back from host memory, as a share of its prefill."""

ILLEGAL_ACCESS = "CUDA error: an illegal memory access was encountered"


class PauseMode(StrEnum):
    """What a pause does with requests in flight, in vLLM's words."""

    ABORT = "abort"
    WAIT = "wait"
    KEEP = "keep"


class _Paused(Enum):
    """Which requests the scheduler does not run."""

    NONE = auto()
    WAITING = auto()
    """Running requests continue, and no waiting one is admitted."""
    ALL = auto()


class EngineDead(Exception):
    """The engine core is gone; only the HTTP server is left."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to a control request."""

    status: int
    body: dict[str, Any]


@dataclass(slots=True)
class Counters:
    """What ``GET /stats`` reports, from which tests detect an orchestrator's mistakes."""

    request_count: int = 0
    requests_while_asleep: int = 0
    """Requests that arrived while it was asleep, falling asleep, waking up or paused: a mistake."""
    slept_under_requests: int = 0
    """Calls that give up memory while requests are in flight that this does not suspend: a mistake."""
    aborted: int = 0
    garbage_tokens: int = 0
    tokens: int = 0
    sleeps: int = 0
    wakes: int = 0
    recomputed_tokens: int = 0
    """What suspended requests had to prefill again; what is read back from host memory counts as the share of it."""
    peak_running: int = 0
    asked_while_stopped: int = 0
    """Calls and requests that reach it while its workers are stopped, as by a CUDA suspend: a mistake."""
    worker_calls: list[str] = field(default_factory=list)
    """The methods that were called by ``/collective_rpc``."""


class Generation:
    """One request inside the engine, from its arrival to its last token."""

    def __init__(self, tokens: Iterator[str], prompt_tokens: int, limit: int, finish_reason: str) -> None:
        """``finish_reason`` is reported once ``limit`` tokens are out, unless the request is aborted before."""
        self._tokens = tokens
        self._interrupted: asyncio.Future[None] | None = None
        self.prompt_tokens = prompt_tokens
        self.limit = limit
        self.finish_reason = finish_reason
        self.produced = 0
        self.prefill_tokens: int | None = prompt_tokens
        """Tokens to prefill before the next one can be decoded; None once that is done."""
        self.due_at = 0.0
        """When the latest token was due, on the event loop's clock."""
        self.admitted = False
        self.aborted = False

    def next_token(self, weights_valid: bool) -> str:
        """The next token; garbage while the weights are invalid."""
        token = next(self._tokens)
        self.produced += 1
        return token if weights_valid else text.GARBAGE

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until ``interrupt`` is called or the time is over."""
        loop = asyncio.get_running_loop()
        self._interrupted = loop.create_future()
        timer = loop.call_later(seconds, self.interrupt) if seconds is not None else None
        try:
            await self._interrupted
        finally:
            self._interrupted = None
            if timer is not None:
                timer.cancel()

    def interrupt(self) -> None:
        """End the current wait, if there is one, because the engine's state has changed."""
        if self._interrupted is not None and not self._interrupted.done():
            self._interrupted.set_result(None)


class SimulatedEngine:
    """One model's engine, less the controls of its kind. All methods run on one event loop."""

    def __init__(
        self,
        options: EngineOptions,
        timings: Timings,
        faults: Faults,
        memory: EngineMemory,
        on_death: Callable[[bool], None],
    ) -> None:
        """``on_death`` is called when the engine core dies, with whether the whole process must end at once."""
        self.options = options
        self.timings = timings
        self.faults = faults
        self.counters = Counters()
        self.running = 0
        self._waiting: deque[Generation] = deque()
        self._generations: dict[Generation, None] = {}
        """In order of arrival, which is also the order in which they resume after a sleep."""
        self._decoding: set[Generation] = set()
        """Only these slow each other down; prefills do not."""
        self._dead = False
        self._memory = memory
        self._on_death = on_death
        self._asleep: set[str] = set()
        self._weights_valid = True
        self._prefilled_at = 0.0
        """When everything admitted so far will have been prefilled, one prompt after the other."""
        self._discards = 0
        """How often the KV cache was discarded."""
        self._paused = _Paused.NONE
        self._idle = asyncio.Event()
        self._idle.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._computes = asyncio.Event()
        """Not set while the worker process is stopped: then only /health answers, as in vLLM."""
        self._computes.set()
        self.look_at_workers: Callable[[], None] = lambda: None
        """Takes note of what has happened to the workers and was not noticed yet."""

    @property
    def waiting(self) -> int:
        """Requests that the scheduler has not admitted yet."""
        return len(self._waiting)

    @property
    def paused(self) -> bool:
        """Whether the scheduler admits no requests."""
        return self._paused is not _Paused.NONE

    @property
    def sleeping(self) -> bool:
        """Asleep in part or in whole, or merely paused."""
        return self.paused or bool(self._asleep)

    def _count_if_stopped(self) -> None:
        # A call can arrive before the signal of a worker that goes on again.
        self.look_at_workers()
        self.counters.asked_while_stopped += not self._computes.is_set()

    @contextmanager
    def request(self, generation: Generation, *, counts: bool = True) -> Iterator[None]:
        """Queue a request; however the block ends, it is removed from the engine. Raises EngineDead.

        ``counts``: whether it is a client's, and not a check of the engine's own.
        """
        self.counters.request_count += counts
        self.counters.requests_while_asleep += counts and self.sleeping
        self._count_if_stopped()
        if Fault.DIE_ON_REQUEST in self.faults:
            at_once = self.faults.argument(Fault.DIE_ON_REQUEST, "engine") == "exit"
            self.die("no kernel for this head size", at_once=at_once)
        if not self.lives():
            raise EngineDead
        self._generations[generation] = None
        self._empty.clear()
        self._waiting.append(generation)
        try:
            self._admit()
            yield
        finally:
            self._release(generation)

    async def next_token(self, generation: Generation) -> str | None:
        """Wait for the next token; None at the end or after an abort. Raises EngineDead."""
        if generation.produced == generation.limit:
            return None
        goes_on = await self._until_scheduled(generation)
        has_lost_cache = True
        # If the KV cache was discarded during the delay, the delay starts over with a recompute.
        while goes_on and has_lost_cache:
            discards = self._discards
            if delay := self._delay_before_token(generation):
                await generation.wait(delay)
                goes_on = await self._until_scheduled(generation)
            has_lost_cache = self._discards != discards
        if not goes_on:
            return None
        self._count_token()
        self._decoding.add(generation)
        token = generation.next_token(self._weights_valid)
        if generation.produced == generation.limit:
            self._release(generation)
        return token

    def _delay_before_token(self, generation: Generation) -> float:
        prefill_tokens, generation.prefill_tokens = generation.prefill_tokens, None
        now = asyncio.get_running_loop().time()
        if prefill_tokens is None:
            # Counted from when the last token was due, so that delays of the event loop do not add up.
            share = (len(self._decoding) - 1) / max(1, self.options.max_running - 1)
            due_at = generation.due_at + self.timings.before_token(share)
            generation.due_at = due_at if due_at > now - CATCH_UP_SECONDS_MAX else now
            return max(0.0, generation.due_at - now)
        delay = 0.0 if generation.produced else self.timings.first_token_seconds
        if prefill_seconds := self.timings.prefill_seconds(prefill_tokens):
            self._prefilled_at = max(self._prefilled_at, now) + prefill_seconds
            delay += self._prefilled_at - now
        generation.due_at = now + delay
        return delay

    async def _until_scheduled(self, generation: Generation) -> bool:
        """Wait while the engine is paused or full; returns False if the request was aborted. Raises EngineDead."""
        while self.lives():
            if generation.aborted:
                return False
            if generation.admitted and self._paused is not _Paused.ALL and self._computes.is_set():
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
        self._decoding.discard(generation)
        if generation.admitted:
            self.running -= 1
        else:
            self._waiting.remove(generation)
        self._admit()
        if not self.running:
            self._idle.set()
        if not self._generations:
            self._empty.set()

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
        """Stop scheduling. In mode wait, returns once the running requests have ended."""
        self._paused = _Paused.WAITING if mode is PauseMode.WAIT else _Paused.ALL
        if mode is PauseMode.ABORT:
            self.abort_all()
        elif mode is PauseMode.WAIT:
            await self.idle()

    def retract(self) -> None:
        """Stop scheduling, and put the running requests back in front of the waiting ones, without their KV cache."""
        self._paused = _Paused.ALL
        retracted = [generation for generation in self._generations if generation.admitted]
        for generation in retracted:
            generation.admitted = False
            generation.interrupt()
        self._waiting.extendleft(reversed(retracted))
        self.running = 0
        self._discard_kv_cache()
        self._idle.set()

    def abort(self, generation: Generation) -> None:
        """End a request early, if it has not ended; it is answered with what it has said so far."""
        if generation not in self._generations:
            return
        self.counters.aborted += 1
        generation.aborted = True
        generation.interrupt()
        self._release(generation)

    def abort_all(self) -> None:
        """End every request early."""
        for generation in list(self._generations):
            self.abort(generation)

    async def idle(self) -> None:
        """Wait until no request runs."""
        await self._idle.wait()

    async def drained(self) -> None:
        """Wait until no request is left, be it a suspended one."""
        await self._empty.wait()

    def resume(self) -> None:
        """Schedule again. While asleep too, as in vLLM: then the next request kills the engine."""
        self._paused = _Paused.NONE
        self._admit()
        for generation in list(self._generations):
            generation.interrupt()

    def worker_stopped(self) -> None:
        """The worker process was stopped by a signal: nothing is computed until it goes on."""
        self._computes.clear()

    def worker_goes_on(self) -> None:
        """The worker process was continued."""
        self._computes.set()
        for generation in list(self._generations):
            generation.interrupt()

    def _discard_kv_cache(self, *, is_offloaded: bool = False) -> None:
        """Suspended requests must recompute their prompts and what they have generated.

        ``is_offloaded``: what had been computed is in host memory, too, and is read back from there.
        """
        self._discards += 1
        self._prefilled_at = 0.0
        self._decoding.clear()
        for generation in self._generations:
            share = OFFLOADED_SHARE if is_offloaded and generation.produced else 1.0
            tokens = math.ceil(share * (generation.prompt_tokens + generation.produced))
            generation.prefill_tokens = tokens
            self.counters.recomputed_tokens += tokens

    def lives(self) -> bool:
        """Whether the engine core still runs."""
        return not self._dead

    def healthy(self) -> bool:
        """Whether the engine core still runs; allocates its memory again if it was restored from an image."""
        if self.lives():
            try:
                self._memory.allocate_again_if_restored()
            except LedgerFull as error:
                self._die_of_memory(error)
        return self.lives()

    def _die_of_memory(self, error: LedgerFull) -> None:
        log_out_of_memory(error)
        self.die("torch.OutOfMemoryError")

    def die(self, reason: str, *, at_once: bool = False) -> None:
        """End the engine core: every request fails with 500, and the process follows with exit code 0."""
        if not self.lives():
            return
        self._report_death(reason)
        self._dead = True
        self._on_death(at_once)
        for generation in list(self._generations):
            generation.interrupt()
        self._idle.set()

    def _report_death(self, reason: str) -> None:
        log(f"ERROR EngineCore encountered a fatal error: {reason}")


def log(line: str) -> None:
    """Write a line to standard error in the format of vLLM's log."""
    sys.stderr.write(f"(EngineCore) {line}\n")


def log_out_of_memory(error: LedgerFull) -> None:
    """Write CUDA's report of too little memory, from which llmux recognises the cause."""
    sys.stderr.write(
        "(EngineCore) Traceback (most recent call last):\n"
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {error.wanted_mib}.00 MiB. GPU 0 has a total "
        f"capacity of {error.capacity_mib}.00 MiB of which {error.free_mib}.00 MiB is free.\n"
    )


def failure(message: str) -> Answer:
    """What vLLM answers when a control call fails."""
    return Answer(500, {"error": {"message": message, "type": "InternalServerError", "param": None, "code": 500}})


DEAD = failure("EngineCore encountered an issue. See stack trace (above) for the root cause.")
DEAD_ERROR: dict[str, Any] = DEAD.body
