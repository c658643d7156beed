"""Failures with the real criu: each is reported clearly and leaves nothing behind."""

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmux.checkpoints import dumping
from llmux.checkpoints.manifest import Manifest
from llmux.errors import DumpFailed, ImageUnusable, RestoreFailed
from tests.support.processes import exists, is_living
from tests.support.real_criu import (
    CRIU,
    FAMILY,
    SKIP_REASON,
    STUB,
    Engine,
    new_checkpointer,
    only_image_left,
    only_other_child,
    small_file_system,
    started,
    take_number,
    until,
)

pytestmark = [pytest.mark.criu, pytest.mark.skipif(not CRIU, reason=SKIP_REASON)]

LONG = "256"
"""MiB of memory, so that a dump or a restore takes long enough to be interrupted."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system smaller than the stub's memory."""
    with small_file_system(tmp_path / "small", 40) as directory:
        yield directory


async def still_works(engine: Engine) -> None:
    """Check that the engine answers, and can be dumped and restored."""
    before = await engine.get()
    assert engine.exits == []
    await engine.dump()
    await engine.restore()
    assert await engine.get() == {**before, "count": before["count"] + 1}


def no_image(directory: Path) -> bool:
    return not any(directory.iterdir())


async def test_too_little_disk_space_is_refused_at_once(small_disk: Path) -> None:
    async with started(new_checkpointer(small_disk)) as engine:
        with pytest.raises(DumpFailed, match=r"runs on.*the image needs 0\.1\d GiB in .*, where 0\.04 GiB are free"):
            await engine.dump()
        assert no_image(small_disk)
        assert (await engine.get())["count"] == 1


async def test_a_disk_that_is_full_during_the_dump(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumping, "lack_of_disk", lambda directory, size: None)
    async with started(new_checkpointer(small_disk)) as engine:
        with pytest.raises(DumpFailed, match="runs on.*No space left on device"):
            await engine.dump()
        assert (await engine.get())["count"] == 1
        assert engine.exits == []
        assert no_image(small_disk)


async def test_an_image_that_cannot_be_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("llmux.checkpoints.shared_memory.copy_sparse", fail)
    async with started(new_checkpointer(tmp_path), FAMILY) as engine:
        with pytest.raises(DumpFailed, match="has ended.*could not be written.*No space left on device") as caught:
            await engine.dump()
        assert not caught.value.engine_runs
        assert not exists(engine.process.pid)
        assert engine.exits == []
        assert no_image(tmp_path)


async def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path)) as engine:
        manifest = await engine.dump()
        with socket.socket() as squatter:
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            squatter.bind(("127.0.0.1", engine.port))
            squatter.listen()
            with pytest.raises(RestoreFailed, match=f"port {engine.port} is taken"):
                await engine.restore()
        assert only_image_left(manifest)
        await engine.restore()
        await still_works(engine)


async def test_a_taken_process_id_is_refused(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path)) as engine:
        manifest = await engine.dump()
        with take_number(manifest.pid) as other:
            with pytest.raises(RestoreFailed, match=f"number {manifest.pid}, which is in use by 'sleep'"):
                await engine.restore()
            assert is_living(other)
        await engine.restore()
        await still_works(engine)


