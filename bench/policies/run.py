"""All policies over a trace, for every switch cost, length of answers, batch limit and load: see README.md.

python bench/policies/run.py --json all.json code=FILE conv=FILE
python bench/policies/run.py --table all.json > table.md
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from table import render

from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.core.eviction import Drain
from llmux.simulation.report.figures import Figures
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.scenario import build_scenario, simulate, simulate_when_idle, summarise
from llmux.simulation.workload.call import TracedCall
from llmux.simulation.workload.reading import read_trace
from llmux.simulation.workload.selection import Selection, merge, models_of, select

WHEN_IDLE = "when_idle"
POLICIES = (*(policy.value for policy in PolicyType), WHEN_IDLE)
THIN, COSTS, STRETCH, BATCH = (0.1, 0.4), (1.0, 2.0, 8.0, 30.0), (1.0, 4.0), (8, 32, 256)
DRAINS = (Drain.FREEZE, Drain.WAIT)


@dataclass(frozen=True, slots=True)
class Case:
    """One simulation."""

    thin: float
    cost: float
    stretch: float
    batch: int
    drain: Drain
    policy: str
    seed: int


@cache
def calls_of(traces: tuple[str, ...], thin: float, stretch: float, seed: int) -> list[TracedCall]:
    """The requests of a case."""
    return select(merge([read_trace(trace) for trace in traces]), Selection(thin=thin, stretch=stretch, seed=seed))


def load_of(calls: list[TracedCall], batch: int) -> float:
    """The part of the engine's time that the requests take without a switch: reading, or writing in full batches."""
    speed, seconds = EngineSpeed(), calls[-1].at_seconds
    reading = sum(call.prompt_tokens for call in calls) / speed.prefill
    writing = sum(call.output_tokens - 1 for call in calls) / (speed.decode_full * batch)
    return max(reading, writing) / seconds


def simulated(calls: list[TracedCall], policy: str, drain: str, cost: float, batch: int) -> Figures:
    """What comes of the requests under a policy; nobody gives up waiting, and no drain is cut short."""
    models = {name: {"model_path": name, "drain": drain} for name in models_of(calls)}
    config = {
        "models": models,
        "policy": {"eviction": "offload+keep_running"},
        "warmup": True,
        "drain_timeout_seconds": 1e6,
        "queue_limit_requests": 10**9,
    }
    settings = loads(json.dumps(config)).settings
    scenario = build_scenario(settings, [str(cost)], batch_limit=batch, request_timeout_seconds=0)
    if policy == WHEN_IDLE:
        outcome = simulate_when_idle(scenario, calls)
    else:
        outcome = simulate(scenario, calls, PolicyType(policy))
    return summarise(policy, calls, outcome).total


def run(traces: tuple[str, ...], case: Case) -> dict[str, object]:
    """Simulate one case."""
    calls = calls_of(traces, case.thin, case.stretch, case.seed)
    figures = simulated(calls, case.policy, case.drain.value, case.cost, case.batch)
    return asdict(case) | {
        "load": load_of(calls, case.batch),
        "p99": figures.ttft.p99,
        "mean": figures.ttft.mean,
        "latency": figures.latency.mean,
        "unserved": figures.unserved,
        "switches": figures.switches,
        "switching": figures.share.switching,
    }


def cases(seed: int, policies: tuple[str, ...]) -> Iterator[Case]:
    """Everything that is compared."""
    for thin, stretch, batch, cost, drain, policy in itertools.product(THIN, STRETCH, BATCH, COSTS, DRAINS, policies):
        yield Case(thin, cost, stretch, batch, drain, policy, seed)


def _work(job: tuple[tuple[str, ...], Case]) -> dict[str, object]:
    return run(*job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", metavar="NAME=FILE")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--drain", choices=[drain.value for drain in DRAINS], help="only with this, not with both")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--table", type=Path, nargs="+", help="make the table of figures that are there")
    given = parser.parse_args()
    if given.table:
        print(render([result for file in given.table for result in json.loads(file.read_text())]))
        return
    os.nice(10)
    jobs = [(tuple(given.traces), case) for case in cases(given.seed, tuple(given.policies.split(",")))]
    jobs = [job for job in jobs if given.drain in (None, job[1].drain.value)]
    results = []
    with ProcessPoolExecutor(2) as pool:
        for done, result in enumerate(pool.map(_work, jobs), 1):
            results.append(result)
            print(f"\r{done}/{len(jobs)}", end="", file=sys.stderr, flush=True)
    given.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
