"""Engines put into images on disk, and brought back from them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from llmux.checkpoints import disk_space, firewall, host_lock, images, shared_memory, temporary_files, unfinished
from llmux.checkpoints.criu import Criu, inspect_criu
from llmux.checkpoints.criu_log import read_error
from llmux.checkpoints.manifest import (
    Manifest,
    boot_id,
    check_origin,
    kernel_release,
    read_manifest,
    write_manifest,
)
from llmux.checkpoints.processes import Tree, find_taken, find_tree, inspect_tree
from llmux.core.eviction import Eviction
from llmux.engines.process import EngineProcess, LineReceiver, RestoreCommand
from llmux.engines.step_words import step_word
from llmux.engines.steps import Step
from llmux.engines.waiting import outlast
from llmux.errors import CriuUnusable, DumpFailed, ImageUnusable, RestoreFailed, SpawnFailed
from llmux.hosts.local import is_free

LEAST_TIMEOUT_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 50_000_000
"""A tenth of what a busy machine with two cores wrote and read."""
LOCK_INTERVAL_SECONDS = 0.05
CLEARING_LIMIT_SECONDS = 5.0
LOCK_LIMIT_SECONDS = 600.0
"""What a dump of a large engine may take; whoever holds the lock for longer is not at work."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class CriuSettings:
    """Where criu and its images are, and how long it may take; None: so long as the size of the engine allows."""

    criu_path: str
    plugin_directory: Path | None
    images_directory: Path
    dump_timeout_seconds: float | None = None
    restore_timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What only the caller knows about the engine in an image."""

    model: str
    port: int
    identity: str
    """``checkpoints.identity.fingerprint_of`` how it was started."""
    steps: tuple[Step, ...]
    """What was done to the engine before the dump."""
    eviction: Eviction
    has_frozen: bool
    argv: tuple[str, ...]
    canary: str | None = None


@dataclass(frozen=True, slots=True)
class _Before:
    """What there was before criu dumped."""

    tree: Tree
    shared_inodes: frozenset[int]
    remapped: frozenset[str]
    size_bytes: int


class Checkpointer:
    """Dumps engines and restores them, one at a time on this machine."""

    def __init__(self, settings: CriuSettings) -> None:
        self._settings = settings
        self._criu: Criu | None = None
        self._refusal: CriuUnusable | None = None
        self._turn = asyncio.Lock()

    async def check(self) -> None:
        """Look once whether criu can be used here; raises CriuUnusable.

        Then also what an llmux that was killed has left unfinished among the images is cleared away.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._criu is None:
            try:
                self._criu = await _in_thread(inspect_criu, self._settings.criu_path, self._settings.plugin_directory)
            except CriuUnusable as refusal:
                self._refusal = refusal
                raise
            with suppress(CriuUnusable):
                async with self._one_at_a_time(CLEARING_LIMIT_SECONDS):
                    await _in_thread(_clear_unfinished, self._settings.images_directory)

    def image_path(self, model: str, *, frozen: bool = False) -> Path:
        """Where a model's image is or would be; ``frozen``: the one with requests in flight. Raises ImageUnusable."""
        return images.image_path(self._settings.images_directory, model, frozen=frozen)

    def read(self, path: Path) -> Manifest:
        """An image's manifest, if the image is whole and made for this kernel and criu; raises ImageUnusable."""
        manifest = read_manifest(path)
        images.check_owner(path, self._settings.images_directory)
        if self._criu is not None:
            check_origin(path, manifest, self._criu.version)
        return manifest

    async def dump(self, process: EngineProcess, facts: ImageFacts) -> Manifest:
        """Put the engine into the model's image, which replaces an older one; its processes are gone then.

        Raises DumpFailed: the engine runs on (but see its ``engine_runs``), and nothing is left on disk, in /dev/shm or
        in the firewall. A cancelled dump is broken off likewise; if it comes too late for that, it is completed first.
        Raises CriuUnusable before anything was done.
        """
        await self.check()
        top = self._settings.images_directory
        try:
            path = self.image_path(facts.model, frozen=facts.has_frozen)
            new = images.place_of_new(path)
        except ImageUnusable as error:
            raise DumpFailed(str(error)) from error
        async with self._one_at_a_time():
            try:
                await _in_thread(images.begin, new, top)
                return await self._dump_into(new, process, facts)
            except (OSError, ImageUnusable) as error:
                reason = f"the image {path} could not be written: {error}"
                raise DumpFailed(reason, engine_runs=not process.is_dumped) from error
            finally:
                await _in_thread(images.remove, new, top)

    async def restore(
        self, path: Path, *, on_line: LineReceiver, on_exit: Callable[[int], None]
    ) -> tuple[EngineProcess, Manifest]:
        """Bring an engine back from its image; the steps before the dump are the caller's to undo.

        The image stays, but one with frozen requests, which must not be answered twice, is not restored again.
        Raises RestoreFailed, ImageUnusable or CriuUnusable; then, and when it is cancelled, nothing is left behind.
        """
        await self.check()
        manifest = await _in_thread(self.read, path)
        async with self._one_at_a_time():
            if reason := await _in_thread(_find_obstacle, manifest):
                raise RestoreFailed(reason)
            try:
                await _in_thread(_put_back, path, manifest)
                process = await self._restore_from(path, manifest, on_line, on_exit)
            except BaseException:
                await _in_thread(_clear, manifest)
                raise
            if manifest.has_frozen:
                images.spend(path)
        return process, manifest

    async def make_durable(self, path: Path) -> None:
        """Return when the image is on the disk for sure, and may be restored after a crash of the machine.

        A dump does not wait for that: it takes several times as long as all the rest. Raises ImageUnusable, OSError.
        """
        manifest = await _in_thread(self.read, path)
        if not manifest.is_durable:
            await _in_thread(images.sync, path)
            async with self._one_at_a_time():
                await _in_thread(_mark_durable, path, manifest)

    async def drop(self, path: Path) -> None:
        """Delete an image, and what it or its engine has left in /dev/shm and in the firewall; raises OSError."""
        async with self._one_at_a_time():
            await _in_thread(_drop, path, self._settings.images_directory)

    @asynccontextmanager
    async def _one_at_a_time(self, limit_seconds: float = LOCK_LIMIT_SECONDS) -> AsyncIterator[None]:
        """One criu for all llmux of this machine; raises CriuUnusable where others do not end."""
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(limit_seconds):
                    await stack.enter_async_context(self._turn)
                    lock = stack.enter_context(host_lock.opened_lock())
                    while not host_lock.try_lock(lock):  # noqa: ASYNC110 - another's lock announces nothing
                        await asyncio.sleep(LOCK_INTERVAL_SECONDS)
            except TimeoutError:
                raise CriuUnusable(
                    f"somebody else has held its turn ({host_lock.DIRECTORY}) for {limit_seconds:.0f} s: "
                    "look for another llmux or criu that hangs"
                ) from None
            yield

    async def _dump_into(self, new: Path, process: EngineProcess, facts: ImageFacts) -> Manifest:
        criu = self._usable
        before = await _in_thread(_inspect, process, new)
        timeout_seconds = self._settings.dump_timeout_seconds or _scaled_seconds(before.size_bytes)
        cancelled: asyncio.CancelledError | None = None
        try:
            await process.dump(criu.dump_command(process.pid, new), timeout_seconds)
        except asyncio.CancelledError as error:
            cancelled = error
        except DumpFailed as failure:
            reason = await _in_thread(read_error, new / "dump.log")
            raise DumpFailed(_joined(failure.reason, reason), engine_runs=failure.engine_runs) from failure
        finally:
            if not process.is_dumped:
                await _in_thread(_undo_dump, new, before)
        try:
            if process.is_dumped:
                manifest = await _in_thread(_complete, new, _describe(process, facts, before, criu), before)
        finally:
            if process.is_dumped:
                await process.release()
        if cancelled is not None:
            raise cancelled
        return manifest

    async def _restore_from(
        self, path: Path, manifest: Manifest, on_line: LineReceiver, on_exit: Callable[[int], None]
    ) -> EngineProcess:
        directory = manifest.temporary_directory
        command = RestoreCommand(
            argv=self._usable.restore_command(path),
            timeout_seconds=self._settings.restore_timeout_seconds or _scaled_seconds(manifest.size_bytes),
            pid=manifest.pid,
            pipes=manifest.pipes,
            temporary_directory=None if directory is None else Path(directory),
        )
        log = path / "restore.log"
        log.unlink(missing_ok=True)
        try:
            return await EngineProcess.restore(command, on_line=on_line, on_exit=on_exit)
        except SpawnFailed as failure:
            raise RestoreFailed(failure.reason) from failure
        except RestoreFailed as failure:
            reason = await _in_thread(read_error, log)
            raise RestoreFailed(_joined(failure.reason, reason)) from failure

    @property
    def _usable(self) -> Criu:
        if self._criu is None:
            raise CriuUnusable("it was not looked at")
        return self._criu


