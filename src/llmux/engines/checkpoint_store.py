"""The images of one model: where its engine is while it is in none of our processes, and which image to believe."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from llmux.checkpoints.manifest import Manifest
from llmux.core.eviction import Eviction
from llmux.engines.canary import is_same
from llmux.engines.checkpointer import Checkpointer, ImageFacts
from llmux.engines.process import EngineProcess, LineReceiver
from llmux.errors import ImageUnusable, LlmuxError

log = structlog.get_logger("llmux.images")


class CheckpointStore:
    """Dumps one model's engine and restores it. ``keep``: an image outlives its restore and serves the next time."""

    def __init__(self, imager: Checkpointer, model: str, *, keep: bool, given: Path | None = None) -> None:
        self._imager = imager
        self._model = model
        self._keep = keep
        self._given = given
        self._holding = given
        """The image that the engine is in now."""
        self._spent: Path | None = None
        """The image that it came from last and that is not to be used again."""
        self._doubted: Path | None = None
        """An image that could not be restored: the next one takes its place."""

    @property
    def hold_engine(self) -> bool:
        """Whether the engine is in an image at present."""
        return self._holding is not None

    async def find_kept(self, identity: str, eviction: Eviction, canary: str | None) -> Path | None:
        """An image that was kept and can stand for the engine, which is then stopped and ``put_into`` it."""
        if not self._keep:
            return None
        try:
            path = self._imager.image_path(self._model)
            manifest = await asyncio.to_thread(self._imager.read, path)
        except ImageUnusable:
            return None
        is_the_same = manifest.identity == identity and manifest.eviction == str(eviction)
        if canary is not None and manifest.canary is not None:
            is_the_same = is_the_same and is_same(canary, manifest.canary)
        return path if is_the_same and path != self._doubted and not manifest.has_frozen else None

    def put_into(self, path: Path) -> None:
        """The engine has been stopped: it is in this image now."""
        self._holding = path

    def doubt(self) -> None:
        """What came from the image was not what went into it: it is not used again."""
        self._doubted = self._imager.image_path(self._model)

    async def dump(self, process: EngineProcess, facts: ImageFacts) -> Manifest:
        """Put the engine into an image; raises DumpFailed, CriuUnusable, after which it usually runs on."""
        manifest = await self._imager.dump(process, facts)
        self._holding = self._imager.image_path(self._model, frozen=facts.has_frozen)
        if self._holding == self._doubted:
            self._doubted = None
        log.info("dumped", model=self._model, mib=round(manifest.size_bytes / 2**20), image=str(self._holding))
        return manifest

    async def restore(
        self, identity: str, *, on_line: LineReceiver, on_exit: Callable[[int], None]
    ) -> tuple[EngineProcess, Manifest]:
        """Bring the engine back; raises RestoreFailed, ImageUnusable, CriuUnusable, and then only a cold start is left.

        An image with frozen requests in it is good for one restore, whatever comes of it.
        """
        path = self._holding
        assert path is not None
        self._holding = None
        self._doubted = path
        manifest: Manifest | None = None
        try:
            manifest = await asyncio.to_thread(self._imager.read, path)
            if manifest.identity != identity:
                raise ImageUnusable(path, "the engine would be started in another way now: it is out of date")
            process, manifest = await self._imager.restore(path, on_line=on_line, on_exit=on_exit)
        except BaseException:
            if manifest is not None and manifest.has_frozen:
                await self._drop(path)
            raise
        if manifest.has_frozen or not self._keep:
            self._spent = path
        self._doubted = None
        return process, manifest

    async def drop_spent(self) -> None:
        """Delete the image that the engine came from, if it is not to be used again."""
        path, self._spent = self._spent, None
        if path is not None:
            await self._drop(path)

    async def drop_leftover(self) -> None:
        """Delete what an llmux that was killed has left: requests that were frozen in an image have no clients now."""
        path = self._imager.image_path(self._model, frozen=True)
        if path.exists():
            await self._drop(path)

    async def delete(self) -> None:
        """Delete the model's images; the engine must be in none of them."""
        for frozen in (False, True):
            await self._drop(self._imager.image_path(self._model, frozen=frozen))

    async def discard_held(self) -> None:
        """The engine in the image will not be woken any more; a kept image stays for later."""
        path, self._holding = self._holding, None
        if path is None or path == self._given:
            return
        if not self._keep or path == self._imager.image_path(self._model, frozen=True):
            await self._drop(path)

    async def _drop(self, path: Path) -> None:
        try:
            await self._imager.drop(path)
        except (OSError, LlmuxError) as error:
            log.warning("an image could not be deleted", model=self._model, image=str(path), reason=str(error))
