"""Images up into a store in memory and down again, and everything that can be wrong with what is stored."""

import asyncio
import json
import shutil
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from llmux.checkpoints import transfer
from llmux.checkpoints.manifest import Manifest, boot_id, read_manifest
from llmux.checkpoints.object_store import ObjectStore, StoreFailed
from llmux.checkpoints.stored_image import StoredImageBroken, prefix_of
from llmux.checkpoints.transfer import ImageReplaced, Lanes, NothingStored, download, find
from llmux.errors import ImageUnusable
from tests.support.stored_images import ORIGIN, keys_in, make_image, make_rich_image, stored

PREFIX = prefix_of("m", ORIGIN)


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(MemoryStore())


@pytest.fixture
async def lanes() -> AsyncIterator[Lanes]:
    lanes = Lanes()
    yield lanes
    lanes.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    make_image(tmp_path / "image", {"pages-1.img": b"x" * 100_000, "core-1.img": b"core"})
    return tmp_path / "image"


async def fetched(store: ObjectStore, directory: Path, lanes: Lanes) -> Manifest:
    directory.mkdir()
    return await download(store, await find(store, "m", ORIGIN), directory, lanes, lambda number: None)


def contents(image: Path) -> dict[bytes, tuple[Any, ...]]:
    """Everything about everything in it, but for its manifest and criu's logs."""
    found = {}
    for path in image.rglob("*"):
        status, name = path.lstat(), bytes(path.relative_to(image))
        if path.name in ("manifest.json", "dump.log"):
            continue
        is_file = stat.S_ISREG(status.st_mode)
        content = path.read_bytes() if is_file else path.readlink() if path.is_symlink() else None
        time = None if path.is_symlink() or name in (b"tmp", b"shm") else status.st_mtime_ns
        found[name] = (status.st_mode, time, content)
    return found


@pytest.mark.parametrize("compresses", [False, True])
async def test_an_image_comes_back_as_it_was(
    store: ObjectStore, tmp_path: Path, lanes: Lanes, *, compresses: bool
) -> None:
    manifest = make_rich_image(tmp_path / "image")
    uploaded = await stored(store, tmp_path / "image", "g1", compresses=compresses)
    assert uploaded.content_bytes < 36 << 20, "holes are not stored"
    assert len(uploaded.parts) == 3, "small files share a part"
    found = await fetched(store, tmp_path / "back", lanes)
    assert contents(tmp_path / "back") == contents(tmp_path / "image")
    assert (tmp_path / "back" / "shm" / "psm_1").stat().st_blocks * 512 < 1 << 20
    assert read_manifest(tmp_path / "back") == found
    assert found == transfer.as_written_now(manifest)
    assert uploaded.stored_bytes <= uploaded.content_bytes


async def test_what_is_compressed_is_smaller_in_the_store(store: ObjectStore, image: Path) -> None:
    assert (await stored(store, image, "g1", compresses=True)).stored_bytes < 1000


def test_an_image_of_another_machine_counts_as_written_here_and_now(image: Path) -> None:
    manifest = read_manifest(image)
    foreign = transfer.as_written_now(Manifest(**{**_fields(manifest), "boot_id": "another"}))
    assert (foreign.boot_id, foreign.is_durable, foreign.firewall_tables) == (boot_id(), False, ())
    own = transfer.as_written_now(manifest)
    assert (own.is_durable, own.firewall_tables) == (False, manifest.firewall_tables)


def _fields(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}


async def test_the_newest_complete_generation_is_found(store: ObjectStore, image: Path) -> None:
    with pytest.raises(NothingStored):
        await find(store, "m", ORIGIN)
    for generation in ("g1", "g2"):
        await stored(store, image, generation)
    await store.put(f"{PREFIX}/g3/part-00000", b"an upload that is under way")
    assert (await find(store, "m", ORIGIN)).generation == "g2"


async def test_many_killed_uploads_do_not_hide_a_complete_image(store: ObjectStore, image: Path) -> None:
    await stored(store, image, "g0")
    for number in range(1, 40):
        await store.put(f"{PREFIX}/g{number:02}/part-00000", b"of a killed upload")
    assert (await find(store, "m", ORIGIN)).generation == "g0"


