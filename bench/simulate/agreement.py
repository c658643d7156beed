"""Whether ``llmux simulate`` and ``llmux replay`` agree about the same five minutes.

One ``llmux serve`` over simulated engines of the simulator's speed gets the trace in real time; the simulator gets the
same trace and configuration, and the switch costs that llmux measured meanwhile. Without traces, traffic for two models
is made up.

    python bench/simulate/agreement.py [NAME=FILE ...] [--thin P] [--skip S] [--seconds 300] [--policy fifo] [--check]
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

from rich.console import Console

from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.simulation.replay.run import Replay, Replayed
from llmux.simulation.replay.switches import SwitchCounts
from llmux.simulation.report.figures import Figures, RunFigures
from llmux.simulation.report.table import render
from llmux.simulation.virtual.costs import SwitchCost
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.place import question_seconds
from llmux.simulation.virtual.scenario import build_scenario, simulate, summarise
from llmux.simulation.workload.call import TracedCall
from llmux.simulation.workload.reading import read_trace
from llmux.simulation.workload.selection import Selection, merge, models_of, select
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
CANARY_SECONDS = 0.1
"""What llmux's question after a wake was measured to take, where nothing is frozen."""
COSTS = f"evict={EVICT_MS / 1000},wake={WAKE_MS / 1000 + CANARY_SECONDS}"
WAIT_BAR, SWITCHES_BAR = 0.10, 0.05
SHAKEN_SECONDS, SHAKEN_TIMES = 0.02, 30
"""By how much switches and arrivals are moved, and how often, to see how much depends on moments."""


def made_up(seconds: float, seed: int) -> list[TracedCall]:
    """A busy model, and one that is asked in bursts."""
    chance = random.Random(seed)
    calls = []
    for model, pause in (("busy", 1.5), ("bursty", 15.0)):
        at = 0.0
        while (at := at + chance.expovariate(1 / pause)) < seconds:
            burst = range(1 if model == "busy" else chance.randint(1, 6))
            calls += [TracedCall(at, model, chance.randint(50, 2000), chance.randint(5, 150)) for _ in burst]
    return sorted(calls, key=lambda call: call.at_seconds)


def configuration(models: list[str], policy: str, drain: str) -> dict[str, object]:
    """The one that both get."""
    settings = {"eviction": "offload+keep_running", "drain": drain, "extra_args": [*ENGINE, *SPEEDS]}
    times = {"policy_type": policy, "min_active_seconds": 5.0}
    return simulated_config(dict.fromkeys(models, settings), policy=times, warmup=True)


async def replayed(config: dict[str, object], calls: list[TracedCall]) -> Replayed:
    """What really happens."""
    with tempfile.TemporaryDirectory() as directory:
        async with llmux_server(config, Path(directory)) as server:
            return await Replay(server.url, calls).run()


def simulated(config: dict[str, object], calls: list[TracedCall], policy: str, costs: str) -> RunFigures:
    """What the simulator says."""
    scenario = build_scenario(loads(json.dumps(config)).settings, [costs])
    return summarise("simulate", calls, simulate(scenario, calls, PolicyType(policy)))


def shaken(config: dict[str, object], calls: list[TracedCall], policy: str, costs: str, seed: int) -> Figures:
    """What the simulator says where everything comes a little earlier or later than it did."""
    chance = random.Random(seed)

    def shake(seconds: float) -> float:
        return max(0.0, seconds + chance.uniform(-SHAKEN_SECONDS, SHAKEN_SECONDS))

    scenario = build_scenario(loads(json.dumps(config)).settings, [costs])
    moved = {
        model: SwitchCost(shake(cost.evict), shake(cost.wake), shake(cost.cold))
        for model, cost in scenario.costs.items()
    }
    later = [replace(call, at_seconds=shake(call.at_seconds)) for call in calls]
    later.sort(key=lambda call: call.at_seconds)
    return summarise("shaken", later, simulate(replace(scenario, costs=moved), later, PolicyType(policy))).total


def measured(switches: SwitchCounts, drain: str) -> str | None:
    """What llmux measured, without the reading again of frozen requests, which the simulator adds itself."""
    if drain == "wait":
        return switches.mean_costs
    return switches.mean_costs_if_asking_takes(question_seconds(EngineSpeed()))


def apart(one: float, other: float) -> float:
    """How far the two are from each other, in parts of the second."""
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
    parser.add_argument("--check", action="store_true", help="fail where a bar is missed")
    return parser.parse_args()


def main() -> int:
    """Print both (tables to standard error) and how far they are apart; ``--check``: exit code 1 if a bar is missed."""
    options = parse_arguments()
    if options.traces:
        selection = Selection(options.skip, options.seconds, options.thin, seed=options.seed)
        calls = select(merge([read_trace(trace) for trace in options.traces]), selection)
    else:
        calls = made_up(options.seconds, options.seed)
    config = configuration(models_of(calls), options.policy, options.drain)
    really = asyncio.run(replayed(config, calls))
    costs = measured(really.switches, options.drain) or COSTS
    runs = really.figures("replay"), simulated(config, calls, options.policy, costs)
    Console(stderr=True, width=130).print(render(runs, None), highlight=False)
    real, virtual = (run.total for run in runs)
    others = [shaken(config, calls, options.policy, costs, seed) for seed in range(SHAKEN_TIMES)]
    waits, counts = sorted(one.wait.mean or 0.0 for one in others), sorted(one.switches for one in others)
    with_given_costs = simulated(config, calls, options.policy, COSTS).total
    wait, switches = apart(real.wait.mean or 0.0, virtual.wait.mean or 0.0), apart(real.switches, virtual.switches)
    figures = {
        "requests": len(calls),
        "unserved": {"replay": real.unserved, "simulate": virtual.unserved},
        "mean_wait_seconds": {"replay": round(real.wait.mean or 0, 3), "simulate": round(virtual.wait.mean or 0, 3)},
        "costs": {"measured": costs, "given": COSTS, "mean_wait_with_given": round(with_given_costs.wait.mean or 0, 3)},
        "mean_ttft_seconds": {"replay": round(real.ttft.mean or 0, 3), "simulate": round(virtual.ttft.mean or 0, 3)},
        "mean_latency_seconds": {
            "replay": round(real.latency.mean or 0, 3),
            "simulate": round(virtual.latency.mean or 0, 3),
        },
        "switches": {"replay": real.switches, "simulate": virtual.switches},
        "shaken": {
            "times": SHAKEN_TIMES,
            "by_seconds": SHAKEN_SECONDS,
            "mean_wait_seconds": [round(wait, 3) for wait in (waits[0], median(waits), waits[-1])],
            "switches": [counts[0], median(counts), counts[-1]],
        },
        "apart": {"mean_wait": round(wait, 4), "switches": round(switches, 4)},
        "bars": {"mean_wait": WAIT_BAR, "switches": SWITCHES_BAR},
        "late_seconds": round(really.late_seconds, 3),
    }
    print(json.dumps(figures, indent=2))
    return int(options.check and (wait > WAIT_BAR or switches > SWITCHES_BAR))


if __name__ == "__main__":
    raise SystemExit(main())