async def test_a_truncated_image_is_refused_at_once(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path)) as engine:
        await engine.dump()
        pages = next(engine.path.glob("pages-*.img"))
        os.truncate(pages, pages.stat().st_size // 2)
        with pytest.raises(ImageUnusable, match=rf"{pages.name} has \d+ bytes instead of \d+"):
            await engine.restore()
        pages.unlink()
        with pytest.raises(ImageUnusable, match=f"{pages.name} cannot be read"):
            await engine.restore()


async def test_a_criu_that_does_not_end_is_killed_with_the_processes_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(new_checkpointer(tmp_path, restore_timeout_seconds=2.0), FAMILY) as engine:
        manifest = await engine.dump()
        pages = max(engine.path.glob("pages-*.img"), key=lambda file: file.stat().st_size)
        os.truncate(pages, pages.stat().st_size // 2)
        monkeypatch.setattr("llmux.checkpoints.manifest.check_files", lambda image, manifest: None)
        with pytest.raises(RestoreFailed, match=r"criu was killed: it did not end within 2 s"):
            await engine.restore()
        assert only_image_left(manifest)


async def test_criu_killed_during_a_dump(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path), STUB, LONG) as engine:
        async with asyncio.TaskGroup() as tasks:
            dump = tasks.create_task(failure_of_dump(engine))
            os.kill(await criu_at_work(engine), signal.SIGKILL)
        assert "ended with killed by SIGKILL" in str(dump.result())
        assert dump.result().engine_runs
        assert no_image(tmp_path)
        await still_works(engine)


async def failure_of_dump(engine: Engine) -> DumpFailed:
    with pytest.raises(DumpFailed) as caught:
        await engine.dump()
    return caught.value


async def criu_at_work(engine: Engine) -> int:
    """The pid of the criu that is writing an image."""
    assert engine.process.shim_pid is not None
    return await wait_for_pages(engine.path.parent, engine.process.shim_pid, engine.process.pid)


async def test_a_dump_that_takes_too_long(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path, dump_timeout_seconds=0.1), STUB, LONG) as engine:
        with pytest.raises(DumpFailed, match=r"criu was killed: it did not end within 0\.1 s"):
            await engine.dump()
        assert no_image(tmp_path)
        engine.checkpointer = new_checkpointer(tmp_path)
        await still_works(engine)


async def test_a_cancelled_dump(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path), STUB, LONG) as engine:
        async with asyncio.TaskGroup() as tasks:
            dump = tasks.create_task(engine.dump())
            await criu_at_work(engine)
            dump.cancel()
        assert dump.cancelled()
        assert no_image(tmp_path)
        await still_works(engine)


async def test_criu_killed_during_a_restore(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path), STUB, LONG) as engine:
        manifest = await engine.dump()
        async with asyncio.TaskGroup() as tasks:
            restore = tasks.create_task(failure_of_restore(engine))
            await until(lambda: exists(manifest.pid), "the root")
            os.kill(criu_restoring(manifest), signal.SIGKILL)
        assert "killed by SIGKILL" in str(restore.result())
        assert only_image_left(manifest)
        await engine.restore()
        await still_works(engine)


async def failure_of_restore(engine: Engine) -> RestoreFailed:
    with pytest.raises(RestoreFailed) as caught:
        await engine.restore()
    return caught.value


def criu_restoring(manifest: Manifest) -> int:
    """The criu that restores the root, which is its sibling."""
    shim = int(Path(f"/proc/{manifest.pid}/stat").read_text().rpartition(")")[2].split()[1])
    return only_other_child(shim, manifest.pid)


@pytest.mark.parametrize("moment", ["early", "late"])
async def test_a_cancelled_restore(tmp_path: Path, moment: str) -> None:
    async with started(new_checkpointer(tmp_path), FAMILY) as engine:
        await engine.get()
        manifest = await engine.dump()
        async with asyncio.TaskGroup() as tasks:
            restore = tasks.create_task(engine.restore())
            if moment == "late":
                await until(lambda: exists(manifest.pid), "the root")
            else:
                await asyncio.sleep(0)
            restore.cancel()
        assert restore.cancelled()
        assert only_image_left(manifest)
        await engine.restore()
        assert (await engine.get())["count"] == 2
        engine.process.kill()
        await engine.process.wait_gone()
        await engine.checkpointer.delete(engine.path)


