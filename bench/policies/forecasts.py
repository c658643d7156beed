"""How true the forecasts of waits are over the shapes of workloads.py: each against what happened. See README.md.

python bench/policies/forecasts.py --seeds 201 202 --json forecasts.json
python bench/policies/forecasts.py --table forecasts.json
"""

import argparse
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from shapes import BATCH_LIMIT, COSTS, STRETCHES, load_of
from workloads import SHAPES, workload

from llmux.config.load import loads
from llmux.core.actions import Action
from llmux.core.events import Event, RequestArrived
from llmux.core.expected_course import HORIZON_SECONDS
from llmux.core.forecast import Forecast, Truth, judge
from llmux.core.identifiers import Seconds
from llmux.core.scheduler import Scheduler
from llmux.simulation.traffic import TrafficRequest, models_of
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.scenario import Scenario, build_scenario, run

LEARNING_SECONDS = 300.0
"""Requests that come before this are not counted: nothing has been seen of most models."""

Result: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One simulation, with clients that wait for ever, so that each wait has an end."""

    shape: str
    seed: int
    seconds: float
    stretch: float
    cost: float
    contender: str


def scenario_of(case: Case, requests: Sequence[TrafficRequest]) -> Scenario:
    """What a case is played with."""
    policy, _, drain = case.contender.partition("+")
    models = {
        name: {"model_path": name, "eviction": "offload+keep_running", "drain": drain} for name in models_of(requests)
    }
    patience = {"drain_timeout_seconds": 1e6, "queue_limit_requests": 10**9}
    document = {"models": models, "warmup": True, "policy": {"policy_type": policy}} | patience
    settings = loads(json.dumps(document)).settings
    return build_scenario(settings, [str(case.cost)], EngineSpeed(), BATCH_LIMIT, 0)


def _note_forecasts(scheduler: Scheduler) -> dict[int, Forecast | None]:
    """Have the scheduler forecast the wait of each request that is queued; returned by its number."""
    forecasts: dict[int, Forecast | None] = {}
    handle = scheduler.handle

    def handle_and_forecast(event: Event, now: Seconds) -> list[Action]:
        actions = handle(event, now)
        if isinstance(event, RequestArrived) and event.request in scheduler.model(event.request.model).queue:
            forecasts[event.request.id] = scheduler.forecast(event.request, now)
        return actions

    scheduler.handle = handle_and_forecast  # type: ignore[method-assign]
    return forecasts


def play(case: Case) -> dict[str, object]:
    """Simulate one case, and judge its forecasts."""
    requests = workload(case.shape, case.seed, case.seconds, case.stretch)
    scenario = scenario_of(case, requests)
    scheduler = scenario.scheduler()
    forecasts = _note_forecasts(scheduler)
    result = run(scenario, requests, scheduler)
    waits: list[tuple[float, float]] = []
    first_tokens = beyond = 0
    for number, forecast in forecasts.items():
        arrived_at = requests[number].at_seconds
        waited = result.admitted_at[number] - arrived_at
        if arrived_at < LEARNING_SECONDS or waited > HORIZON_SECONDS:
            beyond += arrived_at >= LEARNING_SECONDS
            continue
        waits.append((waited, math.inf if forecast is None else forecast.admitted_in_seconds))
        ttft = result.first_token_at[number] - arrived_at
        first_tokens += forecast is not None and judge(forecast.first_token_in_seconds, ttft) is Truth.RIGHT
    return asdict(case) | {
        "load": load_of(requests, case.seconds),
        "waited": len(waits),
        "beyond": beyond,
        "mean": sum(waited for waited, _ in waits) / max(1, len(waits)),
        "first_tokens": first_tokens,
        "errors": sorted(abs(told - waited) / max(1e-9, waited) for waited, told in waits)[
            :: max(1, len(waits) // 500)
        ],
        **{truth.value: sum(judge(told, waited) is truth for waited, told in waits) for truth in Truth},
    }


def table(results: Sequence[Result]) -> Iterator[str]:
    """The shares of right forecasts: by contender and load, and by shape."""
    yield "| contender | load | rows | waited | right | too short | too long | first token right | error p50 | p80 |"
    yield "|" + "---|" * 10
    for (contender, loaded), rows in _grouped(results, lambda one: (one["contender"], one["load"] > 0.6)):
        yield _row([contender, "> 60 %" if loaded else "≤ 60 %"], rows)
    yield ""
    yield "| shape | contender | rows | waited | right | too short | too long | first token right | error p50 | p80 |"
    yield "|" + "---|" * 10
    for (shape, contender), rows in _grouped(results, lambda one: (one["shape"], one["contender"])):
        yield _row([shape, contender], rows)


def _grouped(results: Sequence[Result], key: Any) -> Iterator[tuple[tuple[Any, Any], Sequence[Result]]]:
    ordered = sorted((one for one in results if one["waited"]), key=key)
    for group, rows in itertools.groupby(ordered, key):
        yield group, list(rows)


def _row(titles: Sequence[str], rows: Sequence[Result]) -> str:
    """Each simulation counts alike, however many requests it has."""

    def share(what: str) -> str:
        return f"{sum(one[what] / one['waited'] for one in rows) / len(rows):.0%}"

    errors = sorted(error for one in rows for error in one["errors"])
    quantiles = [f"{errors[min(len(errors) - 1, int(len(errors) * part))]:.0%}" for part in (0.5, 0.8)]
    shares = [share(what) for what in ("right", "too_short", "too_long", "first_tokens")]
    return f"| {' | '.join([*titles, str(len(rows)), str(sum(one['waited'] for one in rows)), *shares, *quantiles])} |"


def played(given: argparse.Namespace, play: Callable[[Case], Result]) -> Iterator[Result]:
    """The results of all cases that the options name, two at a time, with their number on stderr."""
    os.nice(10)
    rows = itertools.product(given.shapes, given.seeds, STRETCHES, COSTS, given.contenders)
    cases = [Case(shape, seed, given.seconds, stretch, cost, name) for shape, seed, stretch, cost, name in rows]
    with ProcessPoolExecutor(2) as pool:
        for done, result in enumerate(pool.map(play, cases), 1):
            yield result
            print(f"\r{done}/{len(cases)}", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101])
    parser.add_argument("--seconds", type=float, default=1200.0, help="length of each trace")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--contenders", nargs="+", default=["adaptive+freeze", "adaptive+wait"])
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--table", type=Path, nargs="+", help="print the tables of figures in these files")
    given = parser.parse_args()
    if given.table:
        print("\n".join(table([result for file in given.table for result in json.loads(file.read_text())])))
        return
    results = list(played(given, play))
    given.json.write_text(json.dumps(results))
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