async def test_images_of_another_origin_are_not_seen(store: ObjectStore, image: Path) -> None:
    await stored(store, image, "g1")
    for name in ("fingerprint", "kernel", "criu_version", "cpu", "gpus"):
        other = type(ORIGIN)(**{**_origin(), name: "other"})
        with pytest.raises(NothingStored):
            await find(store, "m", other)


def _origin() -> dict[str, str]:
    return {name: getattr(ORIGIN, name) for name in type(ORIGIN).__dataclass_fields__}


async def test_only_the_generation_and_its_predecessor_stay(store: ObjectStore, image: Path) -> None:
    for generation in ("g1", "g2", "g3"):
        await stored(store, image, generation)
    await store.put(f"{PREFIX}/g0/part-00000", b"of an upload elsewhere, a moment ago")
    newest = await stored(store, image, "g4")
    await store.put(f"{PREFIX}/g5/part-00000", b"of an upload elsewhere")
    await transfer.remove_older(store, newest)
    folders = await store.list_folders(PREFIX)
    assert folders == ["g0", "g3", "g4", "g5"]


async def test_what_a_killed_llmux_left_is_removed_after_an_hour(
    store: ObjectStore, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put(f"{PREFIX}/g0/part-00000", b"of a killed upload")
    newest = await stored(store, image, "g1")
    monkeypatch.setattr(transfer, "UNFINISHED_GRACE", -transfer.UNFINISHED_GRACE)
    await transfer.remove_older(store, newest)
    assert await store.list_folders(PREFIX) == ["g1"]


async def test_two_that_publish_at_once_leave_two_complete_generations(store: ObjectStore, image: Path) -> None:
    first, second = await asyncio.gather(stored(store, image, "g1"), stored(store, image, "g2"))
    await asyncio.gather(transfer.remove_older(store, first), transfer.remove_older(store, second))
    assert await store.list_folders(PREFIX) == ["g1", "g2"]
    assert (await find(store, "m", ORIGIN)).generation == "g2"


@pytest.mark.parametrize("at", [0, 50_000, 100_003])
async def test_a_flipped_byte_is_found(store: ObjectStore, image: Path, tmp_path: Path, lanes: Lanes, at: int) -> None:
    await stored(store, image, "g1")
    key = f"{PREFIX}/g1/part-00000"
    content = bytearray(await store.get(key, 1 << 20))
    content[at] ^= 1
    await store.put(key, bytes(content))
    with pytest.raises(StoredImageBroken, match="part-00000 is damaged"):
        await fetched(store, tmp_path / "back", lanes)
    with pytest.raises(ImageUnusable):
        read_manifest(tmp_path / "back")


@pytest.mark.parametrize("change", ["shorter", "longer", "gone"])
async def test_a_part_that_is_not_what_it_was(
    store: ObjectStore, image: Path, tmp_path: Path, lanes: Lanes, change: str
) -> None:
    await stored(store, image, "g1")
    key = f"{PREFIX}/g1/part-00000"
    content = bytes(await store.get(key, 1 << 20))
    if change == "gone":
        await store.delete([key])
    else:
        await store.put(key, content[:-1] if change == "shorter" else content + b"x")
    with pytest.raises((StoredImageBroken, StoreFailed)):
        await fetched(store, tmp_path / "back", lanes)


async def change_manifest(store: ObjectStore, **changes: Any) -> None:
    key = f"{PREFIX}/g1/manifest.json"
    document = json.loads(bytes(await store.get(key, 1 << 20)))
    for path, value in changes.items():
        document[path] = value(document[path]) if callable(value) else value
    await store.put(key, json.dumps(document).encode())


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/evil", "a/../../evil", "", "a//b", "nowhere/b", "link/evil", "core-1.img", "nul\0"]
)
async def test_nothing_is_written_outside_of_the_image(store: ObjectStore, image: Path, path: str) -> None:
    await stored(store, image, "g1")
    link = {"path": "link", "kind": "link", "mode": 0, "modified_ns": 0, "target": "/etc"}
    evil = {"path": path, "kind": "file", "mode": 0o600, "modified_ns": 0, "size_bytes": 1}
    await change_manifest(store, entries=lambda entries: [*entries, link, evil])
    with pytest.raises(StoredImageBroken, match="cannot be within an image"):
        await find(store, "m", ORIGIN)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"model": "other"},
        {"generation": "g2"},
        {"parts": [{"name": "p", "pieces": [{"path": "core-1.img", "offset": 1, "length": 4}]}]},
        {"parts": [{"name": "p", "pieces": [{"path": "unknown", "offset": 0, "length": 1}]}]},
        {"parts": [{"name": "../p", "pieces": []}]},
        {"parts": 5},
    ],
)
async def test_a_manifest_that_cannot_be_true(store: ObjectStore, image: Path, changes: dict[str, Any]) -> None:
    await stored(store, image, "g1")
    await change_manifest(store, **changes)
    with pytest.raises(StoredImageBroken):
        await find(store, "m", ORIGIN)


