"""What SGLang does beside answering: how it gives its memory up and takes it back, and how that kills it."""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import repeat
from typing import Any, NoReturn

from llmux.simulation.engine import text
from llmux.simulation.engine.core import (
    ILLEGAL_ACCESS,
    Answer,
    EngineDead,
    Generation,
    PauseMode,
    SimulatedEngine,
)
from llmux.simulation.engine.faults import Fault, Faults
from llmux.simulation.engine.memory import KV_CACHE, TAGS, WEIGHTS, EngineMemory
from llmux.simulation.engine.options import EngineOptions, Timings
from llmux.simulation.engine.own_flags import OwnFlags, gather, positive
from llmux.simulation.ledger import LedgerFull

CUDA_GRAPH = "cuda_graph"
RELEASABLE = (KV_CACHE, WEIGHTS, CUDA_GRAPH)
"""The tags that a call without tags means. CUDA graphs take no memory here."""

WITH_VALUE = """
    --attention-backend --base-gpu-id --chat-template --chunked-prefill-size --cuda-graph-max-bs --device
    --dist-init-addr --download-dir --dp-size|--data-parallel-size --dtype --ep-size --json-model-override-args
    --kv-cache-dtype --load-format --log-level --log-level-http --max-prefill-tokens --max-total-tokens --nnodes
    --node-rank --page-size --pp-size --quantization --random-seed --reasoning-parser --revision --sampling-backend
    --schedule-policy --speculative-algorithm --speculative-draft-model-path --stream-interval --tokenizer-mode
    --tokenizer-path --tool-call-parser --tp-size|--tensor-parallel-size|--tp --watchdog-timeout
""".split()  # noqa: SIM905
SWITCHES = """
    --disable-cuda-graph --disable-overlap-schedule --disable-radix-cache --enable-metrics --enable-mixed-chunk
    --enable-torch-compile --is-embedding --log-requests --skip-server-warmup --skip-tokenizer-init
    --trust-remote-code
""".split()  # noqa: SIM905
"""Flags of SGLang's that are accepted and do nothing; ``|`` joins synonyms. Any other ends it, as it ends SGLang."""

HEALTH_VARIABLE = "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"
HEALTH_DEADLINE_VARIABLE = "SGLANG_HEALTH_CHECK_TIMEOUT"


class SglangPause(StrEnum):
    """What a pause does with requests in flight, in SGLang's words."""

    ABORT = "abort"
    RETRACT = "retract"
    IN_PLACE = "in_place"


@dataclass(frozen=True, slots=True)
class SglangOptions(EngineOptions):
    """What a simulated SGLang is started with beside what every engine is."""

    memory_saver: bool = False
    """Without it a release frees nothing, and answers 200 all the same."""
    weights_backup: bool = False
    """Weights are copied to host memory when they are released; without that they come back as garbage."""
    health_generates: bool = True
    """Whether ``/health`` generates a token, as ``/health_generate`` does."""
    health_poll_seconds: float = 1.0
    health_deadline_seconds: float = 20.0
    warmup_seconds: float = 0.0
    version: str = "0.5.9"
    """Versions differ in what a pause does, and in what a release finds in its way."""

    @property
    def knows_pause_modes(self) -> bool:
        """Before, every pause aborts, whatever the mode, and says 200."""
        return self._number >= (0, 5, 6)

    @property
    def waiting_forbids_release(self) -> bool:
        """Whether a release asserts that no request waits, a retracted one either."""
        return self._number < (0, 5, 6) or (0, 5, 10) <= self._number < (0, 5, 21)

    @property
    def _number(self) -> tuple[int, ...]:
        return tuple(map(int, self.version.split(".")[:3]))

    def answering_name(self, asked: str | None) -> str | None:
        """SGLang answers whatever model is asked for."""
        return self.name


