"""Whether ``llmux simulate`` and ``llmux replay`` agree about the same five minutes.

One ``llmux serve`` over simulated engines of the simulator's speed gets the trace in real time; the simulator gets the
same trace and configuration, and what each switch was measured to take. Without traces, traffic for two models
is made up. A turn can depend on what came first by some milliseconds, and all later turns on that; so the
simulation is also repeated with all that came moved a little, to see how far such moments alone lead apart.

    python bench/simulate/agreement.py [NAME=FILE ...] [--thin P] [--skip S] [--seconds 300] [--policy fifo] [--check]
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

import aiohttp
from rich.console import Console

from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.simulation.replay.run import Replay, Replayed
from llmux.simulation.replay.switches import SwitchCounts, read_switches
from llmux.simulation.report.figures import RunFigures
from llmux.simulation.report.table import render
from llmux.simulation.virtual.costs import MeasuredSwitches
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.place import question_seconds
from llmux.simulation.virtual.scenario import Scenario, build_scenario, simulate, summarise
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
QUESTION_SECONDS = question_seconds(EngineSpeed())
WAIT_BAR, SWITCHES_BAR = 0.10, 0.05
WATCH_SECONDS = 1.0
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


async def replayed(config: dict[str, object], calls: list[TracedCall]) -> tuple[Replayed, list[SwitchCounts]]:
    """What really happens; and what llmux had counted before the first switch and after each one."""
    counts: list[SwitchCounts] = []
    with tempfile.TemporaryDirectory() as directory:
        async with llmux_server(config, Path(directory)) as server, asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch(server.url, counts))
            really = await Replay(server.url, calls).run()
            watching.cancel()
            return really, counts


async def watch(url: str, counts: list[SwitchCounts]) -> None:
    """Read llmux's counts often enough to see each switch alone."""
    async with aiohttp.ClientSession(url) as session:
        while True:
            present = await read_switches(session)
            if not counts or present.by_model != counts[-1].by_model:
                counts.append(present)
            await asyncio.sleep(WATCH_SECONDS)


def measured(counts: Sequence[SwitchCounts]) -> MeasuredSwitches:
    """What each switch took, without the reading again of frozen requests, which the simulator adds itself."""
    evictions: list[float] = []
    wakes: list[float] = []
    switches = [after.since(before) for before, after in pairwise(counts)]
    # Nothing was frozen where the question was answered the soonest.
    least_asking = min((one.asking_seconds / one.by_model.total() for one in switches), default=0.0)
    for one in switches:
        number = one.by_model.total()
        evictions += [one.leaving_seconds / max(1, one.evictions)] * one.evictions
        wakes += [(one.coming_seconds - one.asking_seconds) / number + least_asking] * number
    return MeasuredSwitches(evictions, wakes)


def shaken(scenario: Scenario, calls: list[TracedCall], seed: int) -> tuple[Scenario, list[TracedCall]]:
    """The same with everything a little earlier or later than it was."""
    chance = random.Random(seed)

    def shake(seconds: float) -> float:
        return max(0.0, seconds + chance.uniform(-SHAKEN_SECONDS, SHAKEN_SECONDS))

    taken = scenario.measured or MeasuredSwitches()
    moved = MeasuredSwitches(list(map(shake, taken.evictions)), list(map(shake, taken.wakes)))
    later = [replace(call, at_seconds=shake(call.at_seconds)) for call in calls]
    return replace(scenario, measured=moved), sorted(later, key=lambda call: call.at_seconds)


def simulated(scenario: Scenario, calls: list[TracedCall], policy: str) -> RunFigures:
    """What the simulator says."""
    return summarise("simulate", calls, simulate(scenario, calls, PolicyType(policy)))


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
    really, counts = asyncio.run(replayed(config, calls))
    settings = loads(json.dumps(config)).settings
    costs = really.switches.mean_costs_if_asking_takes(QUESTION_SECONDS) or COSTS
    scenario = replace(build_scenario(settings, [costs]), measured=measured(counts))
    runs = really.figures("replay"), simulated(scenario, calls, options.policy)
    Console(stderr=True, width=130).print(render(runs, None), highlight=False)
    real, virtual = (run.total for run in runs)
    others = [simulated(*shaken(scenario, calls, seed), options.policy).total for seed in range(SHAKEN_TIMES)]
    waits, switch_counts = sorted(one.wait.mean or 0.0 for one in others), sorted(one.switches for one in others)
    with_given_costs = simulated(build_scenario(settings, [COSTS]), calls, options.policy).total
    wait, switches = apart(real.wait.mean or 0.0, virtual.wait.mean or 0.0), apart(real.switches, virtual.switches)
    figures = {
        "requests": len(calls),
        "unserved": {"replay": real.unserved, "simulate": virtual.unserved},
        "mean_wait_seconds": {"replay": round(real.wait.mean or 0, 3), "simulate": round(virtual.wait.mean or 0, 3)},
        "costs": {
            "measured_on_average": costs,
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
            "times": SHAKEN_TIMES,
            "by_seconds": SHAKEN_SECONDS,
            "mean_wait_seconds": [round(wait, 3) for wait in (waits[0], median(waits), waits[-1])],
            "switches": [switch_counts[0], median(switch_counts), switch_counts[-1]],
        },
        "apart": {"mean_wait": round(wait, 4), "switches": round(switches, 4)},
        "bars": {"mean_wait": WAIT_BAR, "switches": SWITCHES_BAR},
        "late_seconds": round(really.late_seconds, 3),
    }
    print(json.dumps(figures, indent=2))
    return int(options.check and (wait > WAIT_BAR or switches > SWITCHES_BAR))


if __name__ == "__main__":
    raise SystemExit(main())
