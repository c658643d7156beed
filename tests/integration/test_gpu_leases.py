"""``llmux run`` and ``/control/leases``: another program gets GPU memory as a model does, and nobody loses anything."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmux.simulation.gpus import LEDGER_VARIABLE
from llmux.simulation.ledger import Ledger
from tests.support.bench import DISCARD, HELD_TOKENS, OFFLOAD, SLOW, STOP, Bench, eventually, with_flags
from tests.support.command import run_llmux
from tests.support.fork_server import ForkedProcess, start_llmux
from tests.support.ledger_program import NAME
from tests.support.server import http_client, llmux_server, simulated_config

ROOT = Path(__file__).parents[2]
ENDED_BY_ITSELF = 3


class Leased:
    """One ``llmux run``, and what it has said so far."""

    def __init__(self, process: ForkedProcess) -> None:
        self.process = process
        self.said: list[str] = []

    async def read(self) -> None:
        async for line in self.process.stderr:
            self.said.append(line.decode().rstrip())

    async def until_holding(self) -> str:
        """The GPUs that its program sees."""
        async with asyncio.timeout(30):
            return (await self.process.stdout.readline()).decode().split()[1]

    async def code(self) -> int:
        async with asyncio.timeout(30):
            return await self.process.wait()

    def heard(self, text: str) -> bool:
        return any(text in line for line in self.said)


class Machine:
    """A server over one virtual GPU of 1,000 MiB."""

    def __init__(self, bench: Bench, directory: Path, tasks: asyncio.TaskGroup) -> None:
        self.bench = bench
        self.directory = directory
        self.ledger = str(directory / "gpu.json")
        self.end_file = directory / "end"
        self._tasks = tasks

    async def run(self, *options: str, program: tuple[str, ...] = (), mib: int = 800) -> Leased:
        """``llmux run`` of a program that holds so much until ``end_file`` exists."""
        command = (sys.executable, "-m", "tests.support.ledger_program", *program, self.ledger, str(mib))
        return await self.run_command(*options, "--", *command, str(self.end_file))

    async def run_command(self, *words: str) -> Leased:
        environment = {"PYTHONPATH": str(ROOT), "LLMUX_URL": self.bench.server.url}
        leased = Leased(await start_llmux("run", *words, directory=self.directory, environment=environment))
        self._tasks.create_task(leased.read())
        return leased

    def holds(self, mib: int = 800) -> bool:
        return any(one.model == NAME and one.mib == mib for one in Ledger(self.ledger).snapshot().allocations)

    async def leases(self) -> list[dict[str, Any]]:
        return list((await self.bench.call("GET /control/leases")).document["gpu_leases"])

    async def until_lease(self, state: str | None) -> None:
        """Until the only lease is in this state, or there is none."""

        async def reached() -> bool:
            return [one["state"] for one in await self.leases()] == ([] if state is None else [state])

        await eventually(reached, f"a GPU lease that is {state}")


@asynccontextmanager
async def machine(directory: Path, models: dict[str, dict[str, Any]], **top_level: Any) -> AsyncIterator[Machine]:
    ledger = Ledger(directory / "gpu.json").create(1000)
    # For its programs llmux has the variable, by which it could also read the GPU and place models on it.
    config = simulated_config(models, ledger=ledger.path, share_gpus=False, **top_level)
    variables = {LEDGER_VARIABLE: str(ledger.path)}
    async with (
        llmux_server(config, directory, environment=variables) as server,
        http_client() as session,
        asyncio.TaskGroup() as tasks,
    ):
        yield Machine(Bench(server, session, ledger, directory), directory, tasks)
    book = ledger.snapshot()
    assert not book.refused, "more was asked for than was free"
    assert not book.allocations


async def test_a_program_gets_the_gpu_while_twenty_clients_are_served(tmp_path: Path) -> None:
    models = {"a": OFFLOAD, "b": DISCARD, "c": STOP}
    async with machine(tmp_path, models) as one:

        async def client(number: int) -> None:
            for turn in range(3):
                await one.bench.expect("abc"[(number + turn) % 3], f"client {number} turn {turn}")

        async with asyncio.TaskGroup() as clients:
            for number in range(20):
                clients.create_task(client(number))
            leased = await one.run("--gpu-memory", "800MiB")
            await leased.until_holding()
            assert [each.model for each in one.bench.ledger.snapshot().allocations if each.mib > 100] == [NAME]
            one.end_file.touch()
            assert await leased.code() == ENDED_BY_ITSELF
        await one.until_lease(None)


async def test_who_holds_what_and_what_a_lease_waits_for_is_shown(tmp_path: Path) -> None:
    async with machine(tmp_path, {"a": with_flags(OFFLOAD, *SLOW)}) as one:
        async with one.bench.held_stream("a"):
            leased = await one.run("--gpu-memory", "800MiB", "--max-seconds", "1000")
            await eventually(lambda: leased.heard("waits for a to drain (1 request, "), "what it waits for")
            told = await run_llmux("status", directory=tmp_path, LLMUX_URL=one.bench.server.url)
            assert re.search(r"^GPU lease 1 \(python\S*\): waits for a to drain \(1 request, ", told.output, re.M), told
            (waiting,) = await one.leases()
            assert waiting["state"] == "waiting"
            assert waiting["waits"]["for"] == "drain"
            assert waiting["waits"]["models"] == ["a"]
        assert await leased.until_holding() == "None", "models are not placed: the program sees what llmux sees"
        (held,) = (await one.bench.status())["gpu_leases"]
        assert held["command"] == Path(sys.executable).name
        assert held["state"] == "held"
        assert held["gpu_memory_mib"] == 800
        assert 900 < held["ends_in_seconds"] <= 1000
        told = await run_llmux("status", directory=tmp_path, LLMUX_URL=one.bench.server.url)
        assert re.search(r"^GPU lease 1 \(python\S*\): held for \d+ s, ends in \d+ s$", told.output, re.M), told
        shown = await one.bench.call("GET /metrics")
        assert "lease" not in shown.text.replace("release", "").lower(), "labels come from the configuration alone"
        models = await one.bench.call("GET /v1/models")
        assert "lease" not in models.text.lower()
        asked = await one.bench.ask("GPU lease 1")
        assert asked.code == "model_not_found"
        one.end_file.touch()
        await leased.code()


async def test_memory_is_given_back_whichever_process_is_killed(tmp_path: Path) -> None:
    async with machine(tmp_path, {"a": OFFLOAD}) as one:
        for program in ((), ("--child",)):
            for victim in ("llmux run", "its program", "both"):
                leased = await one.run(program=program)
                await leased.until_holding()
                (command,) = psutil.Process(leased.process.pid).children()
                if victim != "its program":
                    leased.process.kill()
                if victim != "llmux run":
                    command.kill()
                assert await leased.code() in (-signal.SIGKILL, 128 + signal.SIGKILL)
                await one.bench.expect("a", f"{program} {victim}")
                assert not one.holds()


@pytest.mark.parametrize("victim", ["llmux run", "the client of the API"])
async def test_a_program_that_dies_while_it_waits_delays_nobody(tmp_path: Path, victim: str) -> None:
    async with machine(tmp_path, {"a": with_flags(OFFLOAD, *SLOW)}) as one:
        async with one.bench.held_stream("a") as stream:
            if victim == "llmux run":
                leased = await one.run()
                await eventually(lambda: leased.heard("waits for a to drain"), "what it waits for")
                leased.process.kill()
                await leased.code()
            else:
                body = {"command": "x"}
                url = f"{one.bench.server.url}/control/leases"
                async with one.bench.session.post(url, json=body) as answer:
                    assert json.loads(await answer.content.readline())["state"] == "waiting"
                    await one.bench.until_internal_state("a", "draining")
            await one.until_lease(None)
            await one.bench.let_go("a")
            await stream.read()
            assert stream.is_complete
        assert one.bench.starts("a") == 1, "the switch was called off, and the model stayed"
        assert await one.bench.process_state("a") == "running"


async def test_time_that_is_up_ends_the_program(tmp_path: Path) -> None:
    async with machine(tmp_path, {"a": OFFLOAD}) as one:
        leased = await one.run_command("--max-seconds", "0.1", "--", "sleep", "600")
        assert await leased.code() == 124
        assert leased.heard("its 0.1 s are over: the command is stopped")
        await one.until_lease(None)
        await one.bench.expect("a")


async def test_a_program_that_does_not_end_when_it_should_is_killed_with_all_that_it_has_started(
    tmp_path: Path,
) -> None:
    async with machine(tmp_path, {"a": OFFLOAD}, stop_timeout_seconds=0.2) as one:
        for number, program in enumerate([("--deaf",), ("--child", "--deaf")], start=1):
            leased = await one.run(program=program)
            await leased.until_holding()
            assert (await one.bench.call(f"DELETE /control/leases/{number}")).status == 200
            assert await leased.code() in (128 + signal.SIGTERM, 128 + signal.SIGKILL)
            await one.until_lease(None)
            assert not one.holds()
        await one.bench.expect("a")


async def test_the_operator_ends_a_lease(tmp_path: Path) -> None:
    async with machine(tmp_path, {"a": OFFLOAD}) as one:
        leased = await one.run()
        await leased.until_holding()
        waiting = await one.run()
        await eventually(lambda: waiting.heard("waits for GPU lease 1 to end"), "it waits for the other")
        assert (await one.bench.call("DELETE /control/leases/2")).status == 200
        assert await waiting.code() == 125
        assert waiting.heard("the operator has ended it; the command was not run")
        assert (await one.bench.call("DELETE /control/leases/1")).status == 200
        assert await leased.code() == 128 + signal.SIGTERM
        await one.until_lease(None)
        assert (await one.bench.call("DELETE /control/leases/1")).status == 404
        await one.bench.expect("a")


async def test_what_cannot_be_had_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with machine(tmp_path, {"a": OFFLOAD}, memory_wait_seconds=0.2) as one:
        holder = await one.run()
        await holder.until_holding()
        late = await one.run("--wait-seconds", "0.1")
        assert await late.code() == 75
        assert late.heard("it was not its turn within 0.1 s; the command was not run"), late.said
        assert await (await one.run_command("--", "no-such-program-here")).code() == 127
        one.end_file.touch()
        await holder.code()
        Ledger(one.ledger).allocate(os.getpid(), 500, "somebody else")
        refused = await one.run("--gpu-memory", "800MiB")
        assert await refused.code() == 125
        assert refused.heard("500 MiB are free, 800 wanted; held by somebody else"), refused.said
        Ledger(one.ledger).release(os.getpid())
        manual = await one.bench.call("POST /control/mode", {"mode": "manual"})
        assert manual.status == 200
        pinned = await one.run()
        assert await pinned.code() == 125
        assert pinned.heard("llmux is in manual mode")


async def test_a_lease_that_never_fits_is_refused_at_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gpu-0.json").create(1000)
    flags = ("--sim-gpu-ledger", str(tmp_path / "gpu-{gpu}.json"), "--sim-gpu-memory", "300")
    models = {name: with_flags({**STOP, "gpu_memory": "300MiB"}, *flags) for name in "abc"}
    config = simulated_config(models, gpus=[{"memory": 1000 << 20}])
    variables = {LEDGER_VARIABLE: str(tmp_path / "gpu-{gpu}.json")}
    async with (
        llmux_server(config, tmp_path, environment=variables) as server,
        http_client() as session,
        asyncio.TaskGroup() as tasks,
    ):
        one = Machine(Bench(server, session, ledger, tmp_path), tmp_path, tasks)
        one.ledger = str(tmp_path / "gpu-{gpu}.json")
        large = await one.run("--gpu-memory", "2GiB")
        assert await large.code() == 125
        assert large.heard("there is no GPU with 2048 MiB: GPU 0 has 1000 MiB; ask for less")
        for name in "abc":
            await one.bench.expect(name)
        leased = await one.run("--gpu-memory", "400MiB", mib=400)
        assert await leased.until_holding() == "0"
        for name in "ab":
            await one.bench.expect(name, "two models at a time fit beside the program")
        assert [entry["gpu_mib"] for entry in await one.leases()] == [{"0": 400}]
        one.end_file.touch()
        await leased.code()
    assert not ledger.snapshot().refused


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_program_outlives_llmux(tmp_path: Path, how: signal.Signals) -> None:
    """With llmux gone nobody else needs the memory."""
    async with machine(tmp_path, {"a": OFFLOAD}) as one:
        leased = await one.run()
        await leased.until_holding()
        one.bench.server.process.send_signal(how)
        async with asyncio.timeout(30):
            await one.bench.server.process.wait()
        await eventually(lambda: leased.heard("the command goes on without a GPU lease"), "it says so")
        assert one.holds()
        one.end_file.touch()
        assert await leased.code() == ENDED_BY_ITSELF


@pytest.mark.parametrize("phase", ["queued", "draining", "ending"])
async def test_llmux_that_is_killed_leaves_no_program_waiting(tmp_path: Path, phase: str) -> None:
    models = {"a": with_flags(OFFLOAD, *SLOW)}
    async with machine(tmp_path, models, stop_timeout_seconds=0.3) as one:
        stream = await one.bench.begin("a", stream=True, max_tokens=HELD_TOKENS)
        await stream.read_head()
        first = await one.run(program=("--deaf",))
        await eventually(lambda: first.heard("waits for a to drain"), "the drain")
        runs = [first]
        if phase == "queued":
            runs.append(await one.run())
            await eventually(lambda: runs[1].heard("goes first"), "the second lease")
        if phase == "ending":
            stream.leave()
            await first.until_holding()
            assert (await one.bench.call("DELETE /control/leases/1")).status == 200
            await eventually(lambda: first.heard("the command is stopped"), "its end")
        one.bench.server.process.kill()
        expected = 128 + signal.SIGKILL if phase == "ending" else 125
        assert [await each.code() for each in runs] == [expected] * len(runs), [each.said for each in runs]
        assert not one.holds()
        stream.leave()


async def test_llmux_run_that_is_killed_while_its_program_ends_leaves_nothing(tmp_path: Path) -> None:
    async with machine(tmp_path, {"a": OFFLOAD}, stop_timeout_seconds=600) as one:
        leased = await one.run(program=("--child", "--deaf"))
        await leased.until_holding()
        assert (await one.bench.call("DELETE /control/leases/1")).status == 200
        await eventually(lambda: leased.heard("the command is stopped"), "its end")
        await one.until_lease("ending")
        leased.process.kill()
        await one.bench.expect("a")
        assert not one.holds()


async def test_signals_reach_the_command(tmp_path: Path) -> None:
    async with machine(tmp_path, {"a": OFFLOAD}) as one:
        leased = await one.run()
        await leased.until_holding()
        leased.process.send_signal(signal.SIGTERM)
        assert await leased.code() == 128 + signal.SIGTERM
        await one.until_lease(None)
