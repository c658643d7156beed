"""One model's engine through all of its starts and ends: started, put to sleep, woken, stopped."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from llmux.access import Upstream
from llmux.core.eviction import Eviction, Process, Weights
from llmux.core.states import Asleep, Cold
from llmux.engines.base import Abilities
from llmux.engines.steps import is_suspended
from llmux.errors import (
    ControlCallFailed,
    CriuUnusable,
    FailureReason,
    ImageUnusable,
    LlmuxError,
    ProcessStuck,
    RestoreFailed,
    SpawnFailed,
)
from llmux.gpus.cuda import CudaCheckpoints
from llmux.gpus.memory import LEAST_SHARE_FREED, LEAST_SHARE_OF_A_PART, GpuHeadroom, GpuMemory
from llmux.hosts.local import (
    create_temporary_directory,
    find_descendants,
    is_free,
    remove_temporary_directory,
    resident_mib,
)
from llmux.instances.canary import Canary, OutputMismatch
from llmux.instances.control_calls import EngineEndpoints
from llmux.instances.engine_spec import EngineSpec
from llmux.instances.health import (
    PROBE_TIMEOUT_SECONDS,
    Health,
    check_health,
    generates,
    listens,
    poll,
    wait_until_healthy,
)
from llmux.instances.outcomes import EvictOutcome, SeenMemory, WakeOutcome
from llmux.instances.process import EngineProcess, run_stop_command
from llmux.instances.running_engine import KILL_SECONDS, RunningEngine
from llmux.instances.scope import EngineFailure, EngineScope, reason_of_failure
from llmux.instances.socketless import SocketlessPrograms

if TYPE_CHECKING:
    from llmux.instances.checkpoint_store import CheckpointStore

log = structlog.get_logger("engine")

STUCK_RETRY_SECONDS = 5.0
SOCKET_NAME = "http"
"""In the engine's own directory, whose path is short enough for engines' own, longer names."""
USAGE_ERROR = 2
"""The exit code of argparse, and of most parsers of command lines, for arguments that they do not know."""
RESTORED_HEALTHY_SECONDS = 30.0
"""A restored engine is healthy within milliseconds (measured); the rest is a safety margin."""


class Instance:
    """The engine of one model. Only one of ``wake``, ``evict`` and ``end`` may be under way; the controller sees to it.

    The engine runs, or is in an image of the checkpoint store, or there is none.
    """

    def __init__(
        self,
        spec: EngineSpec,
        endpoints: EngineEndpoints,
        on_exit: Callable[[FailureReason], None],
        *,
        store: "CheckpointStore | None" = None,
        headroom: GpuHeadroom | None = None,
        on_leaving: Callable[[Upstream, Process], None] = lambda upstream, process: None,
        socketless: SocketlessPrograms | None = None,
        cuda: CudaCheckpoints | None = None,
        measures_memory: bool = False,
    ) -> None:
        """``on_leaving`` is called before the process is stopped or dumped, so that connections to it can be closed.

        ``measures_memory``: report what the engine was seen to hold of its GPUs.
        """
        self.spec = spec
        self.abilities = Abilities()
        """What the engine said of itself after its last cold start."""
        self.canary = Canary(spec.engine, spec.canary_every, spec.canary_extras)
        self._endpoints = endpoints
        self._store = store
        self._headroom = headroom or GpuHeadroom(spec.model, None, None)
        self._on_exit = on_exit
        self._on_leaving = on_leaving
        self._cuda = cuda
        self._measures_memory = measures_memory
        self._socketless = socketless or SocketlessPrograms()
        self._engine: RunningEngine | None = None
        self._state: object = None
        """What the kind of engine remembers of the cold start that is being made."""
        self._used_before: Sequence[GpuMemory] = ()
        """The GPUs' memory before the last cold start."""
        self._scope = EngineScope(lambda: self._process, spec.engine.known_cause)
        self._is_interrupted = False
        self._has_said_that_it_drains = False
        self._devices: tuple[str, ...] = ()
        """The GPUs that the present engine sees, or the last one."""
        self._may_be_left = True
        """Whether an earlier llmux may have left something of this engine that its stop command would end."""
        self._last_output: tuple[str, ...] = ()

    @property
    def upstream(self) -> Upstream:
        """Where the engine serves requests."""
        return self._endpoints.upstream

    @property
    def address(self) -> str | None:
        """Where it listens, for people; None if no engine runs."""
        return None if self._process is None else self.upstream.address

    @property
    def pid(self) -> int | None:
        """The engine's root process."""
        return None if self._process is None else self._process.pid

    @property
    def shim_pid(self) -> int | None:
        """The process that all of the engine's processes descend from."""
        return None if self._process is None else self._process.shim_pid

    @property
    def output_tail(self) -> tuple[str, ...]:
        """The last lines of output of the engine, or of the last one that ran."""
        return self._last_output if self._process is None else self._process.tail

    def why_not(self, eviction: Eviction) -> str | None:
        """Why the engine cannot leave the GPU by an eviction; None if it can."""
        return self.spec.engine.why_not(eviction)

    @property
    def has_engine(self) -> bool:
        """Whether an engine runs or is in an image."""
        return self._missing_reason() is None

    @property
    def _process(self) -> EngineProcess | None:
        return None if self._engine is None else self._engine.process

    @property
    def _is_in_image(self) -> bool:
        return self._store is not None and self._store.holds_engine

    async def _finds_image(self) -> bool:
        """Whether there is an image to start from, which is asked once; raises EngineFailure if interrupted."""
        if self._store is None or not self._store.may_start_from_image:
            return False
        fingerprint = await asyncio.to_thread(self.spec.fingerprint)
        found = self._store.find_image_to_start_from(fingerprint)
        await self._scope.run(found, None, "the search for an image")
        return self._is_in_image

    async def fetch_image(self) -> None:
        """Fetch the image that the first start will be a restore from, if it is in an object store."""
        if self._store is not None and self._engine is None:
            await self._store.fetch_for_start(await asyncio.to_thread(self.spec.fingerprint))

    def files_to_wake(self, asleep: Eviction | None) -> Sequence[Path]:
        """The files that its way back reads, in that order, after it left by ``asleep``; None: a cold start.

        Empty where it does not read the disk. Reads directories: not to be called on the event loop.
        """
        if asleep is None:
            return self.spec.files_to_load()
        is_in_image = asleep.process is Process.CHECKPOINT
        image = self._store.files_of_engine() if is_in_image and self._store is not None else ()
        reads_weights = asleep.weights is Weights.DISCARD or (is_in_image and self.spec.engine.maps_weights)
        return (*image, *(self.spec.files_to_load() if reads_weights else ()))

    def _missing_reason(self) -> FailureReason | None:
        if self._process is None:
            return None if self._is_in_image else FailureReason("no engine runs")
        status = self._process.exit_status
        return None if status is None else self._scope.exit_report(self._process, status)

    async def wake(self, devices: tuple[str, ...] = ()) -> WakeOutcome:
        """Bring the engine onto the GPU: start it, or restore it and undo the steps by which it left.

        ``devices``: the GPUs that it is to see if it is started; empty for all that llmux sees.
        """
        canary_seconds_before = self.canary.seconds
        error: FailureReason | None
        is_mismatch = False
        seen: SeenMemory | None = None
        try:
            if self._engine is None and not self._is_in_image and not await self._finds_image():
                self._devices = devices
                await self._start()
                seen = await self._measure_started()
            else:
                await self._come_back()
            error = self._missing_reason()
        except (LlmuxError, OSError) as failure:  # an OSError: a full disk, no more descriptors
            error = reason_of_failure(failure)
            is_mismatch = isinstance(failure, OutputMismatch)
        lines = () if self._process is None else self._process.tail
        return WakeOutcome(
            error,
            is_out_of_memory=error is not None and self.spec.engine.reports_out_of_memory(lines),
            is_mismatch=is_mismatch,
            can_freeze=self._engine is not None and self._engine.can_freeze,
            canary_seconds=self.canary.seconds - canary_seconds_before,
            seen=seen,
        )

    async def evict(self, eviction: Eviction, *, freeze: bool = False) -> EvictOutcome:
        """Take the engine off the GPU; a step that fails is replaced, in the end by stopping the engine.

        ``freeze``: the engine has requests, which are to be suspended with it.
        """
        if not self._is_interrupted:
            self._scope.reset()
        if self._engine is None:
            return EvictOutcome(await self._evict_from_image(eviction))
        engine = self._engine
        is_asleep = bool(engine.applied)
        before, held = await asyncio.gather(self._headroom.read(), self._headroom.held_by_gpu(self._is_own))
        held_mib = None if held is None else sum(held.values())
        seen = self._seen(engine, held)
        try:
            outcome = await engine.leave(eviction, freeze=freeze)
            # One that slept already has nothing to give back but what it kept on purpose.
            if held_mib and not is_asleep and self._sleeps(outcome.residency):
                outcome = await self._stop_unless_freed(engine, outcome, held_mib)
        except ProcessStuck as stuck:
            return EvictOutcome(Cold(), error=FailureReason(str(stuck)))
        residency = outcome.residency
        outcome = replace(outcome, seen=seen)
        if isinstance(residency, Cold):
            self._forget()
            return outcome
        if residency.eviction.process is Process.CHECKPOINT:
            self._forget()
        elif seen is not None:
            outcome = replace(outcome, seen=await self._measure_residue(engine, residency.eviction, seen))
        after, host_mib = await asyncio.gather(
            self._headroom.read(), self._measure_host_memory(residency.eviction, held_mib)
        )
        self._headroom.record_freed(before, after, held_mib)
        if (reason := self._missing_reason()) is not None:
            # It died in its sleep: only once it is gone entirely is its memory known to be free.
            await self.end()
            return EvictOutcome(Cold(), outcome.fallback or str(reason))
        return replace(outcome, host_mib=host_mib)

    async def _measure_host_memory(self, eviction: Eviction, gpu_mib: int | None) -> int | None:
        """What the engine's processes hold of it now; ``gpu_mib``: what they held of the GPU before they left it."""
        if (shim := self.shim_pid) is None or not eviction.stays_in_memory:
            return None
        host_mib = await asyncio.to_thread(lambda: resident_mib(find_descendants(shim)))
        # Whether what the driver keeps for a suspended process counts as the process's own depends on the driver.
        return max(host_mib, gpu_mib or 0) if eviction.process is Process.CUDA_SUSPEND else host_mib

    async def _measure_started(self) -> SeenMemory | None:
        """What an engine holds that has just been started; None if that cannot be told."""
        if not self._measures_memory or self._engine is None:
            return None
        held = await self._headroom.held_by_gpu(self._is_own)
        if held and any(held.values()):
            return self._seen(self._engine, held)
        used_before = {gpu.gpu: gpu.used_mib for gpu in self._used_before}
        grown = {gpu.gpu: gpu.used_mib - used_before.get(gpu.gpu, 0) for gpu in await self._headroom.read()}
        seen = self._seen(self._engine, grown)
        return None if seen is None else replace(seen, is_told=False)

    async def _measure_residue(self, engine: RunningEngine, eviction: Eviction, seen: SeenMemory) -> SeenMemory:
        """Once for each process and way of leaving: it takes as long as the driver needs to free the memory."""
        if eviction in engine.measured_evictions:
            return seen
        held = await self._headroom.settled_by_gpu(self._is_own)
        if held is None:
            return seen
        engine.measured_evictions.add(eviction)
        return replace(seen, residue_mib=max(held.values(), default=0))

    def _seen(self, engine: RunningEngine, held: Mapping[str, int] | None) -> SeenMemory | None:
        most_mib = max(held.values(), default=0) if held else 0
        return SeenMemory(engine.fingerprint, most_mib) if self._measures_memory and most_mib > 0 else None

    async def _stop_unless_freed(self, engine: RunningEngine, outcome: EvictOutcome, held_mib: int) -> EvictOutcome:
        """An engine may say that it sleeps, and keep its memory: the next model would not fit. Raises ProcessStuck."""
        is_entire = isinstance(outcome.residency, Asleep) and outcome.residency.eviction.leaves_the_gpu
        least_share = LEAST_SHARE_FREED if is_entire else LEAST_SHARE_OF_A_PART
        kept_mib = await self._headroom.wait_until_freed(self._is_own, held_mib, least_share)
        if kept_mib is None or self._missing_reason() is not None:
            return outcome
        reason = f"it says that it has left, and holds {kept_mib} of its {held_mib} MiB of GPU memory"
        engine.note_fallback("eviction failed, stopping the engine instead", reason)
        await engine.stop()
        return EvictOutcome(Cold(), engine.fallback)

    def _sleeps(self, residency: Asleep | Cold) -> bool:
        """Whether the engine's process is there, and has released its GPU memory, or a part of it."""
        if isinstance(residency, Cold):
            return False
        eviction = residency.eviction
        stays = eviction.process in (Process.KEEP_RUNNING, Process.CUDA_SUSPEND)
        return stays and self.spec.engine.frees_memory(eviction)

    def _is_own(self, pid: int) -> bool:
        return self._engine is not None and self._engine.is_own(pid)

    async def _evict_from_image(self, eviction: Eviction) -> Asleep | Cold:
        if self._store is None or not self._store.holds_engine:
            return Cold()
        if eviction.process is Process.CHECKPOINT:
            return Asleep(eviction)
        await self._store.discard_current()
        return Cold()

    async def end(self) -> None:
        """Kill what is left of the engine and return when all of it is gone, however long that takes.

        After ``interrupt`` it tries only once: llmux is about to exit, and the shim goes on killing without it.
        """
        await self._endpoints.close_connections()
        while self._process is not None:
            self._process.kill()
            try:
                await self._process.stop(0.0, KILL_SECONDS)
            except ProcessStuck as stuck:
                log.error("engine does not die", model=self.spec.model, reason=str(stuck))
                if self._is_interrupted:
                    return
                await asyncio.sleep(STUCK_RETRY_SECONDS)
            else:
                self._forget()

    async def clear_leftovers(self) -> None:
        """Run the stop command, once in the life of this llmux, against what an earlier one may have left."""
        command = self.spec.stop_command if self._may_be_left else None
        self._may_be_left = False
        if command is not None:
            redact = self.spec.redactor.redact_line
            await run_stop_command(command, self.spec.stop_timeout_seconds, redact, may_fail=True)

    async def let_stay(self) -> None:
        """Let the engine outlive llmux, and forget it; raises StayRefused."""
        if self._process is not None:
            await self._endpoints.close_connections()
            await self._process.stay()
            self._forget()

    async def delete_images(self) -> None:
        """Delete the engine's images, unless it is in one of them."""
        if self._store is not None and not self._store.holds_engine:
            await self._store.delete_all()

    def interrupt(self, reason: str) -> None:
        """Fail a ``wake`` under way, and every later one; an ``evict`` under way stops the engine."""
        self._is_interrupted = True
        self._scope.interrupt(FailureReason(reason))

    async def check_health(self, timeout_seconds: float) -> Health:
        """Whether the engine is alive: its process, and what it says of itself."""
        if not self.has_engine:
            return Health.DEAD
        if self._process is None:
            return Health.SILENT
        return await self._check(self._endpoints, timeout_seconds)

    @property
    def works_after_answering(self) -> bool:
        """Whether its work can go on when its answers have ended, so that ``has_work`` must be asked."""
        return self.spec.engine.works_after_answering

    async def has_work(self) -> bool:
        """Whether it works on something. While it cannot tell and is not known to be dead, it is taken to."""
        if self._process is None:
            return False
        try:
            return await self.spec.engine.has_work(self._endpoints)
        except ControlCallFailed as failure:
            log.warning("the engine does not tell whether it works", model=self.spec.model, reason=str(failure))
            return await self.check_health(PROBE_TIMEOUT_SECONDS) is not Health.DEAD

    async def _check(self, endpoints: EngineEndpoints, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> Health:
        return await check_health(endpoints, timeout_seconds, self.spec.engine.health_path)

    async def generates(self, limit_seconds: float) -> bool:
        """Whether the engine answers a question for one token in time."""
        return await generates(self._endpoints, self.spec.engine.served_names[0], limit_seconds)

    def kill(self) -> None:
        """Kill the engine's processes if there are any; its exit is reported as any other."""
        if self._process is not None:
            self._process.kill()

    async def _start(self) -> None:
        """Cold start; raises EngineFailure."""
        self._headroom.move_to(self._devices)
        await self.clear_leftovers()
        await self._scope.run(self._headroom.wait_to_start(), None, "the wait for free memory")
        self._used_before = await self._headroom.read() if self._measures_memory else ()
        # First of all: it may make directories that the command line names.
        self._state = await asyncio.to_thread(self.spec.engine.prepare_start)
        fingerprint = await asyncio.to_thread(self.spec.fingerprint)
        program = self.spec.program
        # No socket for an engine that may be dumped: each start has another one, and an image is restored with its own.
        may_listen_on_socket = self.spec.prefers_socket and self.spec.engine.takes_socket and self._store is None
        if may_listen_on_socket and program not in self._socketless:
            if await self._start_on_socket(fingerprint):
                return
            await self._start_on_port(fingerprint)
            self._socketless.add(program)
            log.warning(
                "this program knows no Unix socket: its engines listen on ports of loopback, "
                "which every user of this machine can reach",
                program=program,
            )
        else:
            await self._start_on_port(fingerprint)

    async def _start_on_port(self, fingerprint: str) -> None:
        port = self.spec.port
        self._endpoints.move_to(port)
        if not is_free(port):
            raise EngineFailure(
                FailureReason(f"port {port} is taken by another process; free it, or give the model another port")
            )
        engine = await self._spawn(fingerprint, create_temporary_directory(self.spec.model))
        log.info("engine started", model=self.spec.model, pid=engine.process.pid, port=port)
        healthy = wait_until_healthy(self._endpoints, self._report_start, self.spec.engine.health_path)
        await self._scope.run(healthy, self.spec.start_timeout_seconds, "the start")
        # What is healthy may be another server that took the port meanwhile.
        listens_itself = self.spec.engine.listens_itself
        if listens_itself and not await asyncio.to_thread(listens, engine.process.pid, port):
            raise EngineFailure(FailureReason(f"port {port} is answered by another process than the engine"))
        await self._scope.run(self._probe_started(engine), None, "its first answer")

    async def _start_on_socket(self, fingerprint: str) -> bool:
        """False, and no engine, if it ended as if it did not know the flag for it."""
        directory = create_temporary_directory(self.spec.model)
        socket_path = directory / SOCKET_NAME
        self._endpoints.move_to_socket(socket_path)
        engine = await self._spawn(fingerprint, directory, socket_path)
        process = engine.process
        log.info("engine started", model=self.spec.model, pid=process.pid, socket=str(socket_path))
        try:
            started = poll(lambda: self._has_started(process.pid, socket_path), self._report_start)
            await self._scope.run(started, self.spec.start_timeout_seconds, "the start")
        except EngineFailure:
            is_refusal = process.exit_status == USAGE_ERROR or self.spec.engine.refuses_socket(process.tail)
            if self._is_interrupted or process.exit_status is None or not is_refusal:
                raise
            await self.end()
            return False
        await self._scope.run(self._probe_started(engine), None, "its first answer")
        return True

    async def _has_started(self, pid: int, socket_path: Path) -> bool:
        """Whether the engine is healthy on its socket, or on its port, which one that ignores the socket uses."""
        port, model = self.spec.port, self.spec.model
        if await self._check(self._endpoints) is Health.ALIVE:
            return True
        if not await asyncio.to_thread(socket_path.exists) and await self._answers_on_port(pid, port):
            self._endpoints.move_to(port)
            log.warning("the engine ignores its Unix socket and listens on a port", model=model, port=port)
            return True
        return False

    async def _answers_on_port(self, pid: int, port: int) -> bool:
        health = await self._check(self._endpoints.at_port())
        return health is Health.ALIVE and await asyncio.to_thread(listens, pid, port)

    async def _spawn(self, fingerprint: str, directory: Path, socket_path: Path | None = None) -> RunningEngine:
        try:
            gpus = await self._headroom.read()
            total_mib = min((gpu.total_mib for gpu in gpus), default=None)
            process = await EngineProcess.spawn(
                self.spec.launch_command(directory, socket_path, self._devices, total_mib),
                on_line=self._on_line,
                on_exit=self._on_process_exit,
                redact=self.spec.redactor.redact_line,
            )
        except SpawnFailed as failure:
            remove_temporary_directory(directory)
            raise EngineFailure(FailureReason(failure.reason)) from failure
        self._engine = self._running(process, fingerprint)
        self._engine.state = self._state
        return self._engine

    def _report_start(self, elapsed_seconds: float) -> None:
        last_line = self.output_tail[-1] if self.output_tail else None
        log.info("engine is starting", model=self.spec.model, seconds=round(elapsed_seconds), last_line=last_line)

    async def _probe_started(self, engine: RunningEngine) -> None:
        """Find out what a started engine can do and what it answers; raises ControlCallFailed."""
        self._endpoints.keep_connections()
        self.abilities = await self._find_abilities(engine)
        await self.canary.record(self._endpoints)
        await self.spec.engine.came_back(self._endpoints, engine.state)

    async def _find_abilities(self, engine: RunningEngine) -> Abilities:
        """Ask what it can do; that it cannot freeze is logged once. Raises ControlCallFailed."""
        abilities = await engine.find_abilities()
        if self.spec.freezes and not engine.can_freeze and not self._has_said_that_it_drains:
            self._has_said_that_it_drains = True
            engine.say_that_it_drains(abilities.version)
        return abilities

    async def _come_back(self) -> None:
        """Undo how the engine left, and check its answers; raises EngineFailure, OutputMismatch."""
        await self._scope.run(self._headroom.wait_to_wake(self._is_own), None, "the wait for free memory")
        is_restored = self._engine is None
        if is_restored:
            await self._scope.run(self._restore(), None, "the restore")
            await self._resume_restored()
            healthy = wait_until_healthy(self._endpoints, path=self.spec.engine.health_path)
            await self._scope.run(healthy, RESTORED_HEALTHY_SECONDS, "the restore")
        engine = self._engine
        assert engine is not None
        self._endpoints.keep_connections()
        if is_restored:
            # By another llmux's image perhaps, which says nothing of what its engine can do.
            await self._scope.run(self._find_abilities(engine), None, "the restore")
        has_frozen = engine.has_frozen
        await engine.come_back()
        self._headroom.forget_freed()
        check = self.canary.check(self._endpoints, has_frozen=has_frozen)
        try:
            await self._scope.run(check, None, "the canary's check")
        except OutputMismatch:
            if self._store is not None:
                self._store.distrust()
            raise
        await self._scope.run(
            self.spec.engine.came_back(self._endpoints, engine.state), None, "what follows the canary"
        )

    async def _resume_restored(self) -> None:
        """An engine that was dumped with its GPU suspended answers nothing before. Raises EngineFailure."""
        if self._engine is not None and is_suspended(self._engine):
            await self._engine.take_back()

    async def _restore(self) -> None:
        """Restore the engine; its image says where it listens and what is to be undone. Raises EngineFailure."""
        assert self._store is not None
        fingerprint = await asyncio.to_thread(self.spec.fingerprint)
        try:
            redact, gpus = self.spec.redactor.redact_line, await self._headroom.read()
            process, manifest = await self._store.restore(
                fingerprint, on_line=self._on_line, on_exit=self._on_process_exit, redact=redact, gpus=gpus
            )
            self._engine = engine = self._running(process, fingerprint)
            await self._store.delete_consumed()
        except (RestoreFailed, ImageUnusable, CriuUnusable) as failure:
            reason = FailureReason(str(failure), "the engine could not be restored from its image")
            raise EngineFailure(reason) from failure
        engine.state = await asyncio.to_thread(self.spec.engine.prepare_start, manifest.created_at)
        engine.applied = tuple(map(self.spec.engine.parse_step, manifest.steps))
        engine.suspended = manifest.suspended
        self.canary.baseline = manifest.canary or self.canary.baseline
        self._endpoints.move_to(manifest.port)
        log.info("restored", model=self.spec.model, pid=process.pid, port=manifest.port)

    def _running(self, process: EngineProcess, fingerprint: str) -> RunningEngine:
        return RunningEngine(
            spec=self.spec,
            endpoints=self._endpoints,
            process=process,
            scope=self._scope,
            canary=self.canary,
            store=self._store,
            headroom=self._headroom,
            cuda=self._cuda,
            fingerprint=fingerprint,
            on_leaving=self._on_leaving,
        )

    def _forget(self) -> None:
        self._last_output = self.output_tail
        self._engine = None
        # The exit of the forgotten process must not fail the next start.
        self._scope.reset()

    def _on_process_exit(self, status: int) -> None:
        # There is no process yet if it ended while it was being spawned.
        reason = self._scope.exit_report(self._process, status)
        self._scope.interrupt(reason)
        self._on_exit(reason)

    def _on_line(self, stream: str, line: str) -> None:
        log.debug(line, model=self.spec.model, stream=stream)
