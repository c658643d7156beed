"""The checkpointer with a fake criu that dumps nothing: how it is called, and what a failure leaves."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from llmux.checkpoints import criu, dumping, restoring
from llmux.checkpoints.checkpointer import Checkpointer, CriuSettings, RestoreCommand
from llmux.checkpoints.facts import ImageFacts
from llmux.checkpoints.manifest import write_manifest
from llmux.core.eviction import Eviction
from llmux.errors import CriuUnusable, DumpFailed, ImageUnusable, RestoreFailed
from llmux.hosts.local import choose_ports
from llmux.instances.process import EngineProcess, LaunchCommand
from tests.support import fake_criu
from tests.support.processes import PRINT_PID_AND_WAIT, exists, is_living, until


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(criu, "_check_privileges", lambda: None)
    return fake_criu.install(tmp_path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "all"


def facts(*, has_frozen: bool = False, model: str = "org/model") -> ImageFacts:
    (port,) = choose_ports(1)
    eviction = Eviction.parse("offload+checkpoint")
    return ImageFacts(model, port, "fingerprint", ("sleep 1",), eviction, has_frozen, ("engine",))


@asynccontextmanager
async def engine(tmp_path: Path, exits: list[int]) -> AsyncIterator[EngineProcess]:
    directory = tmp_path / "engine"
    argv = (sys.executable, "-S", "-c", PRINT_PID_AND_WAIT)
    launch = LaunchCommand(argv, dict(os.environ), directory, checkpointable=True)
    lines: list[str] = []
    process = await EngineProcess.spawn(launch, on_line=lambda _, line: lines.append(line), on_exit=exits.append)
    await until(lambda: bool(lines), "the first line")
    (directory / "note").write_text("kept")
    yield process
    process.kill()
    await process.wait_gone()


async def restored(exits: list[int], command: RestoreCommand) -> EngineProcess:
    return await EngineProcess.restore(command, on_line=lambda stream, line: None, on_exit=exits.append)


async def test_a_dump_makes_a_complete_image(tmp_path: Path, program: str, images: Path) -> None:
    checkpointer, exits = Checkpointer(CriuSettings(program, None, images)), []
    async with engine(tmp_path, exits) as process:
        pipes, given = process.pipes, facts()
        manifest = await checkpointer.dump(process, given)
        assert process.is_dumped
        assert not exists(process.pid)
        assert process.exit_status is None
    assert exits == []
    assert not (tmp_path / "engine").exists()
    path = images / "org" / "model" / "images"
    assert checkpointer.read(path) == manifest
    assert manifest.files == {"pages-1.img": 6, "tmp/note": 4}
    assert (manifest.model, manifest.port, manifest.steps) == ("org/model", given.port, ("sleep 1",))
    assert (manifest.eviction, manifest.fingerprint, manifest.pipes) == ("offload+checkpoint", "fingerprint", pipes)
    assert manifest.pids == (process.pid,)
    assert manifest.temporary_directory == str(tmp_path / "engine")
    await checkpointer.delete(path)
    assert not any(images.iterdir())


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("bad", r"runs on\): Error .criu/sk.c:9.: inet: Can't bind .criu ended with exit code 1"),
        ("hang", r"runs on\): criu was killed: it did not end within 0.2 s"),
    ],
)
async def test_a_failed_dump_leaves_the_engine_and_nothing_else(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch, mode: str, reason: str
) -> None:
    monkeypatch.setenv("FAKE_CRIU", mode)
    checkpointer, exits = Checkpointer(CriuSettings(program, None, images, dump_timeout_seconds=0.2)), []
    async with engine(tmp_path, exits) as process:
        with pytest.raises(DumpFailed, match=reason) as caught:
            await checkpointer.dump(process, facts())
        assert caught.value.engine_runs
        assert exits == []
        assert is_living(process.pid)
        assert not any(images.iterdir())


async def test_a_cancelled_dump_is_undone(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CRIU", "hang")
    checkpointer, exits = Checkpointer(CriuSettings(program, None, images)), []
    async with engine(tmp_path, exits) as process:
        async with asyncio.TaskGroup() as tasks:
            dump = tasks.create_task(checkpointer.dump(process, facts()))
            await until(lambda: any(images.rglob("dump.log")), "criu's log")
            dump.cancel()
        assert dump.cancelled()
        assert is_living(process.pid)
        assert not any(images.iterdir())


async def test_an_engine_that_dies_during_its_dump(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CRIU", "hang")
    checkpointer, exits = Checkpointer(CriuSettings(program, None, images, dump_timeout_seconds=0.5)), []
    async with engine(tmp_path, exits) as process:
        async with asyncio.TaskGroup() as tasks:
            dump = tasks.create_task(failure_of(checkpointer, process))
            await until(lambda: any(images.rglob("dump.log")), "criu's log")
            os.kill(process.pid, signal.SIGTERM)
        assert not dump.result().engine_runs
        assert exits == [-signal.SIGTERM]


async def failure_of(checkpointer: Checkpointer, process: EngineProcess) -> DumpFailed:
    with pytest.raises(DumpFailed) as caught:
        await checkpointer.dump(process, facts())
    return caught.value


async def test_stopping_the_engine_ends_its_dump(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CRIU", "hang")
    checkpointer, exits = Checkpointer(CriuSettings(program, None, images)), []
    async with engine(tmp_path, exits) as process:
        async with asyncio.TaskGroup() as tasks:
            dump = tasks.create_task(failure_of(checkpointer, process))
            await until(lambda: any(images.rglob("dump.log")), "criu's log")
            await process.stop(5.0, 5.0)
        assert "llmux broke it off" in str(dump.result())
        assert exits == [-signal.SIGTERM]


async def test_too_little_disk_space(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dumping, "lack_of_disk", lambda directory, size: "too little disk space")
    async with engine(tmp_path, []) as process:
        with pytest.raises(DumpFailed, match="too little disk space"):
            await Checkpointer(CriuSettings(program, None, images)).dump(process, facts())


async def test_a_model_name_that_cannot_be_a_directory(tmp_path: Path, program: str, images: Path) -> None:
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
async def test_a_failed_restore_leaves_only_the_image(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch, mode: str, reason: str
) -> None:
    checkpointer, exits = Checkpointer(CriuSettings(program, None, images, restore_timeout_seconds=1.0)), []
    async with engine(tmp_path, exits) as process:
        await checkpointer.dump(process, facts())
    path = checkpointer.image_path("org/model")
    monkeypatch.setenv("FAKE_CRIU", mode)
    with pytest.raises(RestoreFailed, match=reason):
        await checkpointer.restore(path, partial(restored, exits))
    if mode == "half made":
        assert not is_living(int((path / "half").read_text()))
    assert exits == []
    assert not (tmp_path / "engine").exists()
    checkpointer.read(path)


async def test_memory_ids_port_and_kernel_are_checked_first(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = Checkpointer(CriuSettings(program, None, images))
    async with engine(tmp_path, []) as process:
        await checkpointer.dump(process, facts())
    path = checkpointer.image_path("org/model")

    async def restore() -> None:
        await checkpointer.restore(path, partial(restored, []))

    monkeypatch.setattr(restoring, "lack_of_memory", lambda size: "too little memory")
    with pytest.raises(RestoreFailed, match="too little memory"):
        await restore()
    monkeypatch.setattr(restoring, "find_taken", lambda numbers: {7: "other"})
    with pytest.raises(RestoreFailed, match="it needs the process number 7, which is in use by 'other'"):
        await restore()
    monkeypatch.setattr(restoring, "is_free", lambda port: False)
    with pytest.raises(RestoreFailed, match=r"port \d+ is taken by another process"):
        await restore()
    monkeypatch.setattr("llmux.checkpoints.manifest.kernel_release", lambda: "9.9")
    with pytest.raises(ImageUnusable, match="and this is 9.9"):
        await restore()


async def test_a_refusal_is_remembered_for_a_while(program: str, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CRIU", "check fails")
    checkpointer = Checkpointer(CriuSettings(program, None, images))
    for _ in range(2):
        with pytest.raises(CriuUnusable, match="no such feature"):
            await checkpointer.check()
        monkeypatch.setenv("FAKE_CRIU", "good")
    monkeypatch.setattr("llmux.checkpoints.checkpointer.REFUSAL_SECONDS", 0.0)
    await checkpointer.check()


async def test_one_checkpointer_waits_for_another(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CRIU", "hang")
    checkpointer, another = (
        Checkpointer(CriuSettings(program, None, images, dump_timeout_seconds=0.5)) for _ in range(2)
    )
    await another.check()
    async with engine(tmp_path, []) as process, asyncio.TaskGroup() as tasks:
        dump = tasks.create_task(failure_of(checkpointer, process))
        await until(lambda: any(images.rglob("dump.log")), "criu's log")
        deletion = tasks.create_task(another.delete(images / "org" / "model" / "images"))
        await dump
        assert not deletion.done()


async def test_an_image_is_marked_durable_unless_another_has_replaced_it(
    tmp_path: Path, program: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = Checkpointer(CriuSettings(program, None, images))
    async with engine(tmp_path, []) as process:
        manifest = await checkpointer.dump(process, facts())
    path = checkpointer.image_path("org/model")
    assert not manifest.is_durable
    monkeypatch.setattr(
        "llmux.checkpoints.images.sync", lambda path: write_manifest(path, replace(manifest, created_at=1.0))
    )
    await checkpointer.make_durable(path)
    assert not checkpointer.read(path).is_durable
    monkeypatch.undo()
    await checkpointer.make_durable(path)
    await checkpointer.make_durable(path)
    assert checkpointer.read(path) == replace(manifest, created_at=1.0, is_durable=True)
