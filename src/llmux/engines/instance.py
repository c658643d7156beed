"""One model's engine at work: started, put to sleep, woken, stopped.

One operation at a time: the controller sees to it.
"""

import asyncio
from collections.abc import Callable
from typing import assert_never

import structlog

from llmux.access import Upstream
from llmux.checkpoints.dumping import ImageFacts
from llmux.core.eviction import Eviction, Process
from llmux.core.states import Asleep, Cold
from llmux.engines import vllm
from llmux.engines.canary import Canary
from llmux.engines.checkpoint_store import CheckpointStore
from llmux.engines.control_calls import EngineEndpoints
from llmux.engines.engine_spec import EngineSpec
from llmux.engines.health import Health, check_health, listens, wait_until_healthy
from llmux.engines.process import EngineProcess
from llmux.engines.scope import EngineFailure, EngineScope, exit_report
from llmux.engines.step_words import parse_step, step_word
from llmux.engines.steps import (
    DumpProcess,
    PauseRequests,
    Sleep,
    SleepLevel,
    Step,
    StopProcess,
    UnsupportedEviction,
    as_applied,
    steps_of,
)
from llmux.errors import (
    CriuUnusable,
    DumpFailed,
    ImageUnusable,
    OutputMismatch,
    ProcessStuck,
    RestoreFailed,
    SpawnFailed,
)
from llmux.gpus.memory import GpuHeadroom
from llmux.hosts.local import create_temporary_directory, is_free, remove_temporary_directory

log = structlog.get_logger("engine")

KILL_SECONDS = 10.0
STUCK_RETRY_SECONDS = 5.0
RESTORED_HEALTHY_SECONDS = 30.0
"""What was healthy when it was dumped is so at once: seen were milliseconds."""


