"""What contenders reach over the shapes of workloads.py, in the figures that scheduling is for. README.md explains it.

python bench/policies/shapes.py --seeds 1 2 --json shapes.json
python bench/policies/shapes.py --table shapes.json --base evict_when_idle+wait
python bench/policies/shapes.py --seeds 1 --contenders adaptive+freeze --set WAITING_SHARE=1 --json half.json
"""

import argparse
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from workloads import SHAPES, workload

from llmux.config.load import loads
from llmux.core.policies import adaptive
from llmux.simulation.traffic import TrafficRequest, models_of
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.scenario import build_scenario, summarise
from llmux.simulation.virtual.study import Contender

STRETCHES, COSTS = (1.0, 4.0), (2.0, 8.0)
BATCH_LIMIT = 64
CONTENDERS = tuple(
    f"{name}+{drain}"
    for drain in ("freeze", "wait")
    for name in ("adaptive", "fifo", "cost_aware", "time_slice", "evict_when_idle")
    if (name, drain) != ("evict_when_idle", "freeze")  # what is idle has nothing to freeze
)

Result: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One simulation; ``patient`` clients wait for ever, others as long as llmux's default is."""

    shape: str
    seed: int
    seconds: float
    stretch: float
    cost: float
    contender: str
    patient: bool
    recompute: float = 1.0
    """What the recompute of a frozen request takes, as a share of its prefill."""
    constants: tuple[tuple[str, float], ...] = ()
    """Those of adaptive that are changed."""


def load_of(requests: Sequence[TrafficRequest], seconds: float) -> float:
    """The share of the engine's time for prefill, or for decoding in full batches, whichever is higher; no switches."""
    speed = EngineSpeed()
    prefill = sum(request.prompt_tokens for request in requests) / speed.prefill
    decode = sum(request.output_tokens - 1 for request in requests) / (speed.decode_full * BATCH_LIMIT)
    return max(prefill, decode) / seconds


def run(case: Case) -> dict[str, object]:
    """Simulate one case."""
    for name, value in case.constants:
        getattr(adaptive, name)
        setattr(adaptive, name, value)
    requests = workload(case.shape, case.seed, case.seconds, case.stretch)
    patience = {"drain_timeout_seconds": 1e6, "queue_limit_requests": 10**9} if case.patient else {}
    models = {name: {"model_path": name, "eviction": "offload+keep_running"} for name in models_of(requests)}
    settings = loads(json.dumps({"models": models, "warmup": True} | patience)).settings
    timeout = 0 if case.patient else None
    speed = EngineSpeed(recompute_share=case.recompute)
    scenario = build_scenario(settings, [str(case.cost)], speed, BATCH_LIMIT, timeout)
    result = Contender.parse(case.contender).play(scenario, requests)
    total = summarise(case.contender, requests, result, settings).total
    return asdict(case) | {
        "load": load_of(requests, case.seconds),
        "tokens": total.tokens_on_time,
        "requests": total.requests_on_time,
        "ttft": total.ttft.mean,
        "p99": total.ttft.p99,
        "longest": total.ttft.max,
        "latency": total.latency.mean,
        "stall": total.stall.mean,
        "lost": total.unserved,
    }


def table(results: Sequence[Result], base: str) -> Iterator[str]:
    """For each contender the ratios to the base: the geometric means, and the rows where it has the fewest tokens."""
    by_contender: dict[str, dict[tuple[Any, ...], Result]] = {}
    for result in results:
        row = tuple(result[name] for name in ("shape", "seed", "stretch", "cost", "patient"))
        by_contender.setdefault(result["contender"], {})[row] = result
    titles = (
        f"to {base}",
        "rows",
        "tokens on time",
        "whole requests",
        "TTFT mean",
        "p99",
        "latency",
        "lost",
        "worst in tokens",
    )
    yield f"| {' | '.join(titles)} |"
    yield "|" + "---|" * len(titles)
    for contender, rows in by_contender.items():
        pairs = [(row, rows[row], by_contender[base][row]) for row in rows if row in by_contender[base]]
        shares = [f"{sum(own[name] for _, own, _ in pairs) / len(pairs):.1%}" for name in ("tokens", "requests")]
        tokens = sorted((_share_ratio(own["tokens"], other["tokens"]), row) for row, own, other in pairs)
        worst = ", ".join(f"{ratio:.2f} {row[0]} ×{row[2]:g} {row[3]:g} s" for ratio, row in tokens[:4])
        means = [
            _mean([own[name] / max(1e-9, other[name]) for _, own, other in pairs])
            for name in ("ttft", "p99", "latency")
        ]
        cells = (
            f"{shares[0]} (×{_mean([ratio for ratio, _ in tokens]):.2f})",
            shares[1],
            *(f"×{mean:.2f}" for mean in means),
        )
        lost = sum(own["lost"] for _, own, _ in pairs)
        yield f"| {contender} | {len(pairs)} | {' | '.join(cells)} | {lost} | {worst} |"


def _share_ratio(own: float, other: float) -> float:
    """Of shares: a hundredth is added, so that nothing is divided by next to nothing."""
    return (own + 0.01) / (other + 0.01)


def _mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(ratio, 1e-9)) for ratio in ratios) / len(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=1200.0, help="length of each trace")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--stretches", type=float, nargs="+", default=STRETCHES, help="how much longer answers are")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS))
    parser.add_argument("--recompute", type=float, default=1.0, help="a share of the prefill; 0.1: KV cache kept")
    parser.add_argument("--default-timeouts", action="store_true", help="clients leave after request_timeout_seconds")
    parser.add_argument("--set", nargs="+", default=[], metavar="CONSTANT=VALUE", help="of core/policies/adaptive.py")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--table", type=Path, nargs="+", help="print the table of figures in these files")
    parser.add_argument("--base", default="adaptive+freeze", help="what the table compares with")
    given = parser.parse_args()
    if given.table:
        results = [result for file in given.table for result in json.loads(file.read_text())]
        print("\n".join(table(results, given.base)))
        return
    os.nice(10)
    constants = tuple((name, float(value)) for name, value in (text.split("=") for text in given.set))
    rows = itertools.product(given.shapes, given.seeds, given.stretches, COSTS, given.contenders)
    cases = [
        Case(
            shape, seed, given.seconds, stretch, cost, contender, not given.default_timeouts, given.recompute, constants
        )
        for shape, seed, stretch, cost, contender in rows
    ]
    results = []
    with ProcessPoolExecutor(2) as pool:
        for done, result in enumerate(pool.map(run, cases), 1):
            results.append(result)
            print(f"\r{done}/{len(cases)}", end="", file=sys.stderr, flush=True)
    given.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
