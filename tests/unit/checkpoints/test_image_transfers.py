"""The queue of uploads, and downloads on demand, over stores in memory that fail and hang as they are told."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from llmux.checkpoints import criu, image_transfers, images
from llmux.checkpoints.checkpointer import Checkpointer, CriuSettings
from llmux.checkpoints.image_transfers import DownloadFailed, ImageTransfers, stored_generation
from llmux.checkpoints.manifest import read_manifest
from llmux.checkpoints.object_store import ObjectStore, StoreFailed
from tests.support import fake_criu
from tests.support.processes import until
from tests.support.stored_images import FINGERPRINT, keys_in, make_image


@dataclass
class Machine:
    """One llmux's images, and its transfers to a store that others may share."""

    transfers: ImageTransfers
    directory: Path

    def path(self, model: str = "m") -> Path:
        return images.image_path(self.directory, model, frozen=False)

    def make(self, content: bytes = b"memory", model: str = "m") -> Path:
        """An image as after a dump."""
        path = self.path(model)
        if path.exists():
            images.remove_directory(path, self.directory)
        make_image(path, {"pages-1.img": content}, model=model)
        return path

    async def fetch(self, model: str = "m", fingerprint: str = FINGERPRINT) -> Any:
        return await self.transfers.fetch(model, self.path(model), fingerprint)


class Store(ObjectStore):
    """Fails as often as it is told, then hangs if it is told to."""

    def __init__(self, failures: int = 0, *, hangs: bool = False) -> None:
        super().__init__(MemoryStore())
        self.failures = failures
        self.hangs = hangs
        self.attempts = 0

    async def put(self, key: str, content: bytes | memoryview) -> None:
        self.attempts += 1
        if self.failures:
            self.failures -= 1
            raise StoreFailed("connection refused")
        if self.hangs:
            await asyncio.Event().wait()
        await super().put(key, content)


@pytest.fixture
def new_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Machine]]:
    monkeypatch.setattr(criu, "_check_privileges", lambda: None)
    monkeypatch.setattr(image_transfers, "RETRY_SECONDS", (0.01, 0.01))
    program = fake_criu.install(tmp_path)
    machines: list[Machine] = []

    def build(store: ObjectStore, name: str = "here", **options: Any) -> Machine:
        checkpointer = Checkpointer(CriuSettings(program, None, tmp_path / name))
        machines.append(Machine(ImageTransfers(store, "s3://bucket", checkpointer, **options), tmp_path / name))
        return machines[-1]

    yield build
    for machine in machines:
        machine.transfers.close()


@asynccontextmanager
async def running(machine: Machine) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(machine.transfers.run())
        yield
        task.cancel()


async def uploaded(machine: Machine, count: int = 1, model: str = "m") -> None:
    await until(lambda: machine.transfers.of_model(model).uploads.finished == count, f"{count} uploads")


async def test_an_image_goes_to_the_store_and_to_another_machine(new_machine: Any) -> None:
    store = Store()
    here, there = new_machine(store, "here"), new_machine(store, "there")
    async with running(here):
        path = here.make()
        here.transfers.submit("m", path)
        await uploaded(here)
    assert here.transfers.address("m") == "s3://bucket/m/images/"
    await until(lambda: stored_generation(path) is not None, "the note")
    manifest = await there.fetch()
    assert (there.path() / "pages-1.img").read_bytes() == b"memory"
    assert read_manifest(there.path()) == manifest
    assert stored_generation(there.path()) == stored_generation(path)
    assert [entry.name for entry in there.path().parent.iterdir()] == ["images"]
    statistics = there.transfers.of_model("m").downloads
    assert (statistics.finished, statistics.failures, statistics.bytes) == (1, 0, 6)


async def test_a_failed_upload_is_tried_again_and_leaves_nothing(new_machine: Any) -> None:
    machine = new_machine(store := Store(failures=2))
    async with running(machine):
        machine.transfers.submit("m", machine.make())
        await uploaded(machine)
    found = machine.transfers.of_model("m")
    assert (found.uploads.failures, found.last_failure, found.is_queued) == (2, None, False)
    assert len(await store.list_folders(_only(await store.list_folders("m/images")))) == 1


def _only(folders: list[str]) -> str:
    (folder,) = folders
    return f"m/images/{folder}"


async def test_an_upload_is_given_up_after_some_attempts(new_machine: Any) -> None:
    machine = new_machine(store := Store(failures=99))
    async with running(machine):
        machine.transfers.submit("m", machine.make())
        await until(lambda: machine.transfers.of_model("m").uploads.failures == 3, "three attempts")
        await until(lambda: not machine.transfers.of_model("m").is_queued, "the end")
    assert "connection refused" in str(machine.transfers.of_model("m").last_failure)
    assert await keys_in(store) == []


