"""Puts engines into images on disk and brings them back: one at a time on a machine, with time limits."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from llmux.cancellation import wait_uncancelled
from llmux.checkpoints import dumping, images, restoring, shared_memory
from llmux.checkpoints.criu import Criu, inspect_criu, read_error
from llmux.checkpoints.dumping import Dumpable
from llmux.checkpoints.facts import ImageFacts
from llmux.checkpoints.manifest import Manifest, check_origin, kernel_release, read_manifest
from llmux.checkpoints.stored_image import Origin, cpu_features
from llmux.errors import CriuUnusable, DumpFailed, ImageUnusable, RestoreFailed, SpawnFailed

CUDA_PLUGIN = "cuda_plugin.so"
LEAST_TIMEOUT_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 50_000_000
"""A tenth of what was measured on a busy machine with two cores, for dumps and restores."""
LOCK_POLL_SECONDS = 0.05
LOCK_LIMIT_SECONDS = 600.0
"""Longer than the dump of a large engine takes: whoever holds the lock for longer hangs."""
REFUSAL_SECONDS = 60.0
"""How long a criu that does not work is taken not to: what it lacked may be given to it while llmux runs."""
CLEANUP_LOCK_LIMIT_SECONDS = 5.0
"""Cleaning up at the start can wait for the next start, and must not delay this one."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Engine = TypeVar("Engine")


@dataclass(frozen=True, slots=True)
class CriuSettings:
    """Where criu and the images are, and the time limits; None scales a limit with the engine's size."""

    criu_path: str
    plugin_directory: Path | None
    images_directory: Path
    dump_timeout_seconds: float | None = None
    restore_timeout_seconds: float | None = None
    gpus: str = ""
    """The models of this machine's GPUs: what is in GPU memory fits no other. Only images in a store need it."""


@dataclass(frozen=True, slots=True)
class RestoreCommand:
    """How to restore an engine: criu's command line without the pipes to inherit, and facts from the image.

    ``pipes`` are the inodes of the stdout and stderr with which the engine was dumped. The temporary directory exists
    already; from now on it belongs to the engine.
    """

    argv: tuple[str, ...]
    timeout_seconds: float
    pid: int
    pipes: tuple[int, int]
    temporary_directory: Path | None = None


