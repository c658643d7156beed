"""An Ollama server: many models in one server, each in a runner process that comes and goes by itself."""

import argparse
import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from llmux.simulation.engine.core import SimulatedEngine, log
from llmux.simulation.engine.faults import Faults
from llmux.simulation.engine.memory import EngineMemory
from llmux.simulation.engine.options import EngineOptions, Timings
from llmux.simulation.engine.own_flags import OwnFlags, gather
from llmux.simulation.ledger import Ledger, LedgerFull

RUNNER = "import sys; sys.stdin.buffer.read()"
"""What a runner process runs: it holds its model's memory until its server closes the pipe, or dies."""

_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
FOR_EVER = -1.0


class ModelNotFound(Exception):
    """No such model was pulled."""


class ServerBusy(Exception):
    """Too many requests wait for their models."""


@dataclass(frozen=True, slots=True)
class OllamaOptions(EngineOptions):
    """What a simulated Ollama is started with beside what every engine is."""

    models: Mapping[str, int] = field(default_factory=dict)
    """The memory in MiB of each model that was pulled, by its name."""
    keep_alive_seconds_by_default: float = 300.0
    max_loaded: int = 3
    max_queue: int = 512

    def answering_name(self, asked: str | None) -> str | None:
        """A runner is given only requests for its model, be it by a longer name."""
        return self.name


