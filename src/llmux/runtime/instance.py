"""One model's engine at work: started, put to sleep, woken, stopped.

One operation at a time: the controller sees to it.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

import structlog

from llmux.core.eviction import Eviction
from llmux.core.states import Asleep, Cold
from llmux.engines import vllm
from llmux.engines.control_calls import ControlCallFailed, EngineEndpoints
from llmux.engines.health import Health, check_health, listens, wait_until_healthy
from llmux.engines.process import EngineProcess, LaunchCommand, describe_exit
from llmux.errors import LlmuxError, ProcessStuck, SpawnFailed
from llmux.hosts.local import create_temporary_directory, is_free, remove_temporary_directory
from llmux.residency.steps import Sleep, Step, StopProcess, UnsupportedEviction, steps_of
from llmux.runtime.lease import Upstream

log = structlog.get_logger("engine")

KILL_SECONDS = 10.0
STUCK_RETRY_SECONDS = 5.0
EXIT_NOTICE_SECONDS = 1.0
LINES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything about one model's engine that does not change while llmux runs."""

    model: str
    program: str
    model_path: str
    port: int
    served_names: tuple[str, ...]
    extra_args: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    api_key: str | None = None
    start_timeout_seconds: float = 1800.0
    stop_timeout_seconds: float = 10.0
    timeouts: vllm.ControlTimeouts = field(default_factory=vllm.ControlTimeouts)

    def launch_command(self, temporary_directory: Path) -> LaunchCommand:
        """What the shim is told to start, with a directory that is the engine's own."""
        argv = vllm.command_line(self.program, self.model_path, self.port, self.served_names, self.extra_args)
        environment = vllm.environment(os.environ, self.environment, str(temporary_directory))
        return LaunchCommand(argv, environment, temporary_directory=temporary_directory)


class EngineFailure(LlmuxError):
    """An engine did not do what it should; the text says what, with its last words where it has any."""