class Instance:
    """The engine of one model, through all of its starts and ends."""

    def __init__(
        self,
        spec: EngineSpec,
        endpoints: EngineEndpoints,
        on_exit: Callable[[str], None],
        *,
        images: CheckpointStore | None = None,
        room: GpuHeadroom | None = None,
        on_leaving: Callable[[Upstream], None] = lambda upstream: None,
    ) -> None:
        """``on_leaving`` is told when the process is about to end, so that nobody keeps connections to it."""
        self.spec = spec
        self.upstream = Upstream("127.0.0.1", spec.port, spec.api_key)
        self.canary = Canary(spec.served_names[0], spec.canary_every)
        self.can_freeze = False
        self.fallback_reason: str | None = None
        """Why the last ``evict`` did something else than was asked; None where it did not."""
        self._endpoints = endpoints
        self._images = images
        self._room = room or GpuHeadroom(spec.model, None, None)
        self._on_exit = on_exit
        self._on_leaving = on_leaving
        self._process: EngineProcess | None = None
        self._identity = ""
        """The fingerprint of how it was started."""
        self._applied: tuple[Step, ...] = ()
        self._guard = EngineScope(lambda: self._process)
        self._is_given_up = False

    @property
    def lost(self) -> str | None:
        """Why no engine runs although one was started and nobody stopped it; None while all is well."""
        if self._process is None:
            return None if self._is_in_image else "no engine runs"
        status = self._process.exit_status
        return None if status is None else exit_report(self._process, status)

    @property
    def _is_in_image(self) -> bool:
        return self._images is not None and self._images.holds_engine

    @property
    def pid(self) -> int | None:
        """The engine's root process."""
        return None if self._process is None else self._process.pid

    @property
    def shim_pid(self) -> int | None:
        """The parent of the engine's root, and of what its root leaves."""
        return None if self._process is None else self._process.shim_pid

    @property
    def output_tail(self) -> tuple[str, ...]:
        """The engine's last lines of output."""
        return () if self._process is None else self._process.tail

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether the engine says that the GPU had too little memory for it."""
        return vllm.tells_lack_of_memory(self.output_tail)

    async def wake(self) -> None:
        """Bring the engine onto the GPU: a start, or the undoing of how it left. Raises EngineFailure, OutputMismatch.

        After a failure the engine is in no known state: ``end`` must follow.
        """
        if self._process is None and not self._is_in_image:
            await self._start()
            return
        await self._guard.run(self._room.wait_to_wake(), None, "the wait for free memory")
        if self._process is None:
            await self._guard.run(self._restore(), None, "the restore")
            await self._guard.run(wait_until_healthy(self._endpoints), RESTORED_HEALTHY_SECONDS, "the restore")
        has_frozen = any(isinstance(step, PauseRequests) or _keeps_requests(step) for step in self._applied)
        for step in reversed(self._applied):
            await self._undo(step)
        self._applied = ()
        self._room.forget_freed()
        try:
            await self._guard.run(self.canary.check(self._endpoints, has_frozen=has_frozen), None, "the canary's check")
        except OutputMismatch:
            if self._images is not None:
                self._images.distrust()
            raise

    async def evict(self, eviction: Eviction, *, freeze: bool = False) -> Asleep | Cold:
        """Take the engine off the GPU; a step that fails is replaced by a cheaper one, at last by stopping it.

        ``freeze``: it has requests, which are to be suspended with it. Raises ProcessStuck.
        """
        if not self._is_given_up:
            self._guard.reset()
        self.fallback_reason = None
        if self._process is None:
            return await self._evict_from_image(eviction)
        before = await self._room.read()
        try:
            residency = await self._leave(eviction, freeze=freeze)
        except (EngineFailure, UnsupportedEviction) as failure:
            self._fall_back("eviction failed, stopping the engine instead", str(failure))
            await self._stop()
            return Cold()
        if isinstance(residency, Asleep):
            self._room.record_freed(before, await self._room.read())
        return residency

    def _fall_back(self, event: str, reason: str) -> None:
        self.fallback_reason = f"{event}: {reason}"
        log.warning(event, model=self.spec.model, reason=reason)

    async def _evict_from_image(self, eviction: Eviction) -> Asleep | Cold:
        if self._images is None or not self._images.holds_engine:
            return Cold()
        if eviction.process is Process.CHECKPOINT:
            return Asleep(eviction)
        await self._images.discard_current()
        return Cold()

    async def _leave(self, eviction: Eviction, *, freeze: bool) -> Asleep | Cold:
        if eviction.process is Process.CHECKPOINT and not freeze and self._images is not None:
            kept = await self._images.find_reusable(self._identity, eviction, self.canary.baseline)
            if kept is not None:
                await self._stop()
                self._images.set_current(kept)
                return Asleep(eviction)
        is_asleep = any(isinstance(step, Sleep) for step in self._applied)
        for step in steps_of(eviction, freeze=freeze):
            match step:
                case Sleep() | PauseRequests() if is_asleep:
                    # The engine would answer 200 and do nothing: from where it is it can only go further.
                    pass
                case Sleep():
                    await self._fall_asleep(step)
                case PauseRequests():
                    pause = vllm.pause_requests(self._endpoints, self.spec.timeouts)
                    await self._guard.run(pause, None, "pausing")
                    self._applied = (*self._applied, step)
                case DumpProcess():
                    return await self._dump(eviction, freeze=freeze)
                case StopProcess():
                    await self._stop()
                    return Cold()
                case _:
                    assert_never(step)
        return Asleep(as_applied(eviction, self._applied))

    async def _fall_asleep(self, step: Sleep) -> None:
        if step.level is SleepLevel.OFFLOAD and not await asyncio.to_thread(self.spec.leaves_host_memory):
            self._fall_back("the weights are discarded instead of offloaded", "too little host memory for them")
            step = Sleep(SleepLevel.DISCARD, step.keeps_requests)
        await self._guard.run(vllm.fall_asleep(self._endpoints, step, self.spec.timeouts), None, "going to sleep")
        self._applied = (*self._applied, step)

    async def _dump(self, eviction: Eviction, *, freeze: bool) -> Asleep:
        """Into an image; where that fails the engine sleeps, which frees the GPU as well. Raises EngineFailure."""
        if self._images is None or self._process is None:
            raise EngineFailure("no images are configured: the section 'checkpoint' is missing")
        self._on_leaving(self.upstream)
        facts = ImageFacts(
            model=self.spec.model,
            port=self.upstream.port,
            fingerprint=self._identity,
            steps=tuple(map(step_word, self._applied)),
            eviction=eviction,
            has_frozen=freeze,
            argv=self.spec.argv,
            canary=self.canary.baseline,
        )
        try:
            await self._guard.run(self._images.dump(self._process, facts), None, "the dump")
        except (DumpFailed, CriuUnusable) as failure:
            if isinstance(failure, DumpFailed) and not failure.engine_runs:
                raise EngineFailure(str(failure)) from failure
            self._fall_back("no image was made, the engine sleeps instead", str(failure))
            if not any(isinstance(step, Sleep) for step in self._applied):
                await self._fall_asleep(Sleep(SleepLevel.OFFLOAD, keeps_requests=freeze))
            return Asleep(as_applied(Eviction(eviction.weights, Process.KEEP_RUNNING), self._applied))
        residency = Asleep(as_applied(eviction, self._applied))
        self._forget()
        return residency

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

    async def let_stay(self) -> None:
        """Let the engine outlive llmux, to which it is gone from then on; raises StayRefused."""
        if self._process is not None:
            await self._process.stay()
            self._forget()

    async def delete_images(self) -> None:
        """Delete what could bring the engine back from disk, unless it is there that it is."""
        if self._images is not None and not self._images.holds_engine:
            await self._images.delete_all()

    def interrupt(self, reason: str) -> None:
        """Make a ``wake`` under way fail now, and an ``evict`` stop the engine: nothing is woken any more."""
        self._is_given_up = True
        self._guard.break_off(reason)

    async def check_health(self, timeout_seconds: float) -> Health:
        """Whether the engine lives: its process, and what it says itself."""
        if self.lost is not None:
            return Health.DEAD
        if self._process is None:
            return Health.SILENT
        return await check_health(self._endpoints, timeout_seconds)

    async def _start(self) -> None:
        self._room.forget_freed()
        await self._guard.run(self._room.wait_to_start(), None, "the wait for free memory")
        self._listen_at(self.spec.port)
        if not is_free(self.spec.port):
            raise EngineFailure(
                f"port {self.spec.port} is taken by another process; free it, or give the model another port"
            )
        self._identity = await asyncio.to_thread(self.spec.identity)
        directory = create_temporary_directory(self.spec.model)
        try:
            self._process = await EngineProcess.spawn(
                self.spec.launch_command(directory), on_line=self._hear, on_exit=self._exited
            )
        except SpawnFailed as failure:
            remove_temporary_directory(directory)
            raise EngineFailure(failure.reason) from failure
        log.info("engine started", model=self.spec.model, pid=self._process.pid, port=self.spec.port)
        await self._guard.run(wait_until_healthy(self._endpoints), self.spec.start_timeout_seconds, "the start")
        if not await asyncio.to_thread(listens, self._process.pid, self.spec.port):
            raise EngineFailure(f"port {self.spec.port} is answered by another process than the engine")
        await self._guard.run(self._get_to_know(), None, "its first answer")

    async def _get_to_know(self) -> None:
        """Learn what a started engine can do and what it says."""
        if self.spec.freezes:
            self.can_freeze = await vllm.can_keep_requests(self._endpoints, self.spec.timeouts)
            if not self.can_freeze:
                log.warning("this engine cannot freeze its requests: it is drained instead", model=self.spec.model)
        await self.canary.record(self._endpoints)

    async def _restore(self) -> None:
        """Back from the image; it tells itself where it listens and what was done before. Raises EngineFailure."""
        assert self._images is not None
        self._identity = await asyncio.to_thread(self.spec.identity)
        try:
            self._process, manifest = await self._images.restore(
                self._identity, on_line=self._hear, on_exit=self._exited
            )
            await self._images.delete_consumed()
        except (RestoreFailed, ImageUnusable, CriuUnusable) as failure:
            raise EngineFailure(str(failure)) from failure
        self._applied = tuple(map(parse_step, manifest.steps))
        self.can_freeze = self.spec.freezes
        self.canary.baseline = manifest.canary or self.canary.baseline
        self._listen_at(manifest.port)
        log.info("restored", model=self.spec.model, pid=self._process.pid, port=manifest.port)

    def _listen_at(self, port: int) -> None:
        if port != self.upstream.port:
            self.upstream = Upstream(self.upstream.host, port, self.spec.api_key)
            self._endpoints.port = port

    async def _undo(self, step: Step) -> None:
        match step:
            case Sleep():
                await self._guard.run(vllm.wake_up(self._endpoints, step, self.spec.timeouts), None, "waking up")
            case PauseRequests():
                resume = vllm.resume_requests(self._endpoints, self.spec.timeouts)
                await self._guard.run(resume, None, "resuming")
            case DumpProcess() | StopProcess():
                pass
            case _:
                assert_never(step)

    async def _stop(self) -> None:
        if self._process is not None:
            self._on_leaving(self.upstream)
            await self._process.stop(self.spec.stop_timeout_seconds, KILL_SECONDS)
            self._forget()

    def _forget(self) -> None:
        self._process = None
        self._applied = ()
        self._guard.reset()

    def _exited(self, status: int) -> None:
        # The process is not known yet where it ended while it was being spawned.
        reason = exit_report(self._process, status)
        self._guard.break_off(reason)
        self._on_exit(reason)

    def _hear(self, stream: str, line: str) -> None:
        log.debug(line, model=self.spec.model, stream=stream)


def _keeps_requests(step: Step) -> bool:
    return isinstance(step, Sleep) and step.keeps_requests
