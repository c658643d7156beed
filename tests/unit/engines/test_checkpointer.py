"""The imager with a criu that dumps nothing: what it is told, and what is left when it fails."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from llmux.checkpoints import criu, disk_space
from llmux.checkpoints.manifest import write_manifest
from llmux.core.eviction import Eviction
from llmux.engines import checkpointer
from llmux.engines.checkpointer import Checkpointer, CriuSettings, ImageFacts
from llmux.engines.process import EngineProcess, LaunchCommand
from llmux.engines.steps import Sleep, SleepLevel
from llmux.errors import CriuUnusable, DumpFailed, ImageUnusable, RestoreFailed
from llmux.hosts.local import choose_ports
from tests.support import fake_criu
from tests.support.processes import PRINT_PID_AND_WAIT, is_living, until


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(criu, "_check_privileges", lambda: None)
    return fake_criu.install(tmp_path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "all"


def facts(*, has_frozen: bool = False, model: str = "org/model") -> ImageFacts:
    (port,) = choose_ports(1)
    steps = (Sleep(SleepLevel.OFFLOAD),)
    eviction = Eviction.parse("offload+checkpoint")
    return ImageFacts(model, port, "identity", steps, eviction, has_frozen, ("engine",))


@asynccontextmanager
async def engine(tmp_path: Path, exits: list[int]) -> AsyncIterator[EngineProcess]:
    directory = tmp_path / "engine"
    argv = (sys.executable, "-S", "-c", PRINT_PID_AND_WAIT)
    launch = LaunchCommand(argv, dict(os.environ), None, directory, checkpointable=True)
    lines: list[str] = []
    process = await EngineProcess.spawn(launch, on_line=lambda _, line: lines.append(line), on_exit=exits.append)
    await until(lambda: bool(lines), "the first line")
    (directory / "note").write_text("kept")
    yield process
    process.kill()
    await process.wait_gone()


async def test_dump(tmp_path: Path, program: str, images: Path) -> None:
    imager, exits = Checkpointer(CriuSettings(program, None, images)), []
    async with engine(tmp_path, exits) as process:
        pipes, told = process.pipes, facts()
        manifest = await imager.dump(process, told)
        assert process.is_dumped
        assert process.is_gone
        assert process.exit_status is None
    assert exits == []
    assert not (tmp_path / "engine").exists()
    path = images / "org" / "model" / "images"
    assert imager.read(path) == manifest
    assert manifest.files == {"pages-1.img": 6, "tmp/note": 4}
    assert (manifest.model, manifest.port, manifest.steps) == ("org/model", told.port, ("sleep 1",))
    assert (manifest.eviction, manifest.identity, manifest.pipes) == ("offload+checkpoint", "identity", pipes)
    assert manifest.pids == (process.pid,)
    assert manifest.temporary_directory == str(tmp_path / "engine")
    await imager.drop(path)
    assert not any(images.iterdir())


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("bad", r"runs on\): Error .criu/sk.c:9.: inet: Can't bind .criu ended with exit code 1"),
        ("hang", r"runs on\): criu was killed: it did not end within 0.2 s"),
    ],
)
async def test_failed_dump_leaves_the_engine_and_nothing_else(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch, mode: str, reason: str
) -> None:
    monkeypatch.setenv("FAKE_CRIU", mode)
    imager, exits = Checkpointer(CriuSettings(program, None, images, dump_timeout_seconds=0.2)), []
    async with engine(tmp_path, exits) as process:
        with pytest.raises(DumpFailed, match=reason) as caught:
            await imager.dump(process, facts())
        assert caught.value.engine_runs
        assert exits == []
        assert is_living(process.pid)
        assert not any(images.iterdir())


async def test_cancelled_dump_is_broken_off(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CRIU", "hang")
    imager, exits = Checkpointer(CriuSettings(program, None, images)), []
    async with engine(tmp_path, exits) as process:
        async with asyncio.TaskGroup() as tasks:
            dump = tasks.create_task(imager.dump(process, facts()))
            await until(lambda: any(images.rglob("dump.log")), "criu's log")
            dump.cancel()
        assert dump.cancelled()
        assert is_living(process.pid)
        assert not any(images.iterdir())


async def test_engine_that_dies_in_mid_dump(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CRIU", "hang")
    imager, exits = Checkpointer(CriuSettings(program, None, images, dump_timeout_seconds=0.5)), []
    async with engine(tmp_path, exits) as process:
        async with asyncio.TaskGroup() as tasks:
            dump = tasks.create_task(failure_of(imager, process))
            await until(lambda: any(images.rglob("dump.log")), "criu's log")
            os.kill(process.pid, signal.SIGTERM)
        assert not dump.result().engine_runs
        assert exits == [-signal.SIGTERM]


async def failure_of(imager: Checkpointer, process: EngineProcess) -> DumpFailed:
    with pytest.raises(DumpFailed) as caught:
        await imager.dump(process, facts())
    return caught.value


async def test_stop_breaks_a_dump_off(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CRIU", "hang")
    imager, exits = Checkpointer(CriuSettings(program, None, images)), []
    async with engine(tmp_path, exits) as process:
        async with asyncio.TaskGroup() as tasks:
            dump = tasks.create_task(failure_of(imager, process))
            await until(lambda: any(images.rglob("dump.log")), "criu's log")
            await process.stop(5.0, 5.0)
        assert "llmux broke it off" in str(dump.result())
        assert exits == [-signal.SIGTERM]


async def test_too_little_room(tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "lack_of_disk", lambda directory, size: "too little room")
    async with engine(tmp_path, []) as process:
        with pytest.raises(DumpFailed, match="too little room"):
            await Checkpointer(CriuSettings(program, None, images)).dump(process, facts())


async def test_name_that_cannot_be_a_directory(tmp_path: Path, program: str, images: Path) -> None:
    async with engine(tmp_path, []) as process:
        with pytest.raises(DumpFailed, match="cannot be a directory's name"):
            await Checkpointer(CriuSettings(program, None, images)).dump(process, facts(model="../model"))


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("bad", r"inet: Can't bind .criu ended with exit code 1"),
        ("half made", "criu was killed: it did not end within 1 s"),
    ],
)
async def test_failed_restore_leaves_only_the_image(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch, mode: str, reason: str
) -> None:
    imager, exits = Checkpointer(CriuSettings(program, None, images, restore_timeout_seconds=1.0)), []
    async with engine(tmp_path, exits) as process:
        await imager.dump(process, facts())
    path = imager.image_path("org/model")
    monkeypatch.setenv("FAKE_CRIU", mode)
    with pytest.raises(RestoreFailed, match=reason):
        await imager.restore(path, on_line=lambda stream, line: None, on_exit=exits.append)
    if mode == "half made":
        assert not is_living(int((path / "half").read_text()))
    assert exits == []
    assert not (tmp_path / "engine").exists()
    imager.read(path)


async def test_memory_and_numbers_are_looked_at_first(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imager = Checkpointer(CriuSettings(program, None, images))
    async with engine(tmp_path, []) as process:
        await imager.dump(process, facts())
    path = imager.image_path("org/model")

    async def restore() -> None:
        await imager.restore(path, on_line=lambda stream, line: None, on_exit=lambda status: None)

    monkeypatch.setattr(disk_space, "lack_of_memory", lambda size: "too little memory")
    with pytest.raises(RestoreFailed, match="too little memory"):
        await restore()
    monkeypatch.setattr(checkpointer, "find_taken", lambda numbers: {7: "stranger"})
    with pytest.raises(RestoreFailed, match="it needs the process number 7, which is in use by 'stranger'"):
        await restore()
    monkeypatch.setattr(checkpointer, "is_free", lambda port: False)
    with pytest.raises(RestoreFailed, match=r"port \d+ is taken by another process"):
        await restore()
    monkeypatch.setattr("llmux.checkpoints.manifest.kernel_release", lambda: "9.9")
    with pytest.raises(ImageUnusable, match="and this is 9.9"):
        await restore()


async def test_refusal_is_found_once(program: str, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CRIU", "check fails")
    imager = Checkpointer(CriuSettings(program, None, images))
    for _ in range(2):
        with pytest.raises(CriuUnusable, match="no such feature"):
            await imager.check()
        monkeypatch.setenv("FAKE_CRIU", "good")


async def test_other_images_wait_for_their_turn(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CRIU", "hang")
    imager, another = (Checkpointer(CriuSettings(program, None, images, dump_timeout_seconds=0.5)) for _ in range(2))
    await another.check()
    async with engine(tmp_path, []) as process, asyncio.TaskGroup() as tasks:
        dump = tasks.create_task(failure_of(imager, process))
        await until(lambda: any(images.rglob("dump.log")), "criu's log")
        drop = tasks.create_task(another.drop(images / "org" / "model" / "images"))
        await dump
        assert not drop.done()


async def test_image_is_made_durable_unless_it_is_another_one_by_then(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imager = Checkpointer(CriuSettings(program, None, images))
    async with engine(tmp_path, []) as process:
        manifest = await imager.dump(process, facts())
    path = imager.image_path("org/model")
    assert not manifest.is_durable
    monkeypatch.setattr(
        checkpointer.images, "sync", lambda path: write_manifest(path, replace(manifest, created_at=1.0))
    )
    await imager.make_durable(path)
    assert not imager.read(path).is_durable
    monkeypatch.undo()
    await imager.make_durable(path)
    await imager.make_durable(path)
    assert imager.read(path) == replace(manifest, created_at=1.0, is_durable=True)
