"""Copies images to the object store and back: in parallel parts, with bounded memory, each part verified."""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeAlias, TypeVar

from llmux.cancellation import wait_uncancelled
from llmux.checkpoints import compression
from llmux.checkpoints.manifest import NAME as LOCAL_MANIFEST
from llmux.checkpoints.manifest import Manifest, boot_id, read_manifest, write_manifest
from llmux.checkpoints.object_store import ObjectMissing, ObjectStore
from llmux.checkpoints.stored_image import (
    MANIFEST,
    MANIFEST_LIMIT_BYTES,
    Entry,
    EntryKind,
    Origin,
    Part,
    StoredImageBroken,
    StoredManifest,
    decode,
    encode,
    list_entries,
    plan_parts,
    prefix_of,
)
from llmux.errors import ImageUnusable, LlmuxError

PARTS_AT_ONCE = 8
"""Of all transfers together: 128 MiB of memory, and at most half as much again for what is being compressed."""
UNFINISHED_GRACE = timedelta(hours=1)
"""A generation without a manifest, to which nothing was added for so long, was left by an llmux that was killed."""
GENERATIONS_LOOKED_AT = 100
"""Of the newest, any number may be uploads that are under way or were killed within the last hour; to look at one takes
some milliseconds."""

OnBytes: TypeAlias = Callable[[int], None]
"""Called with the number of bytes of content that were transferred in addition."""
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class NothingStored(LlmuxError):
    """The object store has no image for this model, configuration and machine."""


class ImageReplaced(LlmuxError):
    """The local image was replaced or deleted while it was being uploaded."""

    def __init__(self) -> None:
        super().__init__("the image was replaced or deleted meanwhile")


