"""Whether ``llmux simulate`` and ``llmux replay`` agree about the same five minutes.

One ``llmux serve`` over simulated engines of the simulator's speed gets the trace in real time. The simulator gets the
same trace and configuration, and the measured duration of each switch. Without traces, synthetic traffic for two models
is used. Which of two events comes first by some milliseconds can decide a switch, and thereby all later ones. So the
simulation is repeated with all times shifted a little, to see how far apart such coincidences alone lead.

With --fleet, models of two sizes share one GPU, and two of them, which would fit beside each other, are never on it
together. Where several leave for one, llmux's counters do not tell their evictions apart, so the durations count that
the engines were given.

With --kv-kept, the engines read the KV cache of frozen requests back from host memory, in a tenth of the time that its
recompute takes.

    python bench/simulate/agreement.py [NAME=FILE ...] [--thin P] [--skip S] [--seconds 300] [--policy fifo] [--check]
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import aiohttp
from rich.console import Console

from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.simulation.engine.core import OFFLOADED_SHARE
from llmux.simulation.figures import RunFigures
from llmux.simulation.replay import Replayed, SwitchCounts, read_switches, replay
from llmux.simulation.tables import render
from llmux.simulation.traces import read_trace
from llmux.simulation.traffic import Selection, TrafficRequest, merge, models_of, select
from llmux.simulation.virtual.costs import MeasuredSwitches
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.run import canary_seconds
from llmux.simulation.virtual.scenario import Scenario, build_scenario, simulate, summarise
from tests.support.server import llmux_server, simulated_config

BATCH_LIMIT = 32
EVICT_MS, WAKE_MS = 500, 1500
ENGINE = (
    "--latency-ms",
    "0",
    "--token-ms",
    "25",
    "--sim-full-batch-token-ms",
    "50",
    "--max-num-seqs",
    str(BATCH_LIMIT),
)
SPEEDS = ("--sim-prefill-tokens-per-second", "8000", "--sim-sleep-ms", str(EVICT_MS), "--sim-wake-ms", str(WAKE_MS))
KEEPS_KV = ("--kv-offloading-size", "1")
MEASURED_CANARY_SECONDS = 0.1
"""What the canary after a wake was measured to take if nothing is frozen."""
COSTS = f"evict={EVICT_MS / 1000},wake={WAKE_MS / 1000 + MEASURED_CANARY_SECONDS}"
SIMULATED_CANARY_SECONDS = canary_seconds(EngineSpeed())
WAIT_BAR, SWITCHES_BAR = 0.10, 0.05
PAUSES = {"busy": 1.5, "bursty": 15.0}
"""Seconds between the arrivals of each model's requests, or of its bursts, on average."""
FLEET_PAUSES = {**PAUSES, "small": 8.0}
FLEET_MIB = {"busy": 600, "bursty": 600, "small": 300}
FLEET: dict[str, Any] = {
    "gpus": [{"memory": "1000MiB"}],
    "groups": {"apart": {"models": ["bursty", "small"], "exclusive": True}},
}
WATCH_SECONDS = 1.0
JITTER_SECONDS, JITTERED_RUNS = 0.02, 30
"""By how much switches and arrivals are shifted, and how often."""


def synthetic(seconds: float, seed: int, pauses: Mapping[str, float]) -> list[TrafficRequest]:
    """Traffic for some models, one of them with bursts of requests."""
    chance = random.Random(seed)
    requests = []
    for model, pause in pauses.items():
        at = 0.0
        while (at := at + chance.expovariate(1 / pause)) < seconds:
            burst = range(chance.randint(1, 6) if model == "bursty" else 1)
            requests += [TrafficRequest(at, model, chance.randint(50, 2000), chance.randint(5, 150)) for _ in burst]
    return sorted(requests, key=lambda request: request.at_seconds)


def configuration(models: list[str], policy: str, drain: str, *, is_fleet: bool, keeps_kv: bool) -> dict[str, object]:
    """The configuration of both."""
    flags = [*ENGINE, *SPEEDS, *(KEEPS_KV if keeps_kv else ())]
    settings = {"eviction": "offload+keep_running", "drain": drain, "extra_args": flags}
    sizes = {name: {"gpu_memory": f"{FLEET_MIB[name]}MiB"} if is_fleet else {} for name in models}
    described = {name: {**settings, **sizes[name]} for name in models}
    times = {"policy_type": policy, "min_active_seconds": 5.0}
    return simulated_config(described, policy=times, warmup=True, **(FLEET if is_fleet else {}))


async def replayed(config: dict[str, object], requests: list[TrafficRequest]) -> tuple[Replayed, list[SwitchCounts]]:
    """The replay, and llmux's counts before the first switch and after each one."""
    counts: list[SwitchCounts] = []
    with tempfile.TemporaryDirectory() as directory:
        async with llmux_server(config, Path(directory)) as server, asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch(server.url, counts))
            real = await replay(server.url, requests)
            watching.cancel()
            return real, counts


async def watch(url: str, counts: list[SwitchCounts]) -> None:
    """Record llmux's counts whenever they change, which is seldom more than one switch at a time."""
    async with aiohttp.ClientSession(url) as session:
        while True:
            present = await read_switches(session)
            if not counts or present.by_model != counts[-1].by_model:
                counts.append(present)
            await asyncio.sleep(WATCH_SECONDS)


