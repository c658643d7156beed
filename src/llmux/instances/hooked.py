"""An engine without a process of llmux's: the operator's shell commands wake it and put it to sleep."""

import asyncio
import os

import structlog

from llmux.core.eviction import Eviction
from llmux.core.states import Asleep, Cold
from llmux.engines.base import HEALTH_PATH
from llmux.errors import ControlCallFailed, FailureReason, LlmuxError
from llmux.gpus.memory import GpuHeadroom
from llmux.instances.addresses import OnLeaving
from llmux.instances.canary import Canary, OutputMismatch
from llmux.instances.control_calls import EngineEndpoints
from llmux.instances.engine_spec import EngineSpec
from llmux.instances.health import PROBE_TIMEOUT_SECONDS, Health, generates, health_after, poll
from llmux.instances.outcomes import EvictOutcome, WakeOutcome
from llmux.instances.output import OutputTail
from llmux.instances.scope import EngineFailure, EngineScope, reason_of_failure, with_output
from llmux.instances.shell_commands import ShellCommands
from llmux.instances.without_process import InstanceWithoutProcess

log = structlog.get_logger("engine")

ALIVE_SECONDS = 5.0
SLEEP_RETRY_SECONDS = 5.0


class StillAwake(LlmuxError):
    """An engine serves when llmux starts, and cannot be put to sleep."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(
            f"the engine of '{model}' serves already and does not go to sleep: {reason}; "
            "no model can be woken while it may hold the GPU: stop it, or correct its sleep_command"
        )


class HookedInstance(InstanceWithoutProcess):
    """The engine of one model with ``engine: hooks``. Calls do not overlap, as with ``Instance``.

    Whether the engine is off the GPU is known from one thing alone: its ``sleep_command`` has ended with 0 since its
    ``wake_command`` began.
    """

    def __init__(
        self,
        spec: EngineSpec,
        endpoints: EngineEndpoints,
        *,
        headroom: GpuHeadroom,
        on_leaving: OnLeaving = lambda upstream: None,
    ) -> None:
        super().__init__(spec, endpoints, Canary(spec.engine, spec.canary_every), on_leaving)
        self._options = spec.engine.options
        self._headroom = headroom
        self._scope = EngineScope(lambda: None, spec.engine.known_cause)
        self._tail = OutputTail()
        own = {"LLMUX_MODEL": spec.model, "LLMUX_URL": endpoints.upstream.url}
        environment = {**os.environ, **self._options.environment, **own}
        self._commands = ShellCommands(environment, self._on_line)
        self._checks = ShellCommands(environment, self._on_check_line)
        self._is_off = True
        self._is_cold = True
        """Whether its answers are those of another engine than the last time."""
        self._is_interrupted = False

    @property
    def address(self) -> str | None:
        """Where it listens, for people; None while it is off the GPU."""
        return None if self._is_off else self.upstream.address

    @property
    def output_tail(self) -> tuple[str, ...]:
        """The last lines that the commands, and what they have started, have printed."""
        return self._tail.lines

    async def begin(self) -> None:
        """Put to sleep what an earlier llmux may have left on the GPU. Raises StillAwake."""
        if await self.check_health(PROBE_TIMEOUT_SECONDS) is not Health.ALIVE:
            return
        log.info("the engine runs already: it is put to sleep", model=self.spec.model)
        self._is_off = False
        if (reason := await self._sleep()) is not None:
            raise StillAwake(self.spec.model, str(reason))

    async def wake(self, devices: tuple[str, ...] = ()) -> WakeOutcome:
        """Run ``wake_command``, and wait until the engine answers."""
        canary_seconds_before = self.canary.seconds
        error: FailureReason | None = None
        is_mismatch = False
        try:
            await self._scope.run(self._wake(), None, "the wake")
        except (LlmuxError, OSError) as failure:
            error = reason_of_failure(failure)
            is_mismatch = isinstance(failure, OutputMismatch)
        return WakeOutcome(
            error,
            is_out_of_memory=error is not None and self.spec.engine.reports_out_of_memory(self.output_tail),
            is_mismatch=is_mismatch,
            canary_seconds=self.canary.seconds - canary_seconds_before,
        )

    async def evict(self, eviction: Eviction, *, freeze: bool = False) -> EvictOutcome:
        """Run ``sleep_command``. Unless it ends with 0 in time, the engine may hold the GPU: there is an error."""
        if not self._is_off:
            before = await self._headroom.read()
            reason = await self._sleep()
            if reason is not None:
                return EvictOutcome(Cold(), error=reason)
            self._headroom.record_freed(before, await self._headroom.read())
        if eviction.keeps_process:
            return EvictOutcome(Asleep(eviction))
        self._is_cold = True
        return EvictOutcome(Cold())

    async def end(self) -> None:
        """Run ``sleep_command`` until it succeeds, however long that takes: until then nobody may have the memory.

        After ``interrupt`` it is tried only once: llmux is about to exit.
        """
        self._is_cold = True
        while not self._is_off:
            if await self._sleep() is None or self._is_interrupted:
                return
            await asyncio.sleep(SLEEP_RETRY_SECONDS)

    def interrupt(self, reason: str) -> None:
        """Fail a ``wake`` under way, and every later one. An ``evict`` goes on: nothing else frees the memory."""
        self._is_interrupted = True
        self._scope.interrupt(FailureReason(reason))

    async def check_health(self, timeout_seconds: float) -> Health:
        """Whether the engine is alive, by ``alive_command`` or else by HTTP."""
        command = self._options.alive_command
        if not command:
            return await self._ask_ready(timeout_seconds)
        try:
            async with asyncio.timeout(ALIVE_SECONDS):
                # Killed by this time limit, not by the command's own, so that lateness is not taken for an answer.
                reason = await self._checks.run(command, 2 * ALIVE_SECONDS)
        except (TimeoutError, OSError):
            return Health.SILENT
        return Health.ALIVE if reason is None else Health.DEAD

    async def generates(self, limit_seconds: float) -> bool:
        """Whether the engine answers a question for one token in time."""
        return await generates(self._endpoints, self.spec.engine.served_names[0], limit_seconds)

    def kill(self) -> None:
        """llmux has nothing to kill: ``sleep_command``, which follows, has to bring a hanging engine off the GPU."""

    def close(self) -> None:
        """Hear no more of what the commands have started."""
        self._commands.close()
        self._checks.close()

    async def _wake(self) -> None:
        await self._headroom.wait_to_wake()
        limit_seconds = self.spec.start_timeout_seconds
        deadline = asyncio.get_running_loop().time() + limit_seconds
        self._is_off = False
        reason = await self._commands.run(self._options.wake_command, limit_seconds)
        if reason is not None:
            raise EngineFailure(self._with_output(f"the wake_command {reason}"))
        log.info("woken by its command", model=self.spec.model, url=self.upstream.url)
        try:
            async with asyncio.timeout_at(deadline):
                await poll(self._is_ready, self._report_wake)
        except TimeoutError:
            text = f"the wake_command ended with 0, but {self._ready_path} did not answer within {limit_seconds:g} s"
            raise EngineFailure(self._with_output(text)) from None
        if self._is_cold:
            await self.canary.record(self._endpoints)
        else:
            await self.canary.check(self._endpoints)
        self._is_cold = False
        self._headroom.forget_freed()

    async def _sleep(self) -> FailureReason | None:
        """Run ``sleep_command``; returns why the engine may still be on the GPU."""
        self._on_leaving(self.upstream)
        try:
            failure = await self._commands.run(self._options.sleep_command, self._options.timeouts.sleep_seconds)
        except OSError as error:
            reason = reason_of_failure(error)
        else:
            if failure is None:
                self._is_off = True
                return None
            reason = self._with_output(f"the sleep_command {failure}")
        log.error(
            "the engine may still hold the GPU: no other model is woken before its sleep_command succeeds",
            model=self.spec.model,
            reason=str(reason),
        )
        return reason

    @property
    def _ready_path(self) -> str:
        return self._options.ready_path or HEALTH_PATH

    async def _is_ready(self) -> bool:
        return await self._ask_ready(PROBE_TIMEOUT_SECONDS) is Health.ALIVE

    async def _ask_ready(self, timeout_seconds: float) -> Health:
        try:
            await self._endpoints.get(self._ready_path, timeout_seconds)
        except ControlCallFailed as failure:
            if failure.status == 404 and not self._options.ready_path:
                return Health.ALIVE  # A server without /health.
            return health_after(failure)
        return Health.ALIVE

    def _with_output(self, sentence: str) -> FailureReason:
        lines = self.output_tail
        return with_output(sentence, lines, self.spec.engine.known_cause(lines), whose="the")

    def _report_wake(self, elapsed_seconds: float) -> None:
        log.info("engine is starting", model=self.spec.model, seconds=round(elapsed_seconds))

    def _on_line(self, line: str) -> None:
        line = self.spec.redactor.redact_line(line)
        self._tail.add(line)
        log.debug(line, model=self.spec.model)

    def _on_check_line(self, line: str) -> None:
        log.debug(self.spec.redactor.redact_line(line), model=self.spec.model)
