"""The images of one model: which one the engine is in while it has no process, and which ones may be used again."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import structlog

from llmux.checkpoints.budget import LocalImage
from llmux.checkpoints.checkpointer import Checkpointer
from llmux.checkpoints.facts import ImageFacts
from llmux.checkpoints.image_transfers import DownloadFailed, ImageTransfers, stored_generation
from llmux.checkpoints.manifest import GpuIdentity, Manifest, check_gpus
from llmux.core.eviction import Eviction
from llmux.errors import CriuUnusable, ImageUnusable, LlmuxError, RestoreFailed
from llmux.gpus.memory import GpuMemory
from llmux.instances.canary import is_same
from llmux.instances.process import EngineProcess, LineReceiver

log = structlog.get_logger("llmux.images")


class CheckpointStore:
    """Dumps one model's engine and restores it.

    ``keep``: images outlive their restore, so that a later eviction need only stop the engine. ``configured``: an image
    from the configuration that the engine starts from; it is never deleted.

    With ``transfers``, a dump is uploaded in the background, and an image that is missing or out of date is fetched
    before the restore. ``starts_from_image``: the first start is a restore if an image is found here or there.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        model: str,
        *,
        keep: bool,
        configured: Path | None = None,
        transfers: ImageTransfers | None = None,
        starts_from_image: bool = False,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_change`` is called when there may be more on the disk than before."""
        self._on_change = on_change
        self._is_busy = False
        """An image is being made, or restored from: none may be deleted to keep the budget."""
        self._last_used_at: float | None = None
        self._checkpointer = checkpointer
        self._transfers = transfers
        self._may_start_from_image = starts_from_image and transfers is not None
        self._finding = asyncio.Lock()
        """Held while an image is looked for: a wake waits for the download that began when llmux was started."""
        self._model = model
        self._keep = keep
        self._configured = configured
        self._current = configured
        """The image that the engine is in; None while it runs, or would start cold."""
        self._consumed: Path | None = None
        """The image that the engine was restored from last, if it must not be used again."""
        self._distrusted: Path | None = None
        """An image that could not be restored or was restored wrongly; a new dump replaces it."""

    @property
    def holds_engine(self) -> bool:
        """Whether the engine is in an image."""
        return self._current is not None

    def has_cuda_plugin(self) -> bool:
        """Whether criu suspends processes that use CUDA by itself. Reads the disk."""
        return self._checkpointer.has_cuda_plugin()

    def files_of_engine(self) -> Sequence[Path]:
        """The files of the image that the engine is in, if it is in one on this machine; reads the disk."""
        path = self._current
        try:
            return [] if path is None else sorted(file for file in path.rglob("*") if file.is_file())
        except OSError:
            return []

    async def find_reusable(self, fingerprint: str, eviction: Eviction, canary: str | None) -> Path | None:
        """A kept image that equals what a dump would produce now; None if there is none.

        With it, an eviction stops the engine and calls ``set_current`` instead of dumping.
        """
        if not self._keep:
            return None
        try:
            path = self._checkpointer.image_path(self._model)
            manifest = await asyncio.to_thread(self._checkpointer.read, path)
        except ImageUnusable:
            return None
        matches = manifest.fingerprint == fingerprint and manifest.eviction == str(eviction)
        if canary is not None and manifest.canary is not None:
            matches = matches and is_same(canary, manifest.canary)
        return path if matches and path != self._distrusted and not manifest.has_frozen else None

    def set_current(self, path: Path) -> None:
        """Let the image stand for the engine, which has been stopped."""
        self._current = path
        if self._transfers is not None:
            self._transfers.submit_unless_stored(self._model, path)

    @property
    def may_start_from_image(self) -> bool:
        """Whether ``find_image_to_start_from`` could find one: it has not come to an end yet."""
        return self._may_start_from_image

    async def find_image_to_start_from(self, fingerprint: str) -> None:
        """Before the first start: look for an image, here and in the object store, and let it stand for the engine."""
        async with self._finding:
            if not self._may_start_from_image:
                return
            path = self._checkpointer.image_path(self._model)
            try:
                await self._find(path, fingerprint)
                self._current = path
            except (ImageUnusable, OSError) as error:
                log.info("no image to start from", model=self._model, reason=str(error))
            finally:
                self._may_start_from_image = False

    async def fetch_for_start(self, fingerprint: str) -> None:
        """When llmux has been started: fetch the image that the first start will be a restore from."""
        if self._current is None:
            await self.find_image_to_start_from(fingerprint)
        elif (path := self._current) == self._configured:
            with suppress(ImageUnusable, OSError):  # The restore tries again, and says why it failed.
                async with self._finding:
                    await self._find(path, fingerprint)

    async def _find(self, path: Path, fingerprint: str) -> Manifest:
        """The manifest of the image, which is fetched if there is none that is up to date; raises ImageUnusable."""
        try:
            manifest = await asyncio.to_thread(self._checkpointer.read, path)
            if manifest.fingerprint == fingerprint:
                return manifest
            unusable = ImageUnusable(path, "the engine would be started in another way now: it is out of date")
        except ImageUnusable as error:
            unusable = error
        if self._transfers is None or path == self._frozen_path:
            raise unusable
        self._transfers.give_up(self._model)
        try:
            manifest = await self._transfers.fetch(self._model, path, fingerprint)
            self._last_used_at = time.time()
            self._on_change()
            return manifest
        except DownloadFailed as failure:
            raise ImageUnusable(path, f"{unusable.reason}; it was not fetched either: {failure}") from failure

    def distrust(self) -> None:
        """Do not use the kept image again: the engine restored from it answers differently than before."""
        self._distrusted = self._checkpointer.image_path(self._model)

    async def dump(self, process: EngineProcess, facts: ImageFacts) -> Manifest:
        """Put the engine into an image; raises DumpFailed, CriuUnusable. Then it usually runs on."""
        with self._busy():
            manifest = await self._checkpointer.dump(process, facts)
        self._current = self._checkpointer.image_path(self._model, frozen=facts.has_frozen)
        if self._current == self._distrusted:
            self._distrusted = None
        log.info("dumped", model=self._model, mib=round(manifest.size_bytes / 2**20), image=str(self._current))
        # One with frozen requests is good for a single restore, by the llmux that has their clients.
        if self._transfers is not None and not facts.has_frozen:
            self._transfers.submit(self._model, self._current)
        return manifest

    async def restore(
        self,
        fingerprint: str,
        *,
        on_line: LineReceiver,
        on_exit: Callable[[int], None],
        redact: Callable[[str], str] = str,
        gpus: Sequence[GpuMemory] = (),
    ) -> tuple[EngineProcess, Manifest]:
        """Restore the engine; raises RestoreFailed, ImageUnusable, CriuUnusable. Then only a cold start is left.

        An image with frozen requests is used up by the attempt, successful or not.
        """
        with self._busy():
            return await self._restore(fingerprint, on_line=on_line, on_exit=on_exit, redact=redact, gpus=gpus)

    async def _restore(
        self,
        fingerprint: str,
        *,
        on_line: LineReceiver,
        on_exit: Callable[[int], None],
        redact: Callable[[str], str],
        gpus: Sequence[GpuMemory],
    ) -> tuple[EngineProcess, Manifest]:
        path = self._current
        assert path is not None
        # Until the restore has succeeded.
        self._current = None
        self._distrusted = path
        manifest: Manifest | None = None
        try:
            async with self._finding:
                manifest = await self._find(path, fingerprint)
            check_gpus(path, manifest, [GpuIdentity(gpu.name, gpu.gpu) for gpu in gpus])
            run_criu = partial(EngineProcess.restore, on_line=on_line, on_exit=on_exit, redact=redact)
            process, manifest = await self._checkpointer.restore(path, run_criu)
        except BaseException as error:
            if isinstance(error, OSError | CriuUnusable) or (isinstance(error, RestoreFailed) and error.is_passing):
                # A port, memory, descriptors, criu itself: nothing that speaks against the image.
                self._distrusted = None
            if manifest is not None and manifest.has_frozen:
                await self._delete(path)
            raise
        if manifest.has_frozen or not self._keep:
            self._consumed = path
        self._distrusted = None
        return process, manifest

    async def delete_consumed(self) -> None:
        """Delete the image that the engine was restored from, if it must not be used again."""
        path, self._consumed = self._consumed, None
        if path is not None:
            await self._delete(path)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False
            self._last_used_at = time.time()
            self._on_change()

    def describe(self) -> dict[str, object]:
        """The model's images, for people. Reads no disk."""
        found = None if self._transfers is None else self._transfers.of_model(self._model)
        if self._transfers is None or found is None:
            return {"holds_engine": self.holds_engine}
        return {
            "holds_engine": self.holds_engine,
            "stored_at": self._transfers.address(self._model),
            "transfer": None if found.current is None else found.current.describe(),
            "upload_is_queued": found.is_queued,
            "uploads": found.uploads.finished,
            "downloads": found.downloads.finished,
            "last_failure": found.last_failure,
        }

    async def local_image(self) -> LocalImage | None:
        """What the budget must know about the model's image on this machine; None if there is none."""
        path = self._checkpointer.image_path(self._model)
        try:
            manifest = await asyncio.to_thread(self._checkpointer.read, path)
        except ImageUnusable:
            return None
        is_stored = self._transfers is not None and await asyncio.to_thread(stored_generation, path) is not None
        # One that is being uploaded is worth waiting for: afterwards it can go without a loss.
        is_uploading = self._transfers is not None and self._transfers.of_model(self._model).is_busy
        holds_engine = self._current == path or self._is_busy or is_uploading
        last_used_at = self._last_used_at or manifest.created_at
        return LocalImage(self._model, manifest.size_bytes, last_used_at, holds_engine, is_stored)

    async def delete_local_copy(self) -> bool:
        """Delete the image on this machine, unless it is needed; whether it is gone.

        One that the engine is in goes only if the object store says now that it has it.
        """
        path = self._checkpointer.image_path(self._model)
        is_stored = self._transfers is not None and await self._transfers.is_stored(self._model, path)

        def is_needed() -> bool:
            return self._is_busy or self._finding.locked() or (self._current == path and not is_stored)

        try:
            await self._checkpointer.delete(path, unless=is_needed)
        except (OSError, LlmuxError) as error:
            log.warning("an image could not be deleted", model=self._model, image=str(path), reason=str(error))
        return not await asyncio.to_thread(path.exists)

    @property
    def _frozen_path(self) -> Path:
        return self._checkpointer.image_path(self._model, frozen=True)

    async def delete_frozen_leftover(self) -> None:
        """Delete an image with requests in flight that a killed llmux left: their clients are gone."""
        if self._frozen_path.exists():
            await self._delete(self._frozen_path)

    async def delete_all(self) -> None:
        """Delete the model's images, except one that the engine is in or is put into meanwhile.

        What is in the object store stays there; only this llmux does not start from it any more.
        """
        self._may_start_from_image = False
        for frozen in (False, True):
            await self._delete(self._checkpointer.image_path(self._model, frozen=frozen))

    async def discard_current(self) -> None:
        """Give up the engine that is in an image, and delete the image unless it is kept or configured."""
        path, self._current = self._current, None
        if path is None or path == self._configured:
            return
        if not self._keep or path == self._frozen_path:
            await self._delete(path)

    async def _delete(self, path: Path) -> None:
        if self._transfers is not None and path not in (self._current, self._frozen_path):
            self._transfers.give_up(self._model)
        try:
            await self._checkpointer.delete(path, unless=lambda: path == self._current)
        except (OSError, LlmuxError) as error:
            log.warning("an image could not be deleted", model=self._model, image=str(path), reason=str(error))