def parse(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> tuple[OllamaOptions, Timings, Faults]:
    """Read ``serve`` with Ollama's variables, and our own flags; exits with code 2 on anything else."""
    parser = argparse.ArgumentParser(prog="llmux-sim-engine --sim-kind ollama", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["serve"])
    host, _, port = environment.get("OLLAMA_HOST", "").rpartition("//")[2].rstrip("/").partition(":")
    parser.add_argument("--host", default=host or "127.0.0.1", help="in place of OLLAMA_HOST, as is --port")
    parser.add_argument("--port", type=int, default=port or "11434", help="0: any; it is printed as READY PORT")
    flags = OwnFlags(parser, environment)
    flags.add_common()
    flags.add_memory("--sim-models says how much for each model")
    flags.add("--sim-models", "models", "LIST", "", "NAME=MIB,... of the models that were pulled")
    flags.add("--sim-load-ms", "wake_seconds", "MS", "0", "duration of loading a model (0)")
    flags.add("--sim-free-ms", "free_seconds", "MS", "100", "from unloading until the memory is free (100)")
    given = parser.parse_args(arguments)
    try:
        given.models = _pulled(given.models)
        given.keep_alive_seconds_by_default = keep_alive_seconds(environment.get("OLLAMA_KEEP_ALIVE", "5m"))
        given.max_loaded = int(environment.get("OLLAMA_MAX_LOADED_MODELS") or 3)
        given.max_running = int(environment.get("OLLAMA_NUM_PARALLEL") or 1)
        given.max_queue = int(environment.get("OLLAMA_MAX_QUEUE") or 512)
    except ValueError as error:
        parser.error(str(error))
    given.model, given.served_names = "ollama", ("ollama",)
    return gather(given, OllamaOptions), gather(given, Timings), flags.faults(given)


def _pulled(text: str) -> dict[str, int]:
    pairs = (pair.partition("=") for pair in text.split(",") if pair)
    return {base_name(name): int(mib) for name, _, mib in pairs}


def base_name(name: str) -> str:
    """A model's name without the tag that goes without saying."""
    return name.removesuffix(":latest")


def keep_alive_seconds(value: object) -> float:
    """A ``keep_alive`` of a request's: seconds, or a duration such as ``1h30m``; negative: for ever.

    Raises ValueError.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return FOR_EVER if value < 0 else float(value)
    text = str(value)
    with suppress(ValueError):
        return keep_alive_seconds(float(text))
    if not re.fullmatch(r"-?(\d+(\.\d+)?(ns|us|ms|s|m|h))+", text):
        raise ValueError(f'time: invalid duration "{text}"')
    if text.startswith("-"):
        return FOR_EVER
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)(ns|us|ms|s|m|h)", text))


@dataclass(slots=True, eq=False)
class Runner:
    """One loaded model."""

    name: str
    engine: SimulatedEngine
    process: asyncio.subprocess.Process
    size_mib: int
    gpu_mib: int
    """Less than its size if it did not fit: the rest is computed by the CPU."""
    keep_seconds: float
    requests: int = 0
    last_used: float = 0.0
    expires_at: float | None = None
    timer: asyncio.TimerHandle | None = None


class Runners:
    """Which models are loaded. Any request loads its model, and says how long it stays."""

    def __init__(
        self,
        options: OllamaOptions,
        timings: Timings,
        faults: Faults,
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
    ) -> None:
        self.options = options
        self.loaded: dict[str, Runner] = {}
        """As ``/api/ps`` shows them: what is being unloaded is not among them, though it still holds memory."""
        self._timings = timings
        self._faults = faults
        self._spawn = spawn
        self._loading = asyncio.Lock()
        self._changed = asyncio.Event()
        self._waiting = 0
        self._leaving: set[asyncio.subprocess.Process] = set()

    @asynccontextmanager
    async def use(self, name: str, keep_alive: object = None) -> AsyncIterator[Runner]:
        """A model's runner, loaded if it is not; it stays for ``keep_alive`` after the block, None: as it was.

        Raises ModelNotFound, ServerBusy and ValueError.
        """
        name = base_name(name)
        if name not in self.options.models:
            raise ModelNotFound(name)
        keep = None if keep_alive is None else keep_alive_seconds(keep_alive)
        runner = await self._get(name)
        if keep is not None:
            runner.keep_seconds = keep
        try:
            yield runner
        finally:
            self._leave(runner)

    def expire(self, name: str) -> None:
        """Unload a model as soon as no request uses it. Does not wait for its memory."""
        runner = self.loaded.get(base_name(name))
        if runner is not None:
            runner.keep_seconds = 0
            self._expire_later(runner)

    async def _get(self, name: str) -> Runner:
        """The runner, counted as used by one more request. Loading goes on if its client leaves."""
        if self._waiting >= self.options.max_queue:
            raise ServerBusy
        self._waiting += 1
        getting = self._spawn(self._find_or_load(name))
        try:
            runner: Runner = await asyncio.shield(getting)
        except asyncio.CancelledError:
            getting.add_done_callback(lambda done: None if done.cancelled() else self._leave(done.result()))
            raise
        finally:
            self._waiting -= 1
        return runner

    async def _find_or_load(self, name: str) -> Runner:
        async with self._loading:
            runner = self.loaded.get(name)
            if runner is not None and not runner.engine.lives():
                self._forget(runner)
                runner = None
            if runner is None:
                runner = await self._load(name)
            runner.requests += 1
        if runner.timer is not None:
            runner.timer.cancel()
        return runner

    def _leave(self, runner: Runner) -> None:
        """A request that used the runner has ended."""
        runner.requests -= 1
        runner.last_used = asyncio.get_running_loop().time()
        self._expire_later(runner)
        self._changed.set()

    async def _load(self, name: str) -> Runner:
        """Make room among its own models, busy ones too once their requests have ended; load what then fits."""
        size_mib = self.options.models[name]
        await self._let_leaving_ones_end()
        while len(self.loaded) >= self.options.max_loaded or (self.loaded and self._free_mib() < size_mib):
            idle = [runner for runner in self.loaded.values() if not runner.requests]
            if idle:
                self._forget(min(idle, key=lambda runner: runner.last_used))
                await self._let_leaving_ones_end()
            else:
                self._changed.clear()
                await self._changed.wait()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-c", RUNNER, stdin=asyncio.subprocess.PIPE
        )
        gpu_mib = max(0, min(size_mib, self._free_mib()))
        options = replace(self.options, model=name, served_names=(name,), gpu_memory_mib=gpu_mib)
        memory = EngineMemory(options, process.pid)
        with suppress(LedgerFull):  # Another program took it meanwhile; then the CPU computes all of it.
            memory.hold(frozenset())
        await asyncio.sleep(self._timings.wake_seconds)
        log(f"offloaded {gpu_mib} of {size_mib} MiB of {name} to GPU")
        engine = SimulatedEngine(options, self._timings, self._faults, memory, lambda _: process.kill())
        runner = Runner(name, engine, process, size_mib, gpu_mib, self.options.keep_alive_seconds_by_default)
        self.loaded[name] = runner
        return runner

    def _free_mib(self) -> int:
        path = self.options.ledger_path
        return sys.maxsize if path is None else Ledger(path).snapshot().free_mib

    def _expire_later(self, runner: Runner) -> None:
        if runner.timer is not None:
            runner.timer.cancel()
        runner.expires_at = None
        if runner.requests or runner.keep_seconds == FOR_EVER:
            return
        loop = asyncio.get_running_loop()
        runner.expires_at = loop.time() + runner.keep_seconds
        if runner.keep_seconds:
            runner.timer = loop.call_later(runner.keep_seconds, self._forget, runner)
        else:
            self._forget(runner)

    def _forget(self, runner: Runner) -> None:
        if self.loaded.get(runner.name) is runner:
            del self.loaded[runner.name]
            self._leaving.add(runner.process)
            self._spawn(self._end(runner.process))

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        await asyncio.sleep(self._timings.free_seconds)
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
        self._leaving.discard(process)
        self._changed.set()

    async def _let_leaving_ones_end(self) -> None:
        while self._leaving:
            self._changed.clear()
            await self._changed.wait()
