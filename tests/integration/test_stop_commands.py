"""Servers in containers, which outlive the client that started them: the stop command ends them, whatever happened."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.bench import Bench, eventually
from tests.support.command_engines import MODEL, SERVER, said, serving_commands
from tests.support.containers import Docker, docker
from tests.support.processes import is_living


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Docker]:
    with docker(tmp_path) as running:
        yield running


def contained(daemon: Docker, **more: Any) -> dict[str, Any]:
    run = [daemon.program, "run", "--name", "{name}", *SERVER, "{port}", "{name}"]
    return {**MODEL, "start_command": run, "stop_command": [daemon.program, "stop", "{name}"], **more}


async def test_a_container_has_ended_before_the_next_model_starts(daemon: Docker, tmp_path: Path) -> None:
    async with serving_commands({"one": contained(daemon), "two": contained(daemon)}, tmp_path) as bench:
        _, first = await said(bench, "one")
        _, second = await said(bench, "two")
        assert not is_living(first) and is_living(second)
        assert bench.server.find_in_log("stop command has run")
    # What may have been left by an earlier llmux is ended first, of all models before any is started.
    assert sorted(daemon.calls[:2]) == ["stop one", "stop two"]
    assert daemon.calls[2:] == ["run --name one", "stop one", "run --name two", "stop two"]
    assert not is_living(second), "a shutdown ends it"


async def test_a_container_whose_client_was_killed(daemon: Docker, tmp_path: Path) -> None:
    async with serving_commands({"one": contained(daemon)}, tmp_path) as bench:
        _, first = await said(bench, "one")
        bench.engine("one").kill()
        await eventually(lambda: not is_living(first), "the end of the container")
        _, second = await said(bench, "one")
        assert first != second
    assert daemon.calls == ["stop one", "run --name one", "stop one", "run --name one", "stop one"]


async def test_a_container_that_ended_by_itself(daemon: Docker, tmp_path: Path) -> None:
    async with serving_commands({"one": contained(daemon)}, tmp_path) as bench:
        _, first = await said(bench, "one")
        daemon.stop("one")
        _, second = await said(bench, "one")
        assert first != second
        failed = bench.server.find_in_log("stop command failed.*No such container: one")
        assert len(failed) == 1, "the first one, of the start, is normal"


async def test_a_container_whose_shim_was_killed(daemon: Docker, tmp_path: Path) -> None:
    async with serving_commands({"one": contained(daemon)}, tmp_path) as bench:
        _, first = await said(bench, "one")
        shim = bench.engine("one").parent()
        assert shim is not None
        shim.kill()
        await eventually(lambda: not is_living(first), "the end of the container")
        _, second = await said(bench, "one")
        assert first != second


async def killed(bench: Bench) -> None:
    """llmux itself is killed, and its shims do what is left to do."""
    shims = psutil.Process(bench.server.process.pid).children()
    bench.server.process.send_signal(signal.SIGKILL)
    await bench.server.process.wait()
    await eventually(lambda: not any(is_living(shim.pid) for shim in shims), "the end of all shims")


async def test_no_container_survives_a_killed_llmux(daemon: Docker, tmp_path: Path) -> None:
    async with serving_commands({"one": contained(daemon)}, tmp_path) as bench:
        _, pid = await said(bench, "one")
        await killed(bench)
        assert not is_living(pid)


async def test_a_container_that_an_earlier_llmux_has_left(daemon: Docker, tmp_path: Path) -> None:
    with daemon.begin("one", *SERVER, "1", "one"):
        await eventually(lambda: "run --name one" in daemon.calls, "the container's start")
        async with serving_commands({"one": contained(daemon)}, tmp_path) as bench:
            assert (await said(bench, "one"))[0] == "one"


async def test_a_start_that_fails_leaves_no_container(daemon: Docker, tmp_path: Path) -> None:
    model = contained(daemon, ready_path="/never")
    async with serving_commands({"one": model}, tmp_path, start_timeout_seconds=1.5) as bench:
        assert (await bench.ask("one")).status == 503
    # The client is killed first: it could still have started a container.
    assert daemon.calls[:3] == ["stop one", "run --name one", "stop one"]


async def test_a_stop_command_that_hangs_is_killed_and_the_process_ended_all_the_same(tmp_path: Path) -> None:
    model = {**MODEL, "stop_command": ["sh", "-c", "echo stopping; sleep 60"]}
    async with serving_commands({"one": model, "two": MODEL}, tmp_path, stop_timeout_seconds=0.3) as bench:
        _, pid = await said(bench, "one")
        assert (await said(bench, "two"))[0] == "two"
        assert not is_living(pid)
        (failed,) = bench.server.find_in_log(r"stop command failed .*")
        assert "did not end within 0.3 s" in failed[0] and "stopping" in failed[0]