async def test_a_newer_image_takes_the_place_of_one_that_is_being_uploaded(new_machine: Any) -> None:
    machine = new_machine(store := Store(hangs=True))
    async with running(machine):
        machine.transfers.submit("m", machine.make(b"old"))
        await until(lambda: store.attempts == 1, "the first part")
        store.hangs = False
        machine.transfers.submit("m", machine.make(b"newer"))
        await uploaded(machine)
    assert machine.transfers.of_model("m").uploads.failures == 0
    await machine.fetch()
    assert (machine.path() / "pages-1.img").read_bytes() == b"newer"


async def test_the_upload_of_a_deleted_image_is_given_up_and_others_go_on(new_machine: Any) -> None:
    machine = new_machine(store := Store(hangs=True))
    async with running(machine):
        machine.transfers.submit("m", machine.make())
        await until(lambda: store.attempts == 1, "the first part")
        machine.transfers.submit("n", machine.make(model="n"))
        assert machine.transfers.of_model("n").is_queued
        store.hangs = False
        machine.transfers.give_up("m")
        await uploaded(machine, model="n")
    assert machine.transfers.of_model("m").uploads.finished == 0
    assert await keys_in(store, "m") == []


async def test_what_is_stored_is_not_uploaded_again(new_machine: Any) -> None:
    machine = new_machine(Store())
    path = machine.make()
    await machine.transfers.upload("m", path)
    machine.transfers.submit_unless_stored("m", path)
    assert not machine.transfers.of_model("m").is_queued
    machine.transfers.submit_unless_stored("m", machine.make(b"another"))
    assert machine.transfers.of_model("m").is_queued


async def test_the_end_of_llmux_ends_an_upload(new_machine: Any) -> None:
    machine = new_machine(store := Store(hangs=True))
    async with asyncio.timeout(5), running(machine):
        machine.transfers.submit("m", machine.make())
        await until(lambda: store.attempts == 1, "the first part")
    assert await keys_in(store) == []


async def test_nothing_is_found_for_another_configuration(new_machine: Any) -> None:
    machine = new_machine(Store())
    await machine.transfers.upload("m", machine.make())
    with pytest.raises(DownloadFailed, match="has no image for this configuration"):
        await machine.fetch(fingerprint="another")
    assert (machine.path() / "pages-1.img").read_bytes() == b"memory", "what was there stays"
    assert machine.transfers.of_model("m").downloads.failures == 0


async def test_a_download_that_takes_too_long(new_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Store):
        async def list_folders(self, prefix: str) -> list[str]:
            await asyncio.Event().wait()
            raise AssertionError

    machine = new_machine(Silent(), download_seconds=0.05)
    with pytest.raises(DownloadFailed, match=re.escape("took longer than 0.05 s")):
        await machine.fetch()
    monkeypatch.setattr(image_transfers, "FIND_SECONDS", 0.05)
    machine = new_machine(Silent())
    with pytest.raises(DownloadFailed, match=re.escape("did not answer within 0.05 s")):
        await machine.fetch()
    assert not machine.path().exists()


async def test_a_download_without_room(new_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    await new_machine(store).transfers.upload("m", (here := new_machine(store)).make())
    monkeypatch.setattr(image_transfers, "lack_of_disk", lambda directory, size: f"no room for {size} bytes")
    there = new_machine(store, "there")
    with pytest.raises(DownloadFailed, match="no room for 6 bytes"):
        await there.fetch()
    assert not any(there.directory.iterdir())
    assert here.path().exists()


async def test_a_cancelled_download_leaves_nothing(new_machine: Any) -> None:
    class Stalling(Store):
        started = False

        async def get(self, key: str, limit_bytes: int) -> memoryview:
            if "part" in key:
                self.started = True
                await asyncio.Event().wait()
            return await super().get(key, limit_bytes)

    store = Stalling()
    await new_machine(store).transfers.upload("m", new_machine(store).make())
    there = new_machine(store, "there")
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(there.fetch())
        await until(lambda: store.started, "the first part")
        assert (there.path().parent / "images.download").is_dir()
        current = there.transfers.of_model("m").current
        assert current is not None and (current.direction, current.total_bytes) == ("download", 6)
        with pytest.raises(DownloadFailed, match="another llmux is downloading it"):
            await new_machine(store, "there").fetch()
        images.delete_all_unfinished(there.directory)
        assert (there.path().parent / "images.download").is_dir(), "it is not taken for a leftover"
        task.cancel()
    assert not any(there.directory.iterdir())
    assert there.transfers.of_model("m").current is None


def test_what_a_killed_download_left_is_deleted(tmp_path: Path) -> None:
    left = tmp_path / "m" / "images.download"
    left.mkdir(parents=True)
    (left / "pages-1.img").write_bytes(b"half")
    images.delete_all_unfinished(tmp_path)
    assert not left.exists()


async def test_progress_is_told(new_machine: Any) -> None:
    told: list[str] = []
    machine = new_machine(Store())
    await machine.transfers.upload("m", machine.make(), told.append)
    assert told == ["upload of 0 MiB: 0 %", "upload of 0 MiB: 100 %"]