class Checkpointer:
    """Dumps engines and restores them."""

    def __init__(self, settings: CriuSettings) -> None:
        self._settings = settings
        self._criu: Criu | None = None
        self._refusal: CriuUnusable | None = None
        self._refused_at = 0.0
        self._lock = asyncio.Lock()

    async def check(self) -> None:
        """Check that criu works here; raises CriuUnusable. Success is remembered, failure for a minute.

        The first successful check also deletes images that a killed llmux left unfinished.
        """
        now = asyncio.get_running_loop().time()
        if self._refusal is not None and now - self._refused_at < REFUSAL_SECONDS:
            raise self._refusal
        if self._criu is None:
            try:
                self._criu = await _in_thread(inspect_criu, self._settings.criu_path, self._settings.plugin_directory)
            except CriuUnusable as refusal:
                self._refusal, self._refused_at = refusal, now
                raise
            self._refusal = None
            with suppress(CriuUnusable):
                async with self._one_at_a_time(CLEANUP_LOCK_LIMIT_SECONDS):
                    await _in_thread(_delete_all_unfinished, self._settings.images_directory)

    def has_cuda_plugin(self) -> bool:
        """Whether criu suspends processes that use CUDA by itself, so that nobody else may. Reads the disk."""
        directory = self._settings.plugin_directory
        return directory is not None and (directory / CUDA_PLUGIN).exists()

    def image_path(self, model: str, *, frozen: bool = False) -> Path:
        """The path of a model's image, which need not exist; raises ImageUnusable.

        ``frozen``: the image with requests in flight.
        """
        return images.image_path(self._settings.images_directory, model, frozen=frozen)

    def read(self, path: Path) -> Manifest:
        """The manifest of an image that is complete and usable with this kernel and criu; raises ImageUnusable."""
        manifest = read_manifest(path)
        images.check_owner(path, self._settings.images_directory)
        if self._criu is not None:
            check_origin(path, manifest, self._criu.version)
        return manifest

    async def origin(self, fingerprint: str) -> Origin:
        """What stored images must have come from so that they can be restored here; raises CriuUnusable."""
        await self.check()
        return Origin(fingerprint, kernel_release(), self._checked_criu.version, cpu_features(), self._settings.gpus)

    @asynccontextmanager
    async def downloading(self, path: Path) -> AsyncIterator[Path]:
        """The empty directory for a download of the image of this path; raises OSError, ImageUnusable."""
        async with AsyncExitStack() as stack:
            opened = images.downloading(path, self._settings.images_directory)
            yield await _in_thread(stack.enter_context, opened)

    async def put_in_place(self, new: Path, path: Path) -> None:
        """Let a complete image take the place of what is at the path; raises OSError, CriuUnusable."""
        async with self._one_at_a_time():
            await _in_thread(images.replace_image, new, path)

    async def dump(self, engine: Dumpable, facts: ImageFacts) -> Manifest:
        """Put the engine into the model's image, replacing an older one. On success its processes are gone.

        Raises DumpFailed: the engine runs on, unless ``engine_runs`` is False, and nothing is left on disk, in /dev/shm
        or in the firewall. Raises CriuUnusable before anything was done. A cancelled dump is undone likewise; if the
        engine is already in the image, the image is completed first.
        """
        await self.check()
        top = self._settings.images_directory
        try:
            path = self.image_path(facts.model, frozen=facts.has_frozen)
            new = images.new_path(path)
        except ImageUnusable as error:
            raise DumpFailed(str(error)) from error
        async with self._one_at_a_time():
            try:
                await _in_thread(images.begin, new, top)
                return await self._dump_into(new, engine, facts)
            except (OSError, ImageUnusable) as error:
                reason = f"the image {path} could not be written: {error}"
                raise DumpFailed(reason, engine_runs=not engine.is_dumped) from error
            finally:
                await _in_thread(images.remove_directory, new, top)

    async def restore(
        self, path: Path, run_criu: Callable[[RestoreCommand], Awaitable[Engine]]
    ) -> tuple[Engine, Manifest]:
        """Restore an engine from its image. The caller undoes the steps before the dump, which the manifest lists.

        ``run_criu`` runs the command and returns the engine; it raises SpawnFailed or RestoreFailed, and then, and when
        cancelled, leaves no process. The image stays, but one with frozen requests cannot be restored again.

        Raises RestoreFailed, ImageUnusable or CriuUnusable; then, and when cancelled, only the image is left.
        """
        await self.check()
        manifest = await _in_thread(self.read, path)
        async with self._one_at_a_time():
            if reason := await _in_thread(restoring.find_obstacle, manifest):
                raise RestoreFailed(reason, is_passing=True)
            try:
                await _in_thread(restoring.put_files_back, path, manifest)
                engine = await self._restore_from(path, manifest, run_criu)
            except BaseException:
                await _in_thread(restoring.remove_files, manifest)
                raise
            if manifest.has_frozen:
                await _in_thread(images.invalidate, path)
        return engine, manifest

    async def make_durable(self, path: Path) -> None:
        """Return when the image is synced to the disk and can be restored after a crash of the machine.

        A dump does not do this, since it takes several times as long as the dump. Raises ImageUnusable, OSError.
        """
        manifest = await _in_thread(self.read, path)
        if not manifest.is_durable:
            # Without the lock: syncing takes long, and another image may take this one's place meanwhile.
            await _in_thread(images.sync, path)
            async with self._one_at_a_time():
                await _in_thread(images.mark_durable, path, manifest)

    async def delete(self, path: Path, unless: Callable[[], bool] = lambda: False) -> None:
        """Delete an image, its files in /dev/shm and its firewall tables; raises OSError, CriuUnusable.

        ``unless`` is asked when no dump is under way any more, and keeps the image if true.
        """
        async with self._one_at_a_time():
            if unless():
                return
            await _in_thread(images.delete, path, self._settings.images_directory)

    @asynccontextmanager
    async def _one_at_a_time(self, limit_seconds: float = LOCK_LIMIT_SECONDS) -> AsyncIterator[None]:
        """Exclude every other criu of an llmux on this machine; raises CriuUnusable after the time limit."""
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(limit_seconds):
                    await stack.enter_async_context(self._lock)
                    lock = stack.enter_context(shared_memory.opened_lock())
                    while not shared_memory.try_lock(lock):  # noqa: ASYNC110 - file locks cannot be awaited
                        await asyncio.sleep(LOCK_POLL_SECONDS)
            except TimeoutError:
                raise CriuUnusable(
                    f"another process has held the lock on {shared_memory.DIRECTORY} for {limit_seconds:.0f} s: "
                    "look for an llmux or criu that hangs"
                ) from None
            yield

    async def _dump_into(self, new: Path, engine: Dumpable, facts: ImageFacts) -> Manifest:
        criu = self._checked_criu
        preparation = await _in_thread(dumping.prepare, engine, new)
        timeout_seconds = self._settings.dump_timeout_seconds or _scaled_seconds(preparation.size_bytes)
        cancelled: asyncio.CancelledError | None = None
        try:
            await engine.dump(criu.dump_command(engine.pid, new), timeout_seconds)
        except asyncio.CancelledError as error:
            cancelled = error
        except DumpFailed as failure:
            # A full disk cuts off criu's log as well.
            full = await _in_thread(dumping.describe_full_disk, new)
            cause = full or await _in_thread(read_error, new / images.DUMP_LOG)
            raise DumpFailed(_with_cause(failure.reason, cause), engine_runs=failure.engine_runs) from failure
        finally:
            if not engine.is_dumped:
                await _in_thread(dumping.undo, new, preparation)
        try:
            if engine.is_dumped:
                # Even if cancelled: without its image the engine would be lost.
                manifest = dumping.describe(engine, facts, preparation, criu)
                manifest = await _in_thread(dumping.complete, new, manifest, preparation)
        finally:
            if engine.is_dumped:
                await engine.release()
        if cancelled is not None:
            raise cancelled
        return manifest

    async def _restore_from(
        self, path: Path, manifest: Manifest, run_criu: Callable[[RestoreCommand], Awaitable[Engine]]
    ) -> Engine:
        directory = manifest.temporary_directory
        command = RestoreCommand(
            argv=self._checked_criu.restore_command(path),
            timeout_seconds=self._settings.restore_timeout_seconds or _scaled_seconds(manifest.size_bytes),
            pid=manifest.pid,
            pipes=manifest.pipes,
            temporary_directory=None if directory is None else Path(directory),
        )
        log = path / "restore.log"
        log.unlink(missing_ok=True)  # an older log could name the wrong cause
        try:
            return await run_criu(command)
        except SpawnFailed as failure:
            raise RestoreFailed(failure.reason, is_passing=True) from failure
        except RestoreFailed as failure:
            cause = await _in_thread(read_error, log)
            raise RestoreFailed(_with_cause(failure.reason, cause)) from failure

    @property
    def _checked_criu(self) -> Criu:
        if self._criu is None:
            raise CriuUnusable("it was not checked")
        return self._criu


async def _in_thread(
    function: Callable[Parameters, Result], *arguments: Parameters.args, **options: Parameters.kwargs
) -> Result:
    """Run the function in a thread to its end; a cancellation meanwhile is raised only then."""
    work = asyncio.get_running_loop().run_in_executor(None, partial(function, *arguments, **options))
    try:
        await wait_uncancelled(work)
    except asyncio.CancelledError as cancelled:
        # The caller needs to see the cancellation; a failure of the function is its cause.
        raise cancelled from work.exception()
    return work.result()


def _delete_all_unfinished(top: Path) -> None:
    # What cannot be deleted costs at most a later dump, which then reports the reason.
    with suppress(OSError):
        images.delete_all_unfinished(top)


def _scaled_seconds(size_bytes: int) -> float:
    return LEAST_TIMEOUT_SECONDS + size_bytes / SLOWEST_BYTES_PER_SECOND


def _with_cause(reason: str, cause: str | None) -> str:
    return f"{cause} ({reason})" if cause else reason