def measured(counts: Sequence[SwitchCounts]) -> MeasuredSwitches:
    """The duration of each switch, without the recompute of frozen requests, which the simulator adds itself."""
    evictions: list[float] = []
    wakes: list[float] = []
    switches = [after.since(before) for before, after in pairwise(counts)]
    # The fastest canary was one with nothing frozen before it.
    least_canary = min((one.canary_seconds / one.by_model.total() for one in switches), default=0.0)
    for one in switches:
        number = one.by_model.total()
        evictions += [one.leaving_seconds / max(1, one.evictions)] * one.evictions
        wakes += [(one.waking_seconds - one.canary_seconds) / number + least_canary] * number
    return MeasuredSwitches(evictions, wakes)


def jittered(scenario: Scenario, requests: list[TrafficRequest], seed: int) -> tuple[Scenario, list[TrafficRequest]]:
    """The same with all times shifted at random by a little."""
    chance = random.Random(seed)

    def jitter(seconds: float) -> float:
        return max(0.0, seconds + chance.uniform(-JITTER_SECONDS, JITTER_SECONDS))

    taken = scenario.measured or MeasuredSwitches()
    moved = MeasuredSwitches(list(map(jitter, taken.evictions)), list(map(jitter, taken.wakes)))
    later = [replace(request, at_seconds=jitter(request.at_seconds)) for request in requests]
    return replace(scenario, measured=moved), sorted(later, key=lambda request: request.at_seconds)


def simulated(scenario: Scenario, requests: list[TrafficRequest], policy: str) -> RunFigures:
    """The simulator's figures."""
    return summarise("simulate", requests, simulate(scenario, requests, PolicyType(policy)))


def apart(one: float, other: float) -> float:
    """The difference relative to the second."""
    return abs(one - other) / max(other, 1e-9)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", metavar="TRACE")
    parser.add_argument("--thin", type=float, default=1.0)
    parser.add_argument("--skip", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--policy", default="fifo", choices=list(PolicyType))
    parser.add_argument("--drain", default="wait", choices=["wait", "freeze"])
    parser.add_argument("--fleet", action="store_true", help="three models of two sizes on one GPU, and a group")
    parser.add_argument("--kv-kept", action="store_true", help="KV cache outlives a switch; for --drain freeze")
    parser.add_argument("--check", action="store_true", help="fail where a bar is missed")
    return parser.parse_args()


def main() -> int:
    """Print both (tables to standard error) and how far they are apart; ``--check``: exit code 1 if a bar is missed."""
    options = parse_arguments()
    if options.fleet and options.traces:
        raise SystemExit("--fleet has traffic of its own")
    if options.traces:
        selection = Selection(options.skip, options.seconds, options.thin, seed=options.seed)
        requests = select(merge([read_trace(trace) for trace in options.traces]), selection)
    else:
        requests = synthetic(options.seconds, options.seed, FLEET_PAUSES if options.fleet else PAUSES)
    kept = options.kv_kept
    config = configuration(models_of(requests), options.policy, options.drain, is_fleet=options.fleet, keeps_kv=kept)
    speed = EngineSpeed(recompute_share=OFFLOADED_SHARE if kept else 1.0)
    replayed_run, counts = asyncio.run(replayed(config, requests))
    settings = loads(json.dumps(config)).settings
    costs, taken = COSTS, None
    if not options.fleet:
        costs = replayed_run.switches.mean_costs_without_recompute(SIMULATED_CANARY_SECONDS) or COSTS
        taken = measured(counts)
    scenario = replace(build_scenario(settings, [costs], speed), measured=taken)
    runs = replayed_run.figures("replay"), simulated(scenario, requests, options.policy)
    Console(stderr=True, width=130).print(render(runs, None), highlight=False)
    real, virtual = (run.total for run in runs)
    others = [simulated(*jittered(scenario, requests, seed), options.policy).total for seed in range(JITTERED_RUNS)]
    waits, switch_counts = sorted(one.wait.mean or 0.0 for one in others), sorted(one.switches for one in others)
    with_given_costs = simulated(build_scenario(settings, [COSTS], speed), requests, options.policy).total
    wait, switches = apart(real.wait.mean or 0.0, virtual.wait.mean or 0.0), apart(real.switches, virtual.switches)
    figures = {
        "requests": len(requests),
        "unserved": {"replay": real.unserved, "simulate": virtual.unserved},
        "mean_wait_seconds": {"replay": round(real.wait.mean or 0, 3), "simulate": round(virtual.wait.mean or 0, 3)},
        "costs": {
            "taken": costs,
            "given": COSTS,
            "mean_wait_with_given": round(with_given_costs.wait.mean or 0, 3),
        },
        "mean_ttft_seconds": {"replay": round(real.ttft.mean or 0, 3), "simulate": round(virtual.ttft.mean or 0, 3)},
        "mean_latency_seconds": {
            "replay": round(real.latency.mean or 0, 3),
            "simulate": round(virtual.latency.mean or 0, 3),
        },
        "switches": {"replay": real.switches, "simulate": virtual.switches},
        "shaken": {
            "times": JITTERED_RUNS,
            "by_seconds": JITTER_SECONDS,
            "mean_wait_seconds": [round(wait, 3) for wait in (waits[0], median(waits), waits[-1])],
            "switches": [switch_counts[0], median(switch_counts), switch_counts[-1]],
        },
        "apart": {"mean_wait": round(wait, 4), "switches": round(switches, 4)},
        "bars": {"mean_wait": WAIT_BAR, "switches": SWITCHES_BAR},
        "late_seconds": round(replayed_run.late_seconds, 3),
    }
    print(json.dumps(figures, indent=2))
    return int(options.check and (wait > WAIT_BAR or switches > SWITCHES_BAR))


if __name__ == "__main__":
    raise SystemExit(main())
