"""How many requests a second the simulator plays on one core.

Two workloads, made up from a seed: one busy model with a second one asked every few minutes (the model that is asked
is mostly there), and two models that alternate all the time, so that most requests wait and cause a switch.
``simulated`` is the virtual run alone, ``with_figures`` adds the summing up; ``lower_bound`` is how many requests the
bound takes in. Processor time, best of some rounds. The bar holds for both workloads and every policy.

    python bench/simulate/run.py [--requests 100000] [--check]
"""

import argparse
import json
import random
import time

from llmux import how_built
from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.scenario import Scenario, bound_of, build_scenario, simulate, summarise

BAR_PER_SECOND = 50_000
ROUNDS = 5
SHARES = {"mostly_resident": 0.0005, "taking_turns": 0.4}


def traffic(requests: int, share: float) -> list[TrafficRequest]:
    """Requests, a share of which is for the second model."""
    chance = random.Random(1)
    made, at = [], 0.0
    for _ in range(requests):
        at += chance.expovariate(4.0)
        model = "b" if chance.random() < share else "a"
        made.append(TrafficRequest(at, model, chance.randint(1, 800), chance.randint(1, 400)))
    return made


def two_models() -> Scenario:
    """Two models that take turns on one GPU, a switch in 2 s."""
    models = {name: {"model_path": name, "eviction": "offload+keep_running"} for name in "ab"}
    return build_scenario(loads(json.dumps({"models": models})).settings, ["2"])


def measure(requests: list[TrafficRequest], policy: PolicyType) -> tuple[float, float]:
    """Requests per second: of the run alone, and together with computing its figures."""
    scenario = two_models()
    best, best_with_figures = 0.0, 0.0
    for _ in range(ROUNDS):
        began_at = time.process_time()
        result = simulate(scenario, requests, policy)
        ran_at = time.process_time()
        summarise(policy, requests, result)
        best = max(best, len(requests) / (ran_at - began_at))
        best_with_figures = max(best_with_figures, len(requests) / (time.process_time() - began_at))
    return best, best_with_figures


def measure_bound(requests: list[TrafficRequest]) -> float:
    """Requests per second of computing the lower bound."""
    scenario, best = two_models(), 0.0
    for _ in range(ROUNDS):
        began_at = time.process_time()
        bound_of(scenario, requests)
        best = max(best, len(requests) / (time.process_time() - began_at))
    return best


def main() -> int:
    """Print the figures; exit code 1 if any policy misses the bar in either workload and ``--check`` was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--check", action="store_true", help="fail where the bar is missed")
    options = parser.parse_args()
    figures: dict[str, object] = {
        "llmux": how_built(),
        "requests": options.requests,
        "bar_per_second": BAR_PER_SECOND,
    }
    slowest = float("inf")
    for name, share in SHARES.items():
        requests = traffic(options.requests, share)
        rates = {policy.value: measure(requests, policy) for policy in PolicyType}
        figures[name] = {
            policy: {"simulated": round(run), "with_figures": round(both)} for policy, (run, both) in rates.items()
        } | {"lower_bound": round(measure_bound(requests))}
        slowest = min(slowest, *(run for run, _ in rates.values()))
    print(json.dumps(figures, indent=2))
    return int(options.check and slowest < BAR_PER_SECOND)


if __name__ == "__main__":
    raise SystemExit(main())