async def _in_thread(
    function: Callable[Parameters, Result], *arguments: Parameters.args, **options: Parameters.kwargs
) -> Result:
    """Run the function in a thread, to its end even if cancelled meanwhile."""
    work = asyncio.get_running_loop().run_in_executor(None, partial(function, *arguments, **options))
    try:
        await outlast(work)
    except asyncio.CancelledError as cancelled:
        # The cancellation is what the caller has to hear of; a failure of the work is told with it.
        raise cancelled from work.exception()
    return work.result()


def _inspect(process: EngineProcess, new: Path) -> _Before:
    """Look at the engine, and refuse with DumpFailed what criu would only fail at later."""
    tree = inspect_tree(process.pid)
    if tree.undumpable:
        raise DumpFailed(f"criu cannot dump {', '.join(tree.undumpable[:3])}")
    descendants = set(find_tree(process.shim_pid or 0)) - {process.shim_pid}
    if strays := descendants - set(tree.pids):
        raise DumpFailed(f"the process {min(strays)} of the engine has left its root, and would not be in the image")
    inodes = shared_memory.find_used_inodes(tree.pids)
    size_bytes = tree.memory_bytes + shared_memory.find_size(inodes)
    if reason := disk_space.lack_of_disk(new, size_bytes):
        raise DumpFailed(reason)
    remapped = shared_memory.list_remapped()
    unfinished.note_beginning(new, remapped, shared_memory.find_names(inodes))
    return _Before(tree, inodes, remapped, size_bytes)


