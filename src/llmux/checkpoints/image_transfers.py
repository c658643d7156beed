"""Transfers of images: a queue of uploads in the background, downloads on demand, and what they have cost."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import structlog

from llmux.checkpoints import transfer
from llmux.checkpoints.checkpointer import Checkpointer
from llmux.checkpoints.dumping import lack_of_disk
from llmux.checkpoints.manifest import Manifest
from llmux.checkpoints.object_store import ObjectStore
from llmux.checkpoints.stored_image import StoredManifest, images_prefix, new_generation, prefix_of
from llmux.checkpoints.transfer import ImageReplaced, Lanes, NothingStored
from llmux.errors import ImageUnusable, LlmuxError

log = structlog.get_logger("llmux.images")

MIB = 1 << 20
RETRY_SECONDS = (5.0, 30.0, 120.0)
"""The waits between the attempts at one upload; after the last one it is given up until the next dump."""
FIND_SECONDS = 15.0
"""How long a wake waits for the object store's answer before it does without."""
CLEANUP_SECONDS = 5.0
"""For removing the parts of an upload that was given up; what is left then is removed after an hour."""
REPORT_SECONDS = 5.0
REPORT_SHARE = 0.1
"""Progress is logged after so many seconds and so much of an image, whichever comes later."""
NOTE = "stored.json"
"""In an image's directory: where in the object store it is."""


class Direction(StrEnum):
    """Which way an image is copied."""

    UPLOAD = "upload"
    DOWNLOAD = "download"


class DownloadFailed(LlmuxError):
    """An image could not be fetched from the object store."""


@dataclass(slots=True)
class Transfer:
    """A transfer that is under way."""

    model: str
    direction: Direction
    began_at: float
    """On the event loop's clock."""
    total_bytes: int = 0
    done_bytes: int = 0

    def describe(self) -> dict[str, object]:
        """For people."""
        percent = 100 * self.done_bytes // max(1, self.total_bytes)
        return {"direction": str(self.direction), "mib": round(self.total_bytes / MIB), "percent": percent}


@dataclass(slots=True)
class TransferStatistics:
    """What the transfers of one model in one direction have cost since llmux was started."""

    finished: int = 0
    failures: int = 0
    bytes: int = 0
    """Of the images, before compression."""
    seconds: float = 0.0


@dataclass(slots=True)
class ModelTransfers:
    """One model's transfers: what an operator is shown."""

    uploads: TransferStatistics = field(default_factory=TransferStatistics)
    downloads: TransferStatistics = field(default_factory=TransferStatistics)
    current: Transfer | None = None
    is_queued: bool = False
    """An upload waits for its turn, or to be tried again."""
    last_failure: str | None = None
    """Why the last transfer failed; None if it did not."""

    @property
    def is_busy(self) -> bool:
        """Whether one is under way, or waits for its turn."""
        return self.current is not None or self.is_queued

    def statistics(self, direction: Direction) -> TransferStatistics:
        """Those of a direction."""
        return self.uploads if direction is Direction.UPLOAD else self.downloads


