"""All policies over a trace, for every switch cost, length of answers, batch limit and load. README.md explains it.

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
from llmux.simulation.figures import Figures
from llmux.simulation.traces import read_trace
from llmux.simulation.traffic import Selection, TrafficRequest, merge, models_of, select
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.scenario import build_scenario, summarise
from llmux.simulation.virtual.study import EVICT_WHEN_IDLE, Contender

POLICIES = (*(policy.value for policy in PolicyType), EVICT_WHEN_IDLE)
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
def requests_of(traces: tuple[str, ...], thin: float, stretch: float, seed: int) -> list[TrafficRequest]:
    """The requests of a case; the same for many cases, so they are read once per process."""
    return select(merge([read_trace(trace) for trace in traces]), Selection(thin=thin, stretch=stretch, seed=seed))


def load_of(requests: list[TrafficRequest], batch: int) -> float:
    """The share of the engine's time for prefill, or for decoding in full batches, whichever is higher; no switches."""
    speed, seconds = EngineSpeed(), requests[-1].at_seconds
    prefill = sum(request.prompt_tokens for request in requests) / speed.prefill
    decode = sum(request.output_tokens - 1 for request in requests) / (speed.decode_full * batch)
    return max(prefill, decode) / seconds


def simulated(requests: list[TrafficRequest], policy: str, drain: str, cost: float, batch: int) -> Figures:
    """The figures under a policy, with clients that wait for ever and drains without a deadline."""
    models = {name: {"model_path": name, "drain": drain} for name in models_of(requests)}
    config = {
        "models": models,
        "policy": {"eviction": "offload+keep_running"},
        "warmup": True,
        "drain_timeout_seconds": 1e6,
        "queue_limit_requests": 10**9,
    }
    settings = loads(json.dumps(config)).settings
    scenario = build_scenario(settings, [str(cost)], batch_limit=batch, request_timeout_seconds=0)
    return summarise(policy, requests, Contender.parse(policy).play(scenario, requests)).total


def run(traces: tuple[str, ...], case: Case) -> dict[str, object]:
    """Simulate one case."""
    requests = requests_of(traces, case.thin, case.stretch, case.seed)
    figures = simulated(requests, case.policy, case.drain.value, case.cost, case.batch)
    return asdict(case) | {
        "load": load_of(requests, case.batch),
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
    parser.add_argument("--drain", choices=[drain.value for drain in DRAINS], help="only this one instead of both")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--table", type=Path, nargs="+", help="print the table of figures in these files")
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
