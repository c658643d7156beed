"""The images of one model: where its engine is while it is in none of our processes, and which image to believe."""

from collections.abc import Callable
from pathlib import Path

import structlog

from llmux.checkpoints.manifest import Manifest
from llmux.engines.imaging import ImageFacts, Imager
from llmux.engines.process import EngineProcess, LineReceiver
from llmux.errors import ImageUnusable, LlmuxError

log = structlog.get_logger("llmux.images")


class ModelImages:
    """Dumps one model's engine and restores it. ``keep``: an image outlives its restore and serves the next time."""

    def __init__(self, imager: Imager, model: str, *, keep: bool, given: Path | None = None) -> None:
        self._imager = imager
        self._model = model
        self._keep = keep
        self._holding = given
        """The image that the engine is in now."""
        self._doubted: Path | None = None
        """An image that could not be restored: the next one takes its place."""

    @property
    def hold_engine(self) -> bool:
        """Whether the engine is in an image at present."""
        return self._holding is not None

    def take_kept(self, identity: str) -> bool:
        """Let an image that was kept stand for the engine, which need then only be stopped; False if there is none."""
        try:
            path = self._imager.image_path(self._model)
            manifest = self._imager.read(path)
        except ImageUnusable:
            return False
        if not self._keep or path == self._doubted or manifest.has_frozen or manifest.identity != identity:
            return False
        self._holding = path
        return True

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
            manifest = self._imager.read(path)
            if manifest.identity != identity:
                raise ImageUnusable(path, "the engine would be started in another way now: it is out of date")
            process, manifest = await self._imager.restore(path, on_line=on_line, on_exit=on_exit)
        finally:
            if manifest is not None and manifest.has_frozen:
                await self._drop(path)
        if not self._keep and not manifest.has_frozen:
            await self._drop(path)
        self._doubted = None
        return process, manifest

    async def delete(self) -> None:
        """Delete the model's images; the engine must be in none of them."""
        for frozen in (False, True):
            await self._drop(self._imager.image_path(self._model, frozen=frozen))

    async def discard_held(self) -> None:
        """The engine in the image will not be woken any more; a kept image stays for later."""
        path, self._holding = self._holding, None
        if path is not None and path == self._imager.image_path(self._model, frozen=True):
            await self._drop(path)

    async def _drop(self, path: Path) -> None:
        try:
            await self._imager.drop(path)
        except (OSError, LlmuxError) as error:
            log.warning("an image could not be deleted", model=self._model, image=str(path), reason=str(error))