async def test_the_shim_killed_during_a_restore(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path), STUB, LONG) as engine:
        manifest = await engine.dump()
        async with asyncio.TaskGroup() as tasks:
            restore = tasks.create_task(failure_of_restore(engine))
            await until(lambda: exists(manifest.pid), "the root")
            criu = criu_restoring(manifest)
            os.kill(int(Path(f"/proc/{criu}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
        assert "its shim was killed" in str(restore.result())
        # Their parent is now init, which may take a second to reap them.
        await until(lambda: not exists(criu) and only_image_left(manifest), "the end of criu and of what it made")


async def test_the_shim_killed_during_a_dump(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path), STUB, LONG) as engine:
        async with asyncio.TaskGroup() as tasks:
            dump = tasks.create_task(failure_of_dump(engine))
            criu = await criu_at_work(engine)
            assert engine.process.shim_pid is not None
            os.kill(engine.process.shim_pid, signal.SIGKILL)
        assert not dump.result().engine_runs
        await engine.process.wait_gone()
        assert not is_living(criu)
        assert engine.exits == [-signal.SIGKILL]
        assert no_image(tmp_path)


IO_URING = """
import ctypes, errno, os, signal
libc = ctypes.CDLL(None, use_errno=True)
ring = libc.syscall(425, 4, ctypes.create_string_buffer(120))
print("ready", errno.errorcode.get(ctypes.get_errno()) if ring < 0 else "ring", flush=True)
while True: signal.pause()
"""


async def test_an_open_io_uring_is_named_in_the_failure(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path), IO_URING, checkpointable=False) as engine:
        assert engine.lines[0] == "ready ring"
        with pytest.raises(DumpFailed, match=r"criu cannot dump anon_inode:\[io_uring\] of process"):
            await engine.dump()
        assert engine.process.exit_status is None
        assert no_image(tmp_path)


async def test_a_checkpointable_engine_can_open_no_io_uring(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path), IO_URING) as engine:
        assert engine.lines[0] == "ready ENOSYS"
        await engine.dump()
        await engine.restore()
        assert engine.process.exit_status is None


UNSUPPORTED = """
import signal, socket
held = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
print("ready", flush=True)
while True: signal.pause()
"""


async def test_a_file_that_criu_cannot_dump_is_reported(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path), UNSUPPORTED) as engine:
        with pytest.raises(DumpFailed, match="the engine could not be put into an image .it runs on.: .*Error .*sock"):
            await engine.dump()
        assert engine.process.exit_status is None
        assert no_image(tmp_path)


STRAY = """
import os, signal
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        print("ready", flush=True)
        while True: signal.pause()
    os._exit(0)
os.wait()
while True: signal.pause()
"""


async def test_a_process_that_left_its_root_is_reported(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path), STRAY) as engine:
        with pytest.raises(DumpFailed, match="has left its root"):
            await engine.dump()
        assert engine.process.exit_status is None


LLMUX = """
import asyncio, sys
from pathlib import Path
from tests.support.real_criu import FAMILY, new_checkpointer, started

async def main():
    async with started(new_checkpointer(Path(sys.argv[1])), FAMILY, "256") as engine:
        print(engine.process.pid, engine.process.shim_pid, engine.process.temporary_directory, flush=True)
        await engine.dump()
        print("dumped", flush=True)
        await engine.restore()

asyncio.run(main())
"""


@pytest.mark.parametrize("verb", ["dump", "restore"])
async def test_sigkill_of_llmux_leaves_no_process(tmp_path: Path, verb: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    argv = (sys.executable, "-c", LLMUX, str(tmp_path))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment, text=True) as llmux:
        assert llmux.stdout is not None
        first, shim, directory = llmux.stdout.readline().split()
        if verb == "dump":
            criu = await wait_for_pages(tmp_path, int(shim), int(first))
        else:
            assert llmux.stdout.readline() == "dumped\n"
            await until(lambda: exists(int(first)), "the root")
            shim = Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1]
            criu = only_other_child(int(shim), int(first))
        llmux.kill()
    await until(lambda: not any(map(is_living, (int(first), int(shim), criu))), "the end of all")
    assert not Path(directory).exists()
    # Only the image stays: the finished one, or an unfinished one that the next llmux deletes.
    ours = new_checkpointer(tmp_path)
    await ours.check()
    assert not (tmp_path / "stub" / "images.new").exists()
    await ours.delete(tmp_path / "stub" / "images")


async def wait_for_pages(directory: Path, shim: int, root: int) -> int:
    """The pid of the criu that is writing an image."""
    await until(lambda: any(file.stat().st_size > 1 << 20 for file in directory.rglob("pages-*.img")), "pages")
    return only_other_child(shim, root)
