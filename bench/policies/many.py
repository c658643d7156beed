"""The policies with six and with forty models that take turns on one GPU, over synthetic traffic.

Requests come to the models in the proportion 1, 1/2, 1/3, ..., one by one or in bursts. Prompts have 100 to 3,000
tokens, answers a mean of 200 with an exponential distribution.

    python bench/policies/many.py > table.md
"""

import itertools
import os
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from run import POLICIES, simulated

from llmux.simulation.traffic import TrafficRequest

SECONDS = 3600.0
WORKLOADS = ((6, 0.3, 1), (6, 1.0, 4), (40, 0.3, 1), (40, 1.0, 5))
"""Models, requests per second, and mean burst size."""
COSTS = (1.0, 4.0)
BATCH_LIMIT = 64
CONTENDERS = (*((policy, "wait") for policy in POLICIES), ("adaptive", "freeze"))
TITLES = ("models", "requests/s", "burst", "switch", "policy", "drain", "TTFT mean", "p99", "longest", "latency mean")


@dataclass(frozen=True, slots=True)
class Case:
    """One simulation."""

    models: int
    rate: float
    burst: int
    cost: float
    policy: str
    drain: str


def traffic(case: Case, seed: int = 1) -> list[TrafficRequest]:
    """The requests of a case."""
    chance = random.Random(seed)
    whole = sum(1 / number for number in range(1, case.models + 1))
    requests = []
    for number in range(1, case.models + 1):
        at, pause = 0.0, case.burst * number * whole / case.rate
        while (at := at + chance.expovariate(1 / pause)) < SECONDS:
            for _ in range(chance.randint(1, 2 * case.burst - 1)):
                answer = max(1, int(chance.expovariate(1 / 200)))
                requests.append(TrafficRequest(at, f"model-{number}", chance.randint(100, 3000), answer))
    return sorted(requests, key=lambda request: request.at_seconds)


def run(case: Case) -> str:
    """Simulate one case; a row of the table."""
    total = simulated(traffic(case), case.policy, case.drain, case.cost, BATCH_LIMIT)
    times = (total.ttft.mean, total.ttft.p99, total.ttft.max, total.latency.mean)
    what = (f"{case.models}", f"{case.rate:g}", f"{case.burst}", f"{case.cost:g} s", case.policy, case.drain)
    return "| " + " | ".join((*what, *(f"{seconds:.1f}" for seconds in times))) + " |"


def cases() -> Iterator[Case]:
    """Everything that is compared."""
    for (models, rate, burst), cost, (policy, drain) in itertools.product(WORKLOADS, COSTS, CONTENDERS):
        yield Case(models, rate, burst, cost, policy, drain)


def main() -> None:
    os.nice(10)
    print("| " + " | ".join(TITLES) + " |")
    print("|" + "---|" * len(TITLES))
    with ProcessPoolExecutor(2) as pool:
        for row in pool.map(run, cases()):
            print(row, flush=True)


if __name__ == "__main__":
    main()
