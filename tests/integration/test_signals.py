"""Every signal that a server may get: those that stop it, and those that must not."""

import asyncio
import json
import os
import shlex
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.bench import OFFLOAD, SLOW, eventually, serving, with_flags
from tests.support.server import VIRTUAL_GPUS, chat, http_client, llmux_server, simulated_config

HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOP_SECONDS = 20.0


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) & 1 << number - 1)
    return False


@pytest.mark.parametrize(
    "number",
    [signal.SIGHUP, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGUSR1, signal.SIGUSR2))],
    ids=lambda number: number.name,
)
async def test_what_is_not_meant_to_stop_it_is_logged_and_everything_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with serving({"a": with_flags(OFFLOAD, *SLOW), "b": OFFLOAD}, tmp_path) as bench:
        async with bench.held_stream("a") as stream, asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(bench.expect("b"))
            await bench.until_model("b", queue_depth=1)
            bench.server.process.send_signal(number)
            await bench.server.wait_for_log(number.name)
            await bench.let_go("a")
            await stream.read()
            assert stream.is_complete
        assert waiting.done()
        assert bench.server.process.returncode is None
        assert bench.server.find_in_log("stopping") == []


async def test_sigquit_stops_as_sigterm_does(tmp_path: Path) -> None:
    async with serving({"a": with_flags(OFFLOAD, *SLOW)}, tmp_path) as bench, bench.held_stream("a") as stream:
        bench.server.process.send_signal(signal.SIGQUIT)
        await bench.server.wait_for_log("stopping .*SIGQUIT")
        await bench.let_go("a")
        await stream.read()
        assert stream.is_complete
        async with asyncio.timeout(STOP_SECONDS):
            assert await bench.server.process.wait() == 0


async def test_harmless_signals_during_the_shutdown_neither_hurry_nor_break_it(tmp_path: Path) -> None:
    async with serving({"a": with_flags(OFFLOAD, *SLOW)}, tmp_path) as bench, bench.held_stream("a") as stream:
        bench.server.process.send_signal(signal.SIGTERM)
        await bench.server.wait_for_log("stopping ")
        for number in HARMLESS:
            bench.server.process.send_signal(number)
            await bench.server.wait_for_log(number.name)
        await bench.let_go("a")
        await stream.read()
        assert stream.is_complete

        async def ended() -> bool:
            # Not process.send_signal: it may fetch the exit code, which asyncio then misses.
            with suppress(ProcessLookupError):
                for number in HARMLESS:
                    os.kill(bench.server.process.pid, number)
            return bench.server.process.returncode is not None

        await eventually(ended, "the end")
        assert bench.server.process.returncode == 0


async def test_a_closed_terminal_does_not_reach_the_engines(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        own = os.getsid(bench.server.process.pid)
        family = bench.server.descendants()
        assert len(family) >= 2
        assert all(os.getsid(process.pid) != own for process in family)


async def test_sighup_while_it_starts(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(simulated_config({"a": OFFLOAD}, ledger=tmp_path / "gpu.json")))
    command = (sys.executable, "-m", "llmux", "serve", "-c", str(file))
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        await eventually(lambda: catches(process.pid, signal.SIGHUP), "the program has begun")
        async with asyncio.timeout(STOP_SECONDS):
            for number in HARMLESS:
                process.send_signal(number)
            while b"listening" not in await process.stderr.readline():
                for number in HARMLESS:
                    process.send_signal(number)
            process.terminate()
            await process.stderr.read()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_program_started_with_nohup_goes_on_ignoring_the_terminal(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(simulated_config({"a": OFFLOAD}, ledger=tmp_path / "gpu.json")))
    script = tmp_path / "nohup.sh"
    script.write_text(f"trap '' HUP; exec {shlex.quote(sys.executable)} -m llmux serve -c config.json")
    process = await asyncio.create_subprocess_exec(
        "sh", str(script), cwd=tmp_path, stderr=asyncio.subprocess.PIPE, env={**os.environ, **VIRTUAL_GPUS}
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(STOP_SECONDS):
            while b"listening" not in await process.stderr.readline():
                pass
            assert not catches(process.pid, signal.SIGHUP)
            process.send_signal(signal.SIGHUP)
            process.terminate()
            assert b"SIGHUP" not in await process.stderr.read()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    "closed", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("<&-", ">&-", "2>&-")), "<&- >&- 2>&-"]
)
async def test_standard_streams_that_are_closed_at_the_start(
    tmp_path: Path, unused_ports: tuple[int, int], closed: str
) -> None:
    config = simulated_config({"a": OFFLOAD}, ledger=tmp_path / "gpu.json", port=unused_ports[0])
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = f"exec {shlex.quote(sys.executable)} -m llmux serve -c config.json {closed}"
    process = await asyncio.create_subprocess_shell(command, cwd=tmp_path, env={**os.environ, **VIRTUAL_GPUS})
    try:
        async with http_client() as session:
            url = f"http://127.0.0.1:{unused_ports[0]}/v1/chat/completions"

            async def answers() -> bool:
                with suppress(OSError):
                    async with session.post(url, json=chat("a", "hello")) as answer:
                        return answer.status == 200
                return False

            await eventually(answers, "an answer")
        process.terminate()
        async with asyncio.timeout(STOP_SECONDS):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
async def test_a_command_that_fails_with_a_closed_stream_has_its_own_exit_code(tmp_path: Path, closed: str) -> None:
    command = f"exec {shlex.quote(sys.executable)} -m llmux check -c nowhere.json {closed}"
    process = await asyncio.create_subprocess_shell(command, cwd=tmp_path, stderr=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 1


async def test_the_log_of_a_server_says_what_sighup_did_not_do(tmp_path: Path) -> None:
    async with llmux_server(simulated_config({"a": OFFLOAD}), tmp_path) as server:
        server.process.send_signal(signal.SIGHUP)
        await server.wait_for_log("the configuration stays as it is: restart llmux to apply changes .*signal=SIGHUP")