def _undo_dump(new: Path, before: _Before) -> None:
    """What a criu that was killed in its work has left."""
    shared_memory.remove(shared_memory.list_remapped() - before.remapped)
    firewall.remove_tables(firewall.find_tables(new / "dump.log"))


def _describe(process: EngineProcess, facts: ImageFacts, before: _Before, criu: Criu) -> Manifest:
    directory = process.temporary_directory
    return Manifest(
        model=facts.model,
        argv=facts.argv,
        identity=facts.identity,
        port=facts.port,
        steps=tuple(map(step_word, facts.steps)),
        eviction=str(facts.eviction),
        has_frozen=facts.has_frozen,
        pid=process.pid,
        pids=before.tree.pids,
        tids=before.tree.tids,
        groups=before.tree.groups,
        pipes=process.pipes,
        gpu_processes=before.tree.gpu_processes,
        temporary_directory=None if directory is None else str(directory),
        shared_memory={},
        firewall_tables=(),
        criu_version=criu.version,
        created_at=time.time(),
        files={},
        kernel=kernel_release(),
        boot_id=boot_id(),
        canary=facts.canary,
        is_durable=False,
    )


def _complete(new: Path, manifest: Manifest, before: _Before) -> Manifest:
    """Take into the image what criu has left outside, and put it into its place.

    Raises OSError, and then nothing is left outside.
    """
    try:
        names = shared_memory.take_into_image(new, before.shared_inodes, before.remapped)
        if manifest.temporary_directory is not None:
            temporary_files.take_into_image(new, Path(manifest.temporary_directory))
        manifest = manifest.with_leftovers(names, firewall.find_tables(new / "dump.log")).completed(new)
        write_manifest(new, manifest)
        unfinished.forget_beginning(new)
        images.finish(new)
    except BaseException:
        _undo_dump(new, before)
        shared_memory.remove_unused(shared_memory.find_names(before.shared_inodes))
        raise
    return manifest


def _find_obstacle(manifest: Manifest) -> str | None:
    """What in the present state of the machine is in the way of a restore, which would harm it or fail later."""
    if not is_free(manifest.port):
        return f"port {manifest.port} is taken by another process"
    if taken := find_taken(manifest.numbers):
        number = min(taken)
        return f"it needs the process number {number}, which is in use by {taken[number]!r}"
    return disk_space.lack_of_memory(manifest.size_bytes)


def _put_back(path: Path, manifest: Manifest) -> None:
    """Put everything that criu looks for outside the image where it was; raises RestoreFailed."""
    try:
        shared_memory.put_back(path, manifest.shared_memory)
        if manifest.temporary_directory is not None:
            temporary_files.put_back(path, Path(manifest.temporary_directory))
    except (OSError, shared_memory.NameTaken, temporary_files.DirectoryTaken) as error:
        raise RestoreFailed(f"its files could not be put back: {error}") from error


def _clear(manifest: Manifest) -> None:
    """Take away what was put there for a restore that failed."""
    shared_memory.remove_unused(manifest.shared_memory)
    if manifest.temporary_directory is not None:
        with suppress(temporary_files.DirectoryTaken):
            temporary_files.remove_leftover(Path(manifest.temporary_directory))


def _mark_durable(path: Path, manifest: Manifest) -> None:
    if read_manifest(path) == manifest:  # and not another image by now
        write_manifest(path, replace(manifest, is_durable=True))
        images.sync(path)


def _clear_unfinished(top: Path) -> None:
    # What cannot be cleared costs at most a later dump, which then says why.
    with suppress(OSError):
        unfinished.clear_all(top)


def _drop(path: Path, top: Path) -> None:
    try:
        manifest = read_manifest(path, whole=False)
    except ImageUnusable:
        manifest = None
    images.remove(path, top)
    if manifest is not None:
        shared_memory.remove_unused(manifest.shared_memory)
        if manifest.boot_id == boot_id():
            firewall.remove_tables(manifest.firewall_tables)


def _scaled_seconds(size_bytes: int) -> float:
    return LEAST_TIMEOUT_SECONDS + size_bytes / SLOWEST_BYTES_PER_SECOND


def _joined(ending: str, cause: str | None) -> str:
    return f"{cause} ({ending})" if cause else ending
