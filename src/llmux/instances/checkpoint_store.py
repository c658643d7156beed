"""The images of one model: which one the engine is in while it has no process, and which ones may be used again."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import structlog

from llmux.checkpoints.checkpointer import Checkpointer
from llmux.checkpoints.dumping import ImageFacts
from llmux.checkpoints.manifest import GpuIdentity, Manifest, check_gpus
from llmux.core.eviction import Eviction
from llmux.errors import CriuUnusable, ImageUnusable, LlmuxError, RestoreFailed
from llmux.instances.canary import is_same
from llmux.instances.process import EngineProcess, LineReceiver

log = structlog.get_logger("llmux.images")


class CheckpointStore:
    """Dumps one model's engine and restores it.

    ``keep``: images outlive their restore, so that a later eviction need only stop the engine. ``configured``: an image
    from the configuration that the engine starts from; it is never deleted.
    """

    def __init__(self, checkpointer: Checkpointer, model: str, *, keep: bool, configured: Path | None = None) -> None:
        self._checkpointer = checkpointer
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

    def distrust(self) -> None:
        """Do not use the kept image again: the engine restored from it answers differently than before."""
        self._distrusted = self._checkpointer.image_path(self._model)

    async def dump(self, process: EngineProcess, facts: ImageFacts) -> Manifest:
        """Put the engine into an image; raises DumpFailed, CriuUnusable. Then it usually runs on."""
        manifest = await self._checkpointer.dump(process, facts)
        self._current = self._checkpointer.image_path(self._model, frozen=facts.has_frozen)
        if self._current == self._distrusted:
            self._distrusted = None
        log.info("dumped", model=self._model, mib=round(manifest.size_bytes / 2**20), image=str(self._current))
        return manifest

    async def restore(
        self,
        fingerprint: str,
        *,
        on_line: LineReceiver,
        on_exit: Callable[[int], None],
        redact: Callable[[str], str] = str,
        gpus: Sequence[GpuIdentity] = (),
    ) -> tuple[EngineProcess, Manifest]:
        """Restore the engine; raises RestoreFailed, ImageUnusable, CriuUnusable. Then only a cold start is left.

        An image with frozen requests is used up by the attempt, successful or not.
        """
        path = self._current
        assert path is not None
        # Until the restore has succeeded.
        self._current = None
        self._distrusted = path
        manifest: Manifest | None = None
        try:
            manifest = await asyncio.to_thread(self._checkpointer.read, path)
            if manifest.fingerprint != fingerprint:
                raise ImageUnusable(path, "the engine would be started in another way now: it is out of date")
            check_gpus(path, manifest, gpus)
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

    async def delete_frozen_leftover(self) -> None:
        """Delete an image with requests in flight that a killed llmux left: their clients are gone."""
        path = self._checkpointer.image_path(self._model, frozen=True)
        if path.exists():
            await self._delete(path)

    async def delete_all(self) -> None:
        """Delete the model's images, except one that the engine is in or is put into meanwhile."""
        for frozen in (False, True):
            await self._delete(self._checkpointer.image_path(self._model, frozen=frozen))

    async def discard_current(self) -> None:
        """Give up the engine that is in an image, and delete the image unless it is kept or configured."""
        path, self._current = self._current, None
        if path is None or path == self._configured:
            return
        if not self._keep or path == self._checkpointer.image_path(self._model, frozen=True):
            await self._delete(path)

    async def _delete(self, path: Path) -> None:
        try:
            await self._checkpointer.delete(path, unless=lambda: path == self._current)
        except (OSError, LlmuxError) as error:
            log.warning("an image could not be deleted", model=self._model, image=str(path), reason=str(error))
