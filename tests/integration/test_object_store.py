"""Images through a real HTTP S3 server: killed transfers, several machines with one bucket, a store that is down."""

import asyncio
import os
import random
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmux.checkpoints import criu, image_transfers
from llmux.checkpoints.checkpointer import Checkpointer, CriuSettings
from llmux.checkpoints.image_transfers import DownloadFailed, ImageTransfers
from llmux.checkpoints.manifest import read_manifest
from llmux.checkpoints.object_store import ObjectStore, StoreAddress, StoreFailed, open_store
from llmux.errors import ImageUnusable
from tests.support import fake_criu
from tests.support.s3_server import S3Server, s3_server
from tests.support.stored_images import FINGERPRINT, keys_in, make_image

MIB = 1 << 20
KEYS = {"access_key_id": "a", "secret_access_key": "s", "region": "r"}


@pytest.fixture(scope="module")
def shared_server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def server(shared_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    monkeypatch.setattr(criu, "_check_privileges", lambda: None)
    return shared_server.make_bucket(f"bucket-{secrets.token_hex(8)}")


class Machine:
    """One llmux's images, beside a bucket that others share."""

    def __init__(self, server: S3Server, directory: Path, *, compresses: bool = False) -> None:
        directory.mkdir(exist_ok=True)
        self.program = fake_criu.install(directory)
        self.directory = directory / "images"
        self.checkpointer = Checkpointer(CriuSettings(self.program, None, self.directory))
        self.transfers = ImageTransfers(server.open(), "s3://bucket", self.checkpointer, compresses=compresses)
        self.path = self.directory / "m" / "images"

    def make(self, content: bytes, fingerprint: str = FINGERPRINT) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        make_image(self.path, {"pages-1.img": content, "core-1.img": b"core"}, fingerprint=fingerprint)

    async def upload(self) -> None:
        await self.transfers.upload("m", self.path)

    async def fetch(self, fingerprint: str = FINGERPRINT) -> bytes:
        await self.transfers.fetch("m", self.path, fingerprint)
        return (self.path / "pages-1.img").read_bytes()

    async def run(self, direction: str, server: S3Server, kill_after_seconds: float | None = None) -> float:
        """Transfer the image in another process, which may be killed; the seconds that the transfer had."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.transfer_program", direction),
            *(server.endpoint, server.bucket, self.program, str(self.directory)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        while (line := await process.stdout.readline()) and line != b"begins\n":
            pass  # the log
        assert line, "it could not begin"
        began_at = time.monotonic()
        try:
            async with asyncio.timeout(kill_after_seconds):
                assert await process.wait() == 0
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        await process.stdout.read()
        return time.monotonic() - began_at


@pytest.mark.parametrize("compresses", [False, True])
async def test_an_image_up_and_down(server: S3Server, tmp_path: Path, *, compresses: bool) -> None:
    here = Machine(server, tmp_path / "here", compresses=compresses)
    there = Machine(server, tmp_path / "there")
    content = os.urandom(40 * MIB) + b"x" * MIB
    here.make(content)
    await here.upload()
    assert await there.fetch() == content


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
async def test_of_killed_uploads_nothing_half_made_is_restored(server: S3Server, tmp_path: Path, kills: int) -> None:
    here, there = Machine(server, tmp_path / "here"), Machine(server, tmp_path / "there")
    old = os.urandom(48 * MIB)
    here.make(old)
    seconds = await here.run("upload", server)
    generator, published = random.Random(7), 0
    for number in range(kills):
        new = os.urandom(48 * MIB)
        here.make(new)
        await here.run("upload", server, generator.uniform(0, seconds))
        found = await there.fetch()
        assert found in (old, new), number
        if found == new:
            published, old = published + 1, new
    assert published < kills, "at least one was killed before its end"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
async def test_of_killed_downloads_nothing_half_made_is_restored(server: S3Server, tmp_path: Path, kills: int) -> None:
    here, there = Machine(server, tmp_path / "here"), Machine(server, tmp_path / "there")
    content = os.urandom(48 * MIB)
    here.make(content)
    await here.upload()
    seconds = await there.run("download", server)
    generator, leftovers = random.Random(7), 0
    for number in range(kills):
        shutil.rmtree(there.directory, ignore_errors=True)
        await there.run("download", server, generator.uniform(0, seconds))
        left = there.path.with_name("images.download")
        leftovers += left.exists()
        with pytest.raises(ImageUnusable, match=r"no manifest|no such directory"):
            read_manifest(left)
        try:
            read_manifest(there.path)
        except ImageUnusable:
            assert not there.path.exists(), number
        else:
            assert (there.path / "pages-1.img").read_bytes() == content, number
        # What the next llmux does at its start.
        await Checkpointer(CriuSettings(there.program, None, there.directory)).check()
        assert not left.exists()
    assert leftovers, "at least one was killed before its end"


async def test_machines_that_are_alike_share_images_and_others_do_not_disturb_them(
    server: S3Server, tmp_path: Path
) -> None:
    one, two, other = (Machine(server, tmp_path / name) for name in ("one", "two", "other"))
    one.make(b"one's")
    two.make(b"two's")
    other.make(b"another configuration's", fingerprint="other")
    await asyncio.gather(one.upload(), two.upload(), other.upload())
    assert await one.fetch() == await two.fetch() in (b"one's", b"two's")
    assert await other.fetch("other") == b"another configuration's"
    for number in range(4):
        one.make(b"newest %d" % number)
        await one.upload()
        assert await two.fetch() == b"newest %d" % number
    assert await other.fetch("other") == b"another configuration's"
    assert len([key for key in await keys_in(server.open()) if key.endswith("manifest.json")]) == 3, (
        "the newest one, its predecessor, and the other's"
    )


async def test_reading_goes_on_while_a_newer_image_is_published(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = Machine(server, tmp_path / "here"), Machine(server, tmp_path / "there")
    here.make(b"first")
    await here.upload()
    original = ObjectStore.get
    is_published = False

    async def publishing(self: ObjectStore, key: str, limit_bytes: int) -> memoryview:
        nonlocal is_published
        if "part" in key and not is_published:
            is_published = True
            here.make(b"second")
            await here.upload()
        return await original(self, key, limit_bytes)

    monkeypatch.setattr(ObjectStore, "get", publishing)
    assert await there.fetch() == b"first"
    assert await there.fetch() == b"second"


async def test_a_flipped_byte_is_found(server: S3Server, tmp_path: Path) -> None:
    here, there = Machine(server, tmp_path / "here"), Machine(server, tmp_path / "there")
    here.make(os.urandom(20 * MIB))
    await here.upload()
    store = server.open()
    (key,) = [key for key in await keys_in(store) if key.endswith("part-00001")]
    content = bytearray(await store.get(key, 16 * MIB))
    content[MIB] ^= 1
    await store.put(key, bytes(content))
    with pytest.raises(DownloadFailed, match="part-00001 is damaged"):
        await there.fetch()
    assert not there.path.exists()


async def test_a_bucket_that_does_not_exist(server: S3Server, tmp_path: Path) -> None:
    machine = Machine(S3Server(server.endpoint, "no-such-bucket"), tmp_path / "here")
    machine.make(b"memory")
    with pytest.raises(StoreFailed, match="NoSuchBucket|not found"):
        await machine.upload()
    with pytest.raises(DownloadFailed):
        await machine.fetch()


async def test_a_store_that_is_down(tmp_path: Path) -> None:
    address = StoreAddress("s3://b", {**KEYS, "endpoint": "http://127.0.0.1:9"}, allows_http=True)
    with pytest.raises(StoreFailed, match=r"^the object store failed: .*127\.0\.0\.1:9"):
        await open_store(address).list_folders("m")


def test_progress_is_logged_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(1000))
    monkeypatch.setattr(image_transfers, "_now", lambda: float(next(times)))
    told: list[str] = []
    transfer = image_transfers.Transfer("m", image_transfers.Direction.UPLOAD, 0.0)
    progress = image_transfers._Progress(image_transfers.ModelTransfers(), transfer, told.append)
    progress.begin(1000 * MIB)
    for _ in range(100):
        progress.add(10 * MIB)
    assert 2 <= len(told) <= 11, told
