"""What a switch adds over the engine's own sleep and wake, with simulated engines that take no time.

One ``llmux serve`` over two engines (``offload+keep_running``, ``min_active_seconds: 0``) gets requests for one and the
other in turn, so that each request needs a switch. Beside each such request, in the same round, the bench sends the
engine of a third, lonely process the same calls itself (sleep, wake, one completion) over fresh connections, as llmux
does: that is what a switch and a request cost without llmux. Added time = the difference.

    python bench/switch/run.py [--switches 1000]
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.server import llmux_server, simulated_config
from tests.support.simulated_engine import EngineProcess, engine

MODELS = ("a", "b")
ZERO = ("--latency-ms", "0", "--token-ms", "0", "--sim-reload-ms", "0")
BODY = {"prompt": "hello", "max_tokens": 1}
P50_BAR_MS, P99_BAR_MS = 5.0, 20.0


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


async def measure(switches: int) -> list[float]:
    """The added milliseconds of each switch."""
    models = {name: {"eviction": "offload+keep_running", "extra_args": ZERO} for name in MODELS}
    config = simulated_config(models)
    added = []
    with tempfile.TemporaryDirectory() as directory:
        async with (
            llmux_server(config, Path(directory)) as server,
            engine("--enable-sleep-mode", *ZERO, environment={"VLLM_SERVER_DEV_MODE": "1"}) as process,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as fresh,
            aiohttp.ClientSession() as session,
        ):
            for model in MODELS * 2:
                await switched(session, server.url, model)
                await alone(fresh, process)
            for number in range(switches):
                own = await alone(fresh, process)
                total = await switched(session, server.url, MODELS[number % 2])
                added.append((total - own) * 1000)
    return added


def main() -> int:
    """Print the figures; exit code 1 if a bar is missed and ``--check`` was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--switches", type=int, default=1000)
    parser.add_argument("--check", action="store_true", help="fail where a bar is missed")
    options = parser.parse_args()
    added = sorted(asyncio.run(measure(options.switches)))
    figures = {
        "switches": len(added),
        "added_ms_p50": round(statistics.median(added), 2),
        "added_ms_p99": round(added[int(len(added) * 0.99)], 2),
        "added_ms_max": round(added[-1], 2),
        "bars_ms": {"p50": P50_BAR_MS, "p99": P99_BAR_MS},
    }
    print(json.dumps(figures))
    missed = figures["added_ms_p50"] > P50_BAR_MS or figures["added_ms_p99"] > P99_BAR_MS
    return int(missed and options.check)


if __name__ == "__main__":
    raise SystemExit(main())