class ImageTransfers:
    """Copies images to an object store and fetches them from there."""

    def __init__(
        self,
        store: ObjectStore,
        url: str,
        checkpointer: Checkpointer,
        *,
        compresses: bool = False,
        download_seconds: float = 600.0,
        on_stored: Callable[[], None] = lambda: None,
    ) -> None:
        """``download_seconds`` is how long a download may take; then the engine is started instead.

        ``on_stored`` is called when an image has been uploaded, so that it may be deleted here.
        """
        self._on_stored = on_stored
        self._store = store
        self._url = url.rstrip("/")
        self._checkpointer = checkpointer
        self._compresses = compresses
        self._download_seconds = download_seconds
        self._lanes = Lanes()
        self._models: dict[str, ModelTransfers] = {}
        self._pending: dict[str, Path] = {}
        self._changed = asyncio.Event()
        self._uploading: tuple[str, asyncio.Task[None]] | None = None

    def of_model(self, model: str) -> ModelTransfers:
        """The model's transfers; the object is always the same one."""
        return self._models.setdefault(model, ModelTransfers())

    @property
    def models(self) -> Mapping[str, ModelTransfers]:
        """The transfers of all models that had any."""
        return self._models

    def address(self, model: str) -> str:
        """The URL below which the model's images are."""
        return f"{self._url}/{images_prefix(model)}/"

    def submit(self, model: str, image: Path) -> None:
        """Upload the image in the background. An older one of the model whose upload has not ended is given up."""
        self.give_up(model)
        self._pending[model] = image
        self.of_model(model).is_queued = True
        self._changed.set()

    def submit_unless_stored(self, model: str, image: Path) -> None:
        """Upload the image if this has not been done, and is not about to be."""
        is_busy = model in self._pending or (self._uploading is not None and self._uploading[0] == model)
        if not is_busy and stored_generation(image) is None:
            self.submit(model, image)

    def give_up(self, model: str) -> None:
        """Give up an upload of the model's image, which was replaced or is about to be deleted."""
        if self._pending.pop(model, None) is not None:
            self.of_model(model).is_queued = False
        if self._uploading is not None and self._uploading[0] == model:
            self._uploading[1].cancel()

    async def run(self) -> None:
        """Work off the queue of uploads, one at a time, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._changed.wait()
                self._changed.clear()
                while self._pending:
                    model = next(iter(self._pending))
                    image = self._pending.pop(model)
                    task = tasks.create_task(self._upload_with_retries(model, image))
                    self._uploading = model, task
                    # Not the task itself: it is cancelled alone when its image is given up.
                    await asyncio.wait((task,))
                    self._uploading = None

    def close(self) -> None:
        """Give up the threads. No transfer may be under way."""
        self._lanes.close()

    async def _upload_with_retries(self, model: str, image: Path) -> None:
        found = self.of_model(model)
        try:
            for wait_seconds in (*RETRY_SECONDS, None):
                try:
                    await self.upload(model, image)
                except (ImageReplaced, ImageUnusable) as reason:
                    log.info("upload given up", model=model, reason=str(reason))
                    return
                except (LlmuxError, OSError) as failure:
                    again = "not until the next dump" if wait_seconds is None else f"in {wait_seconds:g} s"
                    log.warning("upload failed", model=model, reason=str(failure), again=again)
                    if wait_seconds is not None:
                        found.is_queued = True
                        await asyncio.sleep(wait_seconds)
                else:
                    return
        finally:
            found.is_queued = model in self._pending

    async def upload(self, model: str, image: Path, on_progress: Callable[[str], None] | None = None) -> StoredManifest:
        """Copy an image to the store now, and remove the generations before its predecessor.

        Raises ImageReplaced, StoreFailed, ImageUnusable, OSError. ``on_progress`` is told how far it is.
        """
        progress = self._begin(model, Direction.UPLOAD, on_progress)
        origin, generation = None, new_generation()
        try:
            manifest = await asyncio.to_thread(self._checkpointer.read, image)
            origin = await self._checkpointer.origin(manifest.fingerprint)
            stored = await transfer.upload(
                self._store,
                image,
                origin,
                generation,
                self._lanes,
                progress.begin,
                progress.add,
                compresses=self._compresses,
            )
        except BaseException as failure:
            progress.fail(failure)
            if origin is not None:
                await self._remove_parts(f"{prefix_of(model, origin)}/{generation}")
            raise
        await self._lanes.in_thread(_write_note, image, self.address(model), stored)
        progress.finish(stored_mib=round(stored.stored_bytes / MIB))
        self._on_stored()
        try:
            await transfer.remove_older(self._store, stored)
        except LlmuxError as failure:
            log.warning("older images could not be removed from the store", model=model, reason=str(failure))
        return stored

    async def is_stored(self, model: str, image: Path) -> bool:
        """Whether the image is in the store, by its word and not only by the note in the image."""
        generation = await asyncio.to_thread(stored_generation, image)
        if generation is None:
            return False
        try:
            manifest = await asyncio.to_thread(self._checkpointer.read, image)
            origin = await self._checkpointer.origin(manifest.fingerprint)
            async with asyncio.timeout(FIND_SECONDS):
                return (await transfer.find(self._store, model, origin)).generation >= generation
        except (LlmuxError, OSError, TimeoutError):
            return False

    async def _remove_parts(self, prefix: str) -> None:
        with suppress(LlmuxError, TimeoutError):
            async with asyncio.timeout(CLEANUP_SECONDS):
                await transfer.remove_generation(self._store, prefix)

    async def fetch(
        self, model: str, path: Path, fingerprint: str, on_progress: Callable[[str], None] | None = None
    ) -> Manifest:
        """Bring the newest stored image for this fingerprint to its path; raises DownloadFailed.

        Then, and when cancelled, what is at the path stays as it was.
        """
        progress = self._begin(model, Direction.DOWNLOAD, on_progress)
        try:
            async with asyncio.timeout(self._download_seconds):
                return await self._fetch(model, path, fingerprint, progress)
        except BaseException as failure:
            progress.fail(failure)
            if isinstance(failure, TimeoutError):
                raise DownloadFailed(f"the download took longer than {self._download_seconds:g} s") from None
            if isinstance(failure, LlmuxError | OSError):
                raise DownloadFailed(str(failure)) from failure
            raise

    async def _fetch(self, model: str, path: Path, fingerprint: str, progress: "_Progress") -> Manifest:
        origin = await self._checkpointer.origin(fingerprint)
        try:
            async with asyncio.timeout(FIND_SECONDS):
                stored = await transfer.find(self._store, model, origin)
        except TimeoutError:
            raise DownloadFailed(f"the object store did not answer within {FIND_SECONDS:g} s") from None
        async with self._checkpointer.downloading(path) as new:
            if reason := await asyncio.to_thread(lack_of_disk, new, stored.content_bytes):
                raise DownloadFailed(reason)
            progress.begin(stored.content_bytes)
            manifest = await transfer.download(self._store, stored, new, self._lanes, progress.add)
            await asyncio.to_thread(_write_note, new, self.address(model), stored)
            await self._checkpointer.put_in_place(new, path)
        progress.finish(stored_mib=round(stored.stored_bytes / MIB))
        return manifest

    def _begin(self, model: str, direction: Direction, on_progress: Callable[[str], None] | None) -> "_Progress":
        return _Progress(self.of_model(model), Transfer(model, direction, _now()), on_progress)


class _Progress:
    """Tells how far a transfer is: in the log, to the caller, and in the model's record."""

    def __init__(
        self, model: ModelTransfers, current: Transfer, on_progress: Callable[[str], None] | None = None
    ) -> None:
        self._model = model
        self._current = current
        self._on_progress = on_progress
        self._next_bytes = 0.0
        self._next_at = current.began_at + REPORT_SECONDS
        model.current = current

    def begin(self, total_bytes: int) -> None:
        """The size is known, and copying begins."""
        self._current.total_bytes = total_bytes
        self._next_bytes = total_bytes * REPORT_SHARE
        self._tell("begins")

    def add(self, number: int) -> None:
        """So many bytes more were copied."""
        current = self._current
        current.done_bytes += number
        if current.done_bytes >= self._next_bytes and _now() >= self._next_at and current.total_bytes:
            self._next_bytes = current.done_bytes + current.total_bytes * REPORT_SHARE
            self._next_at = _now() + REPORT_SECONDS
            self._tell("goes on")

    def finish(self, *, stored_mib: int) -> None:
        """The transfer has succeeded."""
        current, seconds = self._current, _now() - self._current.began_at
        statistics = self._model.statistics(current.direction)
        statistics.finished += 1
        statistics.bytes += current.total_bytes
        statistics.seconds += seconds
        self._model.current = self._model.last_failure = None
        self._tell("is complete", seconds=round(seconds, 2), stored_mib=stored_mib)

    def fail(self, failure: BaseException) -> None:
        """The transfer has failed, or was given up."""
        current, statistics = self._current, self._model.statistics(self._current.direction)
        self._model.current = None
        statistics.seconds += _now() - current.began_at
        if isinstance(failure, LlmuxError | OSError) and not isinstance(failure, ImageReplaced | NothingStored):
            statistics.failures += 1
            self._model.last_failure = str(failure) or type(failure).__name__

    def _tell(self, what: str, **more: float) -> None:
        current = self._current
        percent = 100 * current.done_bytes // max(1, current.total_bytes)
        mib = round(current.total_bytes / MIB)
        log.info(f"{current.direction} {what}", model=current.model, mib=mib, percent=percent, **more)
        if self._on_progress is not None:
            self._on_progress(f"{current.direction} of {mib} MiB: {percent} %")


def _now() -> float:
    return asyncio.get_running_loop().time()


def stored_generation(image: Path) -> str | None:
    """The generation in which the image is in the object store; None if it is not, as far as is known here."""
    try:
        return str(json.loads((image / NOTE).read_text())["generation"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write_note(image: Path, address: str, stored: StoredManifest) -> None:
    note = {"address": address, "key": stored.origin.key, "generation": stored.generation, "noted_at": time.time()}
    # The image may have been deleted: then there is nothing to note.
    with suppress(OSError):
        draft = image / f"{NOTE}.draft"
        draft.write_text(json.dumps(note))
        os.replace(draft, image / NOTE)  # noqa: PTH105