class Instance:
    """The engine of one model, through all of its starts and ends."""

    def __init__(self, spec: EngineSpec, endpoints: EngineEndpoints, on_exit: Callable[[str], None]) -> None:
        self.spec = spec
        self.upstream = Upstream("127.0.0.1", spec.port, spec.api_key)
        self._endpoints = endpoints
        self._on_exit = on_exit
        self._process: EngineProcess | None = None
        self._applied: tuple[Step, ...] = ()
        self._scope: asyncio.Timeout | None = None
        self._interruption: str | None = None
        self._is_given_up = False

    @property
    def lost(self) -> str | None:
        """Why no engine runs although one was started and nobody stopped it; None while all is well."""
        if self._process is None:
            return "no engine runs"
        status = self._process.exit_status
        return None if status is None else self._last_words(status)

    @property
    def pid(self) -> int | None:
        """The engine's root process."""
        return None if self._process is None else self._process.pid

    @property
    def output_tail(self) -> tuple[str, ...]:
        """The engine's last lines of output."""
        return () if self._process is None else self._process.tail

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether the engine says that the GPU had too little memory for it."""
        return vllm.tells_lack_of_memory(self.output_tail)

    async def wake(self) -> None:
        """Bring the engine onto the GPU: a start, or the undoing of how it left. Raises EngineFailure.

        After a failure the engine is in no known state: ``end`` must follow.
        """
        if self._process is None:
            await self._start()
            return
        for step in reversed(self._applied):
            await self._undo(step)
        self._applied = ()

    async def evict(self, eviction: Eviction) -> Asleep | Cold:
        """Take the engine off the GPU; a step that fails is replaced by stopping it. Raises ProcessStuck."""
        if not self._is_given_up:
            self._interruption = None
        if self._process is None:
            return Cold()
        try:
            for step in steps_of(eviction):
                match step:
                    case Sleep():
                        await self._guarded(
                            vllm.fall_asleep(self._endpoints, step, self.spec.timeouts), None, "going to sleep"
                        )
                        self._applied = (*self._applied, step)
                    case StopProcess():
                        await self._stop()
                        return Cold()
                    case _:
                        assert_never(step)
        except (EngineFailure, UnsupportedEviction) as failure:
            log.warning("eviction failed, stopping the engine instead", model=self.spec.model, reason=str(failure))
            await self._stop()
            return Cold()
        return Asleep(eviction)

    async def end(self) -> None:
        """Kill whatever is left of the engine and return when all of it is gone, however long that takes.

        After ``interrupt`` it waits only once: llmux is ending, and the shim goes on killing without it.
        """
        while self._process is not None:
            self._process.kill()
            try:
                await self._process.stop(0.0, KILL_SECONDS)
            except ProcessStuck as stuck:
                log.error("engine does not die", model=self.spec.model, reason=str(stuck))
                if self._is_given_up:
                    return
                await asyncio.sleep(STUCK_RETRY_SECONDS)
            else:
                self._forget()

    def interrupt(self, reason: str) -> None:
        """Make a ``wake`` under way fail now, and an ``evict`` stop the engine: nothing is woken any more."""
        self._is_given_up = True
        self._break_off(reason)

    def _break_off(self, reason: str) -> None:
        self._interruption = reason
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def check_health(self, timeout_seconds: float) -> Health:
        """Whether the engine lives: its process, and what it says itself."""
        if self.lost is not None:
            return Health.DEAD
        return await check_health(self._endpoints, timeout_seconds)

    async def _start(self) -> None:
        if not is_free(self.spec.port):
            raise EngineFailure(
                f"port {self.spec.port} is taken by another process; free it, or give the model another port"
            )
        directory = create_temporary_directory(self.spec.model)
        try:
            self._process = await EngineProcess.spawn(
                self.spec.launch_command(directory), on_line=self._hear, on_exit=self._exited
            )
        except SpawnFailed as failure:
            remove_temporary_directory(directory)
            raise EngineFailure(failure.reason) from failure
        log.info("engine started", model=self.spec.model, pid=self._process.pid, port=self.spec.port)
        await self._guarded(wait_until_healthy(self._endpoints), self.spec.start_timeout_seconds, "the start")
        if not await asyncio.to_thread(listens, self._process.pid, self.spec.port):
            raise EngineFailure(f"port {self.spec.port} is answered by another process than the engine")

    async def _undo(self, step: Step) -> None:
        match step:
            case Sleep():
                await self._guarded(vllm.wake_up(self._endpoints, step, self.spec.timeouts), None, "waking up")
            case StopProcess():
                pass
            case _:
                assert_never(step)

    async def _guarded(self, work: Coroutine[Any, Any, None], limit_seconds: float | None, what: str) -> None:
        """Do the work, for as long as the engine lives and nobody interrupts."""
        try:
            async with asyncio.timeout(limit_seconds) as self._scope:
                if self._process is not None and self._process.exit_status is not None:
                    self._exited(self._process.exit_status)
                elif self._interruption is not None:
                    self._break_off(self._interruption)
                await work
        except TimeoutError:
            reason = self._interruption or f"{what} took longer than {limit_seconds:g} s{self._shown_tail()}"
            raise EngineFailure(reason) from None
        except ControlCallFailed as failure:
            raise EngineFailure(await self._explain(failure)) from failure
        finally:
            self._scope = None
            work.close()

    async def _explain(self, failure: ControlCallFailed) -> str:
        """A lost connection usually means a dying engine: its exit says more, and is noticed in a moment."""
        if self._process is None or failure.status is not None:
            return str(failure)
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_NOTICE_SECONDS):
                return self._last_words(await self._process.wait_exited())
        return str(failure)

    async def _stop(self) -> None:
        if self._process is not None:
            await self._process.stop(self.spec.stop_timeout_seconds, KILL_SECONDS)
            self._forget()

    def _forget(self) -> None:
        self._process = None
        self._applied = ()
        self._interruption = None

    def _exited(self, status: int) -> None:
        reason = self._last_words(status)
        self._break_off(reason)
        self._on_exit(reason)

    def _last_words(self, status: int) -> str:
        return f"the engine ended with {describe_exit(status)}{self._shown_tail()}"

    def _shown_tail(self) -> str:
        lines = self.output_tail[-LINES_SHOWN:]
        return "; its last lines: " + " | ".join(lines) if lines else ""

    def _hear(self, stream: str, line: str) -> None:
        log.debug(line, model=self.spec.model, stream=stream)
