"""What a switch adds over the engine's own sleep and wake, with simulated engines that take no time.

Each candidate is a ``llmux serve`` over two engines (``offload+keep_running``, ``min_active_seconds: 0``) that gets
requests for one and the other in turn, so that each request needs a switch. In the same round the bench sends the
engine of a lonely process the same calls itself (sleep, wake, one completion) over a kept connection: a switch and a
request cost that without llmux. Added time = the difference. All candidates take part in every round, each of which
takes some milliseconds: what the machine does meanwhile, it does to all of them.

    python bench/switch/run.py [--switches 1000] [--python OTHER/bin/python]

``--python`` names the interpreter of another llmux (another version, or a compiled one), for the same rounds.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.conditions import describe_machine, describe_python, percentile
from bench.proxies import own_cpu_microseconds
from tests.support.server import LISTENING, simulated_config
from tests.support.simulated_engine import EngineProcess, engine

MODELS = ("a", "b")
ZERO = ("--latency-ms", "0", "--token-ms", "0", "--sim-reload-ms", "0")
BODY = {"prompt": "hello", "max_tokens": 1}
BARS_MS = {"always": (5.0, 20.0), "off": (4.0, 19.0)}
"""p50 and p99 of what is added, by ``canary``."""
START_SECONDS = 60.0


@dataclass(slots=True)
class Candidate:
    """A llmux and how it checks its engines."""

    python: str
    canary: str
    url: str = ""
    pid: int = 0
    seconds: list[float] = field(default_factory=list)
    """Of each request that needed a switch."""
    added_seconds: list[float] = field(default_factory=list)
    """The same without what the lonely engine took in the same round."""
    cpu_seconds: float = 0.0
    """Processor time of llmux itself, for all of these."""


@asynccontextmanager
async def serving(candidate: Candidate, directory: Path) -> AsyncIterator[None]:
    """The candidate's server; its engines are those of this interpreter's llmux, as the lonely one is."""
    models = {name: {"eviction": "offload+keep_running", "extra_args": ZERO} for name in MODELS}
    file = directory / "config.json"
    file.write_text(json.dumps(simulated_config(models, canary=candidate.canary)))
    command = (candidate.python, "-m", "llmux", "serve", "-c", str(file))
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    async with asyncio.TaskGroup() as tasks:
        try:
            async with asyncio.timeout(START_SECONDS):
                while (found := LISTENING.search((await process.stderr.readline()).decode())) is None:
                    pass
            # A full pipe would hold up what writes its log.
            tasks.create_task(process.stderr.read())
            candidate.url, candidate.pid = found[1], process.pid
            yield
            candidate.cpu_seconds += own_cpu_microseconds(process.pid) / 1e6
        finally:
            process.terminate()
            await process.wait()


async def alone(session: aiohttp.ClientSession, process: EngineProcess) -> float:
    """Seconds for one sleep, one wake and one completion, asked for directly."""
    began_at = perf_counter()
    for path, body in (("/sleep?level=1", None), ("/wake_up", None), ("/v1/completions", BODY)):
        async with session.post(process.url(path), json=body) as response:
            assert response.status == 200, await response.text()
            await response.read()
    return perf_counter() - began_at


async def switched(session: aiohttp.ClientSession, url: str, model: str) -> float:
    """Seconds for one completion that needs a switch."""
    began_at = perf_counter()
    async with session.post(f"{url}/v1/completions", json={"model": model, **BODY}) as response:
        assert response.status == 200, await response.text()
        assert "x-llmux-switch-ms" in response.headers, "this request needed no switch"
        await response.read()
    return perf_counter() - began_at


async def measure(candidates: list[Candidate], switches: int) -> list[float]:
    """Fill in the candidates' times; returns those of the lonely engine."""
    own = []
    async with AsyncExitStack() as stack:
        for candidate in candidates:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            await stack.enter_async_context(serving(candidate, directory))
        environment = {"VLLM_SERVER_DEV_MODE": "1"}
        process = await stack.enter_async_context(engine("--enable-sleep-mode", *ZERO, environment=environment))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        for model in MODELS * 2:
            for candidate in candidates:
                await switched(session, candidate.url, model)
            await alone(session, process)
        for candidate in candidates:
            candidate.cpu_seconds -= own_cpu_microseconds(candidate.pid) / 1e6
        for number in range(switches):
            own.append(await alone(session, process))
            for candidate in candidates:
                candidate.seconds.append(await switched(session, candidate.url, MODELS[number % 2]))
                candidate.added_seconds.append(candidate.seconds[-1] - own[-1])
    return own


def report(candidate: Candidate, own: list[float]) -> bool:
    """Print a candidate's line; whether it has held its bars."""
    added_ms = [seconds * 1000 for seconds in candidate.added_seconds]
    quiet_ms = (percentile(candidate.seconds, 0.1) - percentile(own, 0.1)) * 1000
    figures = {
        "canary": candidate.canary,
        "added_ms_p50": round(statistics.median(added_ms), 2),
        "added_ms_p99": round(percentile(added_ms, 0.99), 2),
        # Of the tenth of the rounds in which each was least disturbed.
        "added_ms_p10_of_each": round(quiet_ms, 2),
        "cpu_ms": round(candidate.cpu_seconds * 1000 / len(own), 2),
        "bars_ms": BARS_MS[candidate.canary],
        "python": candidate.python,
    }
    print(json.dumps(figures))
    p50_bar, p99_bar = BARS_MS[candidate.canary]
    return figures["added_ms_p50"] <= p50_bar and figures["added_ms_p99"] <= p99_bar


def main() -> int:
    """Print the figures; exit code 1 if a bar is missed and ``--check`` was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--switches", type=int, default=1000, help="of each candidate")
    parser.add_argument("--python", action="append", default=[], help="an interpreter that has another llmux")
    parser.add_argument("--check", action="store_true", help="fail where a bar is missed")
    options = parser.parse_args()
    pythons = [sys.executable, *options.python]
    candidates = [Candidate(python, canary) for python in pythons for canary in BARS_MS]
    print(describe_machine())
    print(*map(describe_python, pythons), sep="\n")
    own = asyncio.run(measure(candidates, options.switches))
    print(json.dumps({"rounds": len(own), "engine_alone_ms_p50": round(statistics.median(own) * 1000, 2)}))
    passed = [report(candidate, own) for candidate in candidates]
    return int(options.check and not all(passed))


if __name__ == "__main__":
    raise SystemExit(main())
