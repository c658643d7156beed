"""``llmux demo`` as a process: its figures, its end, and that it leaves nothing behind."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest

from llmux.simulation.engine.text import expected_text
from tests.support.command import run_llmux

DEADLINE_SECONDS = 40.0


class DemoProcess:
    """A running demo, and every process it was seen to have."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.family: dict[int, psutil.Process] = {}

    def record_processes(self) -> None:
        """Add the present processes to the family."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self.family[child.pid] = child

    async def read_until(self, pattern: str) -> re.Match[str]:
        """Read standard output up to a line that matches."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            async for line in self.process.stdout:
                if match := re.search(pattern, line.decode()):
                    return match
        raise AssertionError(f"the demo ended without writing {pattern!r}")

    async def end(self) -> tuple[int, str]:
        """Wait for the end; the exit code, and the rest of standard output."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            output, _ = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, output.decode()

    def living(self) -> list[psutil.Process]:
        """Those of its processes that still run."""
        return [one for one in self.family.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def leftovers(directory: Path) -> list[str]:
    """Files in the directory, and processes whose command line names it, as the engines' do."""
    found = [str(path) for path in directory.iterdir()]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        found += [" ".join(words)] if any(str(directory) in word for word in words) else []
    return found


@asynccontextmanager
async def demo(directory: Path, *arguments: str) -> AsyncIterator[DemoProcess]:
    """A demo with a directory of its own for temporary files, which must be empty when it has ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "llmux",
        "demo",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(directory)},
    )
    running = DemoProcess(process)
    try:
        yield running
        assert running.living() == []
        assert leftovers(directory) == []
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        for one in running.living():
            one.kill()


async def test_a_short_run_loses_nothing(tmp_path: Path) -> None:
    async with demo(tmp_path, "--seconds", "3", "--json") as running:
        code, output = await running.end()
    figures = json.loads(output)
    assert code == 0, figures
    requests = figures["requests"]
    assert figures["ok"]
    assert figures["problems"] == []
    assert (requests["lost"], requests["wrong"], requests["cut_short"]) == (0, 0, 0)
    assert requests["sent"] == requests["answered"] + requests["left"] > 10
    assert 0 < requests["streamed"] < requests["sent"]
    assert figures["switches"]["count"] >= 3
    assert 0 <= figures["wait_seconds"]["p50"] <= figures["wait_seconds"]["p99"] <= figures["seconds"]
    shares = figures["time_share"]
    assert shares["serving"] > 0
    assert shares["switching"] > 0
    assert shares["serving"] + shares["switching"] + shares["idle"] == pytest.approx(1, abs=0.001)
    [gpu] = figures["gpus"]
    assert gpu["over_commitments"] == 0
    assert 0 < gpu["peak_mib"] <= gpu["capacity_mib"]
    assert all(model["brought_in"] >= 1 for model in figures["models"].values())


async def test_a_short_mixed_run_loses_nothing(tmp_path: Path) -> None:
    async with demo(tmp_path, "--mixed", "--seconds", "2", "--json") as running:
        code, output = await running.end()
    figures = json.loads(output)
    assert code == 0, figures
    assert figures["problems"] == []
    assert figures["requests"]["sent"] == figures["requests"]["answered"] + figures["requests"]["left"] > 10
    assert [gpu["over_commitments"] for gpu in figures["gpus"]] == [0]
    assert set(figures["models"]) == {"chat", "embed", "images"}
    assert all(model["answered"] and model["brought_in"] for model in figures["models"].values())


async def test_a_short_run_on_two_gpus_loses_nothing_and_uses_both(tmp_path: Path) -> None:
    async with demo(tmp_path, "--gpus", "2", "--seconds", "2", "--json") as running:
        code, output = await running.end()
    figures = json.loads(output)
    assert code == 0, figures
    assert figures["problems"] == []
    assert figures["requests"]["sent"] == figures["requests"]["answered"] + figures["requests"]["left"] > 10
    assert [gpu["over_commitments"] for gpu in figures["gpus"]] == [0, 0]
    assert all(gpu["peak_mib"] > 13 << 10 for gpu in figures["gpus"]), "more than any of the small ones"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
async def test_an_interrupted_run_sums_up_and_says_so(tmp_path: Path, number: signal.Signals) -> None:
    async with demo(tmp_path, "--seconds", "60") as running:
        await running.read_until(r"serving \d")
        running.record_processes()
        assert running.family
        running.process.send_signal(number)
        code, output = await running.end()
    assert code == 128 + number
    assert "interrupted, none lost until then" in output


async def test_serving_answers_a_request_and_stops_at_sigterm(tmp_path: Path) -> None:
    async with demo(tmp_path, "--serve") as running:
        url = (await running.read_until(r"listening on (http://\S+)"))[1]
        await running.read_until(f"curl {re.escape(url)}/v1/chat/completions")
        messages = [{"role": "user", "content": "Hi"}]
        async with aiohttp.ClientSession(url) as session:
            async with session.post("/v1/chat/completions", json={"model": "qwen", "messages": messages}) as response:
                answer = await response.json()
                assert response.status == 200, answer
            async with session.get("/") as page:
                assert page.status == 200
                assert page.content_type == "text/html"
        assert answer["choices"][0]["message"]["content"] == expected_text("qwen", "Hi")
        running.record_processes()
        assert len(running.family) >= 2
        running.process.send_signal(signal.SIGTERM)
        code, _ = await running.end()
    assert code == 0


async def test_a_summary_of_no_traffic_is_refused(tmp_path: Path) -> None:
    ended = await run_llmux("demo", "--serve", "--json", directory=tmp_path, TMPDIR=str(tmp_path))
    assert ended.code == 2
    assert leftovers(tmp_path) == []