class Lanes:
    """What all transfers share: the number of parts in memory, and the threads that read, digest and write them.

    Uploads make way for downloads, for which a client waits.
    """

    def __init__(self) -> None:
        self.slots = asyncio.Semaphore(PARTS_AT_ONCE)
        """One is taken for as long as a part is in memory."""
        # Of their own, so that transfers take no thread from requests. A digest takes all of a core: few of them.
        self._threads = ThreadPoolExecutor(max(2, min(4, (os.cpu_count() or 1) // 2)), "llmux-images")
        self._no_download = asyncio.Event()
        self._no_download.set()
        self._downloads = 0

    async def in_thread(
        self, function: Callable[Parameters, Result], *arguments: Parameters.args, **options: Parameters.kwargs
    ) -> Result:
        """Run the function in a thread to its end; a cancellation meanwhile is raised only then.

        Otherwise it could write into a directory that has been given up, and made anew by another transfer.
        """
        work = asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *arguments, **options))
        await wait_uncancelled(work)
        return work.result()

    @contextmanager
    def downloading(self) -> Iterator[None]:
        """Hold back uploads for so long."""
        self._downloads += 1
        self._no_download.clear()
        try:
            yield
        finally:
            self._downloads -= 1
            if not self._downloads:
                self._no_download.set()

    async def wait_for_downloads(self) -> None:
        """Return when no download is under way."""
        await self._no_download.wait()

    def close(self) -> None:
        """Give up the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def upload(
    store: ObjectStore,
    image: Path,
    origin: Origin,
    generation: str,
    lanes: Lanes,
    on_start: Callable[[int], None],
    on_bytes: OnBytes,
    *,
    compresses: bool = False,
) -> StoredManifest:
    """Copy the image into a new generation, and publish it when all of it is there.

    ``on_start`` is called with the size of the content. Raises StoreFailed, ImageReplaced, ImageUnusable, OSError;
    then, and when cancelled, parts may be left that nobody finds: see ``remove_generation``.
    """
    # The directory is held open: what is read through it is this image, or nothing if it is deleted.
    try:
        descriptor = await lanes.in_thread(os.open, image, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ImageReplaced from None
    try:
        held = Path(f"/proc/self/fd/{descriptor}")
        manifest, text, entries, planned = await lanes.in_thread(_inspect, held)
        prefix = f"{prefix_of(manifest.model, origin)}/{generation}"
        on_start(sum(part.content_bytes for part in planned))
        parts: dict[str, Part] = {}

        async def put(part: Part) -> None:
            await lanes.wait_for_downloads()
            async with lanes.slots:
                content, parts[part.name] = await lanes.in_thread(_read_part, held, part, compresses=compresses)
                await store.put(f"{prefix}/{part.name}", content)
            on_bytes(part.content_bytes)

        await _for_each(planned, put)
        stored = StoredManifest(
            model=manifest.model,
            origin=origin,
            generation=generation,
            image=text,
            entries=entries,
            parts=tuple(parts[part.name] for part in planned),
        )
        if not await lanes.in_thread((held / LOCAL_MANIFEST).is_file):
            raise ImageReplaced
        await store.put(f"{prefix}/{MANIFEST}", encode(stored))
    except FileNotFoundError:
        raise ImageReplaced from None
    except ImageUnusable as error:
        raise ImageUnusable(image, error.reason) from None
    finally:
        os.close(descriptor)
    return stored


def _inspect(image: Path) -> tuple[Manifest, str, tuple[Entry, ...], tuple[Part, ...]]:
    manifest = read_manifest(image)
    entries = list_entries(image)
    return manifest, (image / LOCAL_MANIFEST).read_text(), entries, plan_parts(image, entries)


def _read_part(image: Path, part: Part, *, compresses: bool) -> tuple[bytes | memoryview, Part]:
    """The part as it is to be stored, with its size and digest; raises OSError, ImageReplaced."""
    content = memoryview(bytearray(part.content_bytes))
    at = 0
    for piece in part.pieces:
        with (image / piece.path).open("rb", buffering=0) as file:
            end = at + piece.length
            file.seek(piece.offset)
            while at < end:
                number = file.readinto(content[at:end])
                if not number:
                    raise ImageReplaced
                at += number
    stored: bytes | memoryview = content
    if compresses and (smaller := compression.compress(content)) is not None:
        stored = smaller
    is_compressed = stored is not content
    digest = hashlib.sha256(stored).hexdigest()
    return stored, replace(part, stored_bytes=len(stored), sha256=digest, is_compressed=is_compressed)


async def find(store: ObjectStore, model: str, origin: Origin) -> StoredManifest:
    """The newest complete generation; raises NothingStored, StoreFailed, StoredImageBroken."""
    prefix = prefix_of(model, origin)
    generations = await store.list_folders(prefix)
    for generation in reversed(generations[-GENERATIONS_LOOKED_AT:]):
        try:
            content = await store.get(f"{prefix}/{generation}/{MANIFEST}", MANIFEST_LIMIT_BYTES)
        except ObjectMissing:
            continue
        return decode(content, model, origin, generation)
    raise NothingStored("the object store has no image for this configuration, kernel, criu and processor")


async def download(
    store: ObjectStore, stored: StoredManifest, directory: Path, lanes: Lanes, on_bytes: OnBytes
) -> Manifest:
    """Write the image into the directory, which must be empty, and its manifest last.

    Every part is verified before it is written. Raises StoreFailed, StoredImageBroken, ImageUnusable, OSError; then,
    and when cancelled, the directory has no manifest.
    """
    prefix = f"{prefix_of(stored.model, stored.origin)}/{stored.generation}"

    async def get(part: Part) -> None:
        async with lanes.slots:
            content = await store.get(f"{prefix}/{part.name}", part.stored_bytes)
            await lanes.in_thread(_write_part, directory, part, content)
        on_bytes(part.content_bytes)

    with lanes.downloading():
        await lanes.in_thread(_make_files, directory, stored.entries)
        await _for_each(stored.parts, get)
        return await lanes.in_thread(_complete, directory, stored)


def _make_files(directory: Path, entries: Sequence[Entry]) -> None:
    for entry in entries:
        path = directory / entry.path
        if entry.kind is EntryKind.DIRECTORY:
            path.mkdir(mode=0o700)
        elif entry.kind is EntryKind.FILE:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, entry.size_bytes)
            finally:
                os.close(descriptor)


def _write_part(directory: Path, part: Part, stored: memoryview) -> None:
    if len(stored) != part.stored_bytes or hashlib.sha256(stored).hexdigest() != part.sha256:
        raise StoredImageBroken(f"{part.name} is damaged: its digest is not the one in the manifest")
    content = stored
    if part.is_compressed:
        try:
            content = compression.decompress(stored, part.content_bytes)
        except ValueError as error:
            raise StoredImageBroken(f"{part.name}: {error}") from error
    if len(content) != part.content_bytes:
        raise StoredImageBroken(f"{part.name} has {len(content)} bytes of content instead of {part.content_bytes}")
    at = 0
    for piece in part.pieces:
        with (directory / piece.path).open("r+b", buffering=0) as file:
            file.seek(piece.offset)
            end = at + piece.length
            while at < end:
                at += file.write(content[at:end])


def _complete(directory: Path, stored: StoredManifest) -> Manifest:
    # Links only now, so that nothing is written through one. Directories from the innermost, so that their times stay.
    for entry in stored.entries:
        if entry.kind is EntryKind.PIPE:
            os.mkfifo(directory / entry.path)
        elif entry.kind is EntryKind.LINK:
            (directory / entry.path).symlink_to(entry.target)
    for entry in reversed(stored.entries):
        if entry.kind is not EntryKind.LINK:
            (directory / entry.path).chmod(entry.mode)
            os.utime(directory / entry.path, ns=(entry.modified_ns, entry.modified_ns))
    (directory / LOCAL_MANIFEST).write_text(stored.image)
    try:
        manifest = read_manifest(directory)
    finally:
        (directory / LOCAL_MANIFEST).unlink()
    if (manifest.model, manifest.fingerprint) != (stored.model, stored.origin.fingerprint) or manifest.has_frozen:
        raise StoredImageBroken("its manifest belongs to another image")
    manifest = as_written_now(manifest)
    write_manifest(directory, manifest)
    return manifest


def as_written_now(manifest: Manifest) -> Manifest:
    """The manifest of an image whose files were written since this machine's last boot, and perhaps not synced."""
    here = boot_id()
    if manifest.boot_id == here:
        return replace(manifest, is_durable=False)
    # The firewall's tables are those of another machine, or went with the boot.
    return replace(manifest, boot_id=here, is_durable=False, firewall_tables=())


async def remove_generation(store: ObjectStore, prefix: str) -> None:
    """Remove a generation, its manifest first, so that what is left of it is not found; raises StoreFailed."""
    await store.delete([f"{prefix}/{MANIFEST}"])
    if keys := [found.key async for found in store.list_objects(prefix)]:
        await store.delete(keys)


async def remove_older(store: ObjectStore, stored: StoredManifest) -> None:
    """Remove generations older than this one, except the newest complete one; raises StoreFailed.

    That one stays because another machine may be reading it. Incomplete ones stay for an hour after their last object:
    they may be uploads of other machines.
    """
    prefix = prefix_of(stored.model, stored.origin)
    published_at: datetime | None = None
    # By the store's clock, that of the objects compared with it.
    async for found in store.list_objects(f"{prefix}/{stored.generation}"):
        if found.key.endswith(f"/{MANIFEST}"):
            published_at = found.modified_at
    if published_at is None:
        return
    has_previous = False
    older = [name for name in await store.list_folders(prefix) if name < stored.generation]
    for generation in reversed(older):
        objects = [found async for found in store.list_objects(f"{prefix}/{generation}")]
        is_complete = any(found.key.endswith(f"/{MANIFEST}") for found in objects)
        if is_complete and not has_previous:
            has_previous = True
        elif is_complete or all(found.modified_at < published_at - UNFINISHED_GRACE for found in objects):
            await remove_generation(store, f"{prefix}/{generation}")


async def _for_each(parts: Sequence[Part], work: Callable[[Part], Awaitable[None]]) -> None:
    """Do the work for all parts, several at a time; the first failure ends it and is raised."""
    rest = iter(parts)

    async def next_ones() -> None:
        for part in rest:
            await work(part)

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(PARTS_AT_ONCE, len(parts))):
                tasks.create_task(next_ones())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
