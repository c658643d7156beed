"""What refusing early is worth where more is asked of the GPU than it can do. README.md explains it.

python bench/policies/overload.py --seeds 201 202
"""

import argparse
import itertools
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from shapes import BATCH_LIMIT, load_of
from workloads import SHAPES, workload

from llmux.config.load import loads
from llmux.simulation.traffic import models_of
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.scenario import build_scenario, run, summarise

COST = 4.0


@dataclass(frozen=True, slots=True)
class Case:
    """One simulation with the default time-outs; ``limit``: refuse_after_seconds, 0 for never."""

    shape: str
    seed: int
    seconds: float
    stretch: float
    drain: str
    limit: float


def play(case: Case) -> str:
    """Simulate one case; a row of the table."""
    requests = workload(case.shape, case.seed, case.seconds, case.stretch)
    models = {
        name: {"model_path": name, "eviction": "offload+keep_running", "drain": case.drain}
        for name in models_of(requests)
    }
    document = {"models": models, "warmup": True, "policy": {"refuse_after_seconds": case.limit or None}}
    settings = loads(json.dumps(document)).settings
    scenario = build_scenario(settings, [str(COST)], EngineSpeed(), BATCH_LIMIT)
    total = summarise("", requests, run(scenario, requests, scenario.scheduler()), settings).total
    cells = (
        f"{case.shape} ×{case.stretch:g}",
        str(case.seed),
        f"{load_of(requests, case.seconds):.0%}",
        case.drain,
        f"{case.limit:g} s" if case.limit else "never",
        f"{1 - total.unserved / total.requests:.0%}",
        f"{total.refused / total.requests:.0%}",
        f"{(total.unserved - total.refused) / total.requests:.0%}",
        f"{total.within[10]:.1%}",
        f"{total.within[30]:.1%}",
        f"{total.requests_on_time:.1%}",
        f"{total.tokens_on_time:.1%}",
        f"{total.ttft.mean or 0.0:.0f} s",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101])
    parser.add_argument("--seconds", type=float, default=900.0, help="length of each trace")
    parser.add_argument("--shapes", nargs="+", default=["zipf8", "diurnal"], choices=list(SHAPES))
    parser.add_argument("--stretches", type=float, nargs="+", default=[4.0])
    parser.add_argument("--limits", type=float, nargs="+", default=[0.0, 30.0, 60.0], help="0: never refused")
    given = parser.parse_args()
    os.nice(10)
    rows = itertools.product(given.shapes, given.seeds, given.stretches, ("freeze", "wait"), given.limits)
    cases = [Case(shape, seed, given.seconds, stretch, drain, limit) for shape, seed, stretch, drain, limit in rows]
    titles = (
        "traffic",
        "seed",
        "load",
        "drain",
        "refuse_after_seconds",
        "served",
        "refused",
        "timed out",
        "first token within 10 s",
        "30 s",
        "whole on time",
        "tokens on time",
        "TTFT mean",
    )
    print(f"| {' | '.join(titles)} |")
    print("|" + "---|" * len(titles))
    with ProcessPoolExecutor(2) as pool:
        for row in pool.map(play, cases):
            print(row, flush=True)


if __name__ == "__main__":
    main()