async def test_an_image_with_frozen_requests_is_not_taken_from_a_store(
    store: ObjectStore, tmp_path: Path, lanes: Lanes
) -> None:
    make_image(tmp_path / "image", {"pages-1.img": b"x"}, has_frozen=True)
    await stored(store, tmp_path / "image", "g1")
    with pytest.raises(StoredImageBroken):
        await fetched(store, tmp_path / "back", lanes)
    with pytest.raises(ImageUnusable):
        read_manifest(tmp_path / "back")


class Hooked(ObjectStore):
    """A store that does something once, when the first part has arrived."""

    def __init__(self, hook: Any) -> None:
        super().__init__(MemoryStore())
        self._hook = hook

    async def put(self, key: str, content: bytes | memoryview) -> None:
        await super().put(key, content)
        hook, self._hook = self._hook, None
        if hook is not None:
            hook()


async def test_an_image_that_is_deleted_meanwhile_is_not_published(image: Path) -> None:
    store = Hooked(lambda: shutil.rmtree(image))
    with pytest.raises(ImageReplaced):
        await stored(store, image, "g1")
    assert await keys_in(store) == [f"{PREFIX}/g1/part-00000"]


async def test_of_an_image_that_is_replaced_meanwhile_nothing_is_mixed(tmp_path: Path, image: Path) -> None:
    make_image(tmp_path / "new", {"pages-1.img": b"y" * 100_000, "core-1.img": b"core"})

    def replace() -> None:
        image.rename(tmp_path / "old")
        (tmp_path / "new").rename(image)
        shutil.rmtree(tmp_path / "old")

    store = Hooked(replace)
    with pytest.raises(ImageReplaced):
        await stored(store, image, "g1")
    with pytest.raises(NothingStored):
        await find(store, "m", ORIGIN)


async def test_uploads_make_way_for_downloads(store: ObjectStore, image: Path, lanes: Lanes) -> None:
    async with asyncio.TaskGroup() as tasks:
        with lanes.downloading():
            upload = tasks.create_task(
                transfer.upload(store, image, ORIGIN, "g1", lanes, lambda size: None, lambda size: None)
            )
            done, _ = await asyncio.wait((upload,), timeout=0.2)
            assert not done
            assert await keys_in(store) == []
    assert upload.result().generation == "g1"


async def test_no_more_parts_are_in_memory_than_allowed(
    tmp_path: Path, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(ObjectStore):
        now = most = 0

        async def put(self, key: str, content: bytes | memoryview) -> None:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.001)
            self.now -= 1
            await super().put(key, content)

    monkeypatch.setattr("llmux.checkpoints.stored_image.PART_BYTES", 1000)
    make_image(tmp_path / "image", {"pages-1.img": b"x" * 100_000})
    store = Counting(MemoryStore())
    two = (transfer.upload(store, tmp_path / "image", ORIGIN, name, lanes, id, id) for name in ("g1", "g2"))
    await asyncio.gather(*two)
    assert store.most == transfer.PARTS_AT_ONCE