def parse(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> tuple[SglangOptions, Timings, Faults]:
    """Read the arguments of ``sglang.launch_server`` and our own; exits with code 2 on a bad value or unknown flag."""
    parser = argparse.ArgumentParser(prog="llmux-sim-engine --sim-kind sglang", description=__doc__)
    parser.add_argument("--model-path", "--model", dest="model", required=True)
    parser.add_argument("--served-model-name", dest="served_name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000, help="0: any; it is printed as READY PORT")
    parser.add_argument("--api-key")
    parser.add_argument("--enable-memory-saver", dest="memory_saver", action="store_true")
    parser.add_argument("--enable-weights-cpu-backup", dest="weights_backup", action="store_true")
    parser.add_argument("--max-running-requests", dest="max_running", type=positive, default=256)
    parser.add_argument("--context-length", dest="max_model_tokens", type=positive, default=131072)
    parser.add_argument("--mem-fraction-static", dest="gpu_memory_utilization", type=float, default=0.88)
    nowhere: dict[str, Any] = {"dest": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    for names in WITH_VALUE:
        parser.add_argument(*names.split("|"), **nowhere)
    for name in SWITCHES:
        parser.add_argument(name, action="store_true", **nowhere)
    flags = _add_own_flags(parser, environment)
    given = parser.parse_args(arguments)
    given.served_names = (given.served_name or given.model,)
    given.api_keys = (given.api_key,) if given.api_key else ()
    given.allowed_origins = ("*",)
    given.health_generates = environment.get(HEALTH_VARIABLE, "true").lower() in ("true", "1")
    given.health_deadline_seconds = float(environment.get(HEALTH_DEADLINE_VARIABLE, "20"))
    return gather(given, SglangOptions), gather(given, Timings), flags.faults(given)


def _add_own_flags(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> OwnFlags:
    flags = OwnFlags(parser, environment)
    flags.add_common()
    flags.add_memory("--mem-fraction-static of the ledger's capacity")
    flags.add_worker()
    flags.add("--sim-release-ms", "sleep_seconds", "MS", "0", "duration of /release_memory_occupation (0)")
    flags.add("--sim-free-ms", "free_seconds", "MS", "100", "from its answer until the memory is free (100)")
    flags.add("--sim-resume-ms", "wake_seconds", "MS", "0", "duration of /resume_memory_occupation (0)")
    flags.add("--sim-update-ms", "reload_seconds", "MS", "100", "duration of /update_weights_from_disk (100)")
    flags.add("--sim-warmup-ms", "warmup_seconds", "MS", "0", "how long /health says 503 while it listens (0)")
    flags.add("--sim-version", "version", "NAME", "0.5.9", "the version that it says it is, and acts as (0.5.9)")
    flags.add("--sim-health-poll-ms", "health_poll_seconds", "MS", "1000", "least duration of a check (1000)")
    return flags


class SimulatedSglang(SimulatedEngine):
    """A simulated engine with SGLang's controls. A mistake in their use kills the process, by SIGKILL."""

    def __init__(
        self,
        options: SglangOptions,
        timings: Timings,
        faults: Faults,
        memory: EngineMemory,
        spawn: Callable[..., asyncio.Task[Any]],
        on_death: Callable[[bool], None],
    ) -> None:
        super().__init__(options, timings, faults, memory, on_death)
        self.sglang = options
        self.warm = False
        self.exiting = False
        """Whether SIGTERM has come: it answers what it has, and says that it is not healthy."""
        self.by_identifier: dict[str, Generation] = {}
        """Requests that can be aborted, by what SGLang calls their ``rid``."""
        self._spawn = spawn
        self._released: set[str] = set()
        """As SGLang counts them, whether anything was freed or not."""
        self._freed: set[str] = set()

    async def release(self, tags: Collection[str]) -> Answer:
        """``POST /release_memory_occupation``. Some of the memory is still in use when this returns."""
        if self.faults.strikes(Fault.SLEEP_500):
            return error("injected failure of release_memory_occupation")
        if self.running or (self.waiting and self.sglang.waiting_forbids_release):
            self.counters.slept_under_requests += 1
            message = "release_memory_occupation should be called only when no ongoing request."
            self.die(f"AssertionError: {message}")
            raise EngineDead
        self.counters.sleeps += 1
        wanted = tags or RELEASABLE
        self._released.update(wanted)
        if self.sglang.memory_saver:
            self._asleep.update(tag for tag in TAGS if tag in wanted)
            if KV_CACHE in wanted:
                self._discard_kv_cache()
            if WEIGHTS in wanted:
                self._weights_valid = self._weights_valid and self.sglang.weights_backup
        await asyncio.sleep(self.timings.sleep_seconds)
        if self.sglang.memory_saver:
            self._spawn(self._free_later())
        return EMPTY

    async def _free_later(self) -> None:
        # The KV cache is released before the weights.
        await asyncio.sleep(self.timings.free_seconds / 2)
        self._freed = self._asleep & {KV_CACHE}
        self._memory.hold(self._freed, keep_weights=self.sglang.weights_backup)
        await asyncio.sleep(self.timings.free_seconds / 2)
        self._freed = set(self._asleep)
        self._memory.hold(self._freed, keep_weights=self.sglang.weights_backup)

    async def resume_memory(self, tags: Collection[str]) -> Answer:
        """``POST /resume_memory_occupation``."""
        if self.faults.strikes(Fault.WAKE_HANG):
            await asyncio.Event().wait()
        if self.faults.strikes(Fault.WAKE_500):
            return error("injected failure of resume_memory_occupation")
        wanted = tags or RELEASABLE
        for tag in wanted:
            if tag not in self._released:
                self.die(f"KeyError: '{tag}'")
                raise EngineDead
            self._released.remove(tag)
        self._asleep.difference_update(wanted)
        self._freed.difference_update(wanted)
        if self.sglang.memory_saver:
            try:
                self._memory.hold(self._freed, keep_weights=self.sglang.weights_backup)
            except LedgerFull as full:
                self._die_of_memory(full)
                raise EngineDead from full
        if self.faults.strikes(Fault.WAKE_GARBAGE):
            self._weights_valid = False
        self.counters.wakes += not self._released
        await asyncio.sleep(self.timings.wake_seconds)
        return EMPTY

    async def update_weights(self, path: str) -> Answer:
        """``POST /update_weights_from_disk``, which waits for requests in flight unless they are suspended."""
        if not self.paused:
            await self.idle()
        if self.faults.strikes(Fault.RELOAD_500):
            return _update_failed("injected failure of update_weights_from_disk")
        if WEIGHTS in self._asleep:
            self.die(ILLEGAL_ACCESS)
            raise EngineDead
        if path != self.options.model:
            return _update_failed(f"Failed to get weights iterator: {path} is not {self.options.model}")
        await asyncio.sleep(self.timings.reload_seconds)
        self._weights_valid = True
        if self.running:
            self.die("AssertionError: Cache flush failed after updating weights")
            raise EngineDead
        document = {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}
        return Answer(200, document)

    async def pause_generation(self, mode: SglangPause) -> None:
        """``POST /pause_generation``. New requests wait until ``resume``, whatever the mode."""
        match mode if self.sglang.knows_pause_modes else SglangPause.ABORT:
            case SglangPause.ABORT:
                await self.pause(PauseMode.ABORT)
            case SglangPause.RETRACT:
                self.retract()
            case SglangPause.IN_PLACE:
                await self.pause(PauseMode.KEEP)

    def abort_by_identifier(self, prefix: str) -> None:
        """End the requests whose identifiers begin so."""
        for identifier, generation in list(self.by_identifier.items()):
            if identifier.startswith(prefix):
                self.abort(generation)

    async def generates(self) -> bool:
        """Whether it produces a token, be it for another request; what SGLang's checks of health find out."""
        tokens = self.counters.tokens
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.sglang.health_deadline_seconds
        generation = Generation(repeat(text.PROBE_ANSWER), 1, 1, "stop")
        with self.request(generation, counts=False):
            token = self._spawn(self._next_token_of(generation))
            try:
                while loop.time() < deadline:
                    await asyncio.sleep(self.sglang.health_poll_seconds)
                    if self.counters.tokens > tokens:
                        return True
            finally:
                token.cancel()
        return False

    async def _next_token_of(self, generation: Generation) -> None:
        with contextlib.suppress(EngineDead):
            await self.next_token(generation)

    def _report_death(self, reason: str) -> None:
        sys.stderr.write(f"Scheduler hit an exception: Traceback (most recent call last):\n{reason}\n")
        sys.stderr.write("Received sigquit from a child process. It usually means the child failed.\n")


def kill_tree(memory: EngineMemory) -> NoReturn:
    """How SGLang ends itself: by SIGKILL, after its children."""
    sys.stderr.flush()
    for pid in memory.worker_pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def error(message: str) -> Answer:
    """What SGLang answers when a control call raises."""
    return Answer(400, {"error": {"message": message}})


def _update_failed(message: str) -> Answer:
    return Answer(400, {"success": False, "message": message, "num_paused_requests": 0})


EMPTY = Answer(200, {})
