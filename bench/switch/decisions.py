"""What one decision of the scheduler costs: few models and requests against very many.

The demand is steady (each request that ends is followed by a new one), the queues keep their length. Events are
averaged per kind (arrival, end, eviction's and wake's outcome, timer) and a decision is the mean over the kinds,
because long queues shift the mix towards the cheap ones. Run it with ``python bench/switch/decisions.py``.
"""

import argparse
import statistics
import time
from collections import defaultdict, deque

from llmux.config.policy import PolicySettings, PolicyType
from llmux.core.actions import Action, Admit, Evict, Wake
from llmux.core.events import Event, EvictDone, RequestArrived, RequestDone, TimerFired, WakeDone
from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import ALL_OF_IT, GpuId
from llmux.core.request import Request
from llmux.core.scheduler import Scheduler
from llmux.core.settings import ALL_OF_EVERY_GPU, Limits, ModelSpec, Placement
from llmux.core.states import Asleep, Cold
from llmux.server.build import build_policy

OFFLOAD = Eviction.parse("offload+keep_running")
STEP_SECONDS = {PolicyType.ADAPTIVE: 1.0}
"""The time between two events, where it is not 10 ms: adaptive's turns last as long as switches cost, and longer."""


class Cycle:
    """A scheduler under steady demand, of which each event's cost is taken."""

    def __init__(self, models: int, queued: int, wanted: int, gpus: int, policy: PolicyType) -> None:
        limits = Limits(min_active_seconds=0.0, request_timeout_seconds=1e9, queue_limit_requests=10**9)
        capacity = {GpuId("local", str(number)): 10 for number in range(gpus)}
        # Each model may be on any GPU, and is started anew each time, so that its place is chosen each time.
        eviction, places = (
            (STOP, tuple(Placement({gpu: 7}) for gpu in capacity)) if gpus else (OFFLOAD, (ALL_OF_EVERY_GPU,))
        )
        specs = [ModelSpec(f"model-{number}", eviction, max_in_flight=4, placements=places) for number in range(models)]
        policy_settings = PolicySettings(policy_type=policy)
        self.scheduler = Scheduler(specs, build_policy(policy_settings), limits, capacity or ALL_OF_IT)
        self.wanted = [spec.name for spec in specs[:wanted]]
        self.now = 0.0
        self.step_seconds = STEP_SECONDS.get(policy, 0.01)
        self.request = 0
        self.in_flight: list[Request] = []
        self.pending: deque[Wake | Evict] = deque()
        self.seconds: dict[type, list[float]] = defaultdict(list)
        for number in range(queued):
            self.arrive(self.wanted[number % wanted])
        self.seconds.clear()

    def send(self, event: Event) -> None:
        """One event: its cost, and what is to be done."""
        began = time.perf_counter()
        actions = self.scheduler.handle(event, self.now)
        self.seconds[type(event)].append(time.perf_counter() - began)
        for action in actions:
            self._perform(action)

    def _perform(self, action: Action) -> None:
        if isinstance(action, Wake | Evict):
            self.pending.append(action)
        elif isinstance(action, Admit):
            self.in_flight.append(action.request)

    def arrive(self, model: str) -> None:
        """A request for a model."""
        self.request += 1
        self.send(RequestArrived(Request(self.request, model, streams=True)))

    def turn(self) -> None:
        """Whatever is due next; every request that ends is followed by a new one."""
        self.now += self.step_seconds
        if self.pending:
            action = self.pending.popleft()
            if isinstance(action, Wake):
                self.send(WakeDone(action.instance))
            else:
                kept = action.eviction.keeps_process
                self.send(EvictDone(action.instance, Asleep(action.eviction) if kept else Cold()))
        elif self.in_flight:
            request = self.in_flight.pop()
            self.send(RequestDone(request))
            self.arrive(request.model)
        else:
            self.now += 15.0
            self.send(TimerFired())


def measure(models: int, queued: int, wanted: int, gpus: int, policy: PolicyType, switches: int) -> dict[str, float]:
    """The mean cost of each kind of event, in microseconds, over so many switches."""
    cycle = Cycle(models, queued, wanted, gpus, policy)
    while len(cycle.seconds[WakeDone]) < switches:
        cycle.turn()
    return {kind.__name__: statistics.fmean(times) * 1e6 for kind, times in cycle.seconds.items() if times}


def main() -> None:
    """Print a table, and fail if a decision costs more than twice as much in the large case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--switches", type=int, default=60)
    arguments = parser.parse_args()
    cases = {"4 models, 10 queued": (4, 10, 4, 0), "1,000, 10,000 for 4": (1_000, 10_000, 4, 0)}
    cases["1,000, 10,000 for all"] = (1_000, 10_000, 1_000, 0)
    cases["the same, on 8 GPUs"] = (1_000, 10_000, 1_000, 8)
    worst = 0.0
    for policy in PolicyType:
        costs = {name: _median_of(arguments.rounds, case, policy, arguments.switches) for name, case in cases.items()}
        small = statistics.fmean(next(iter(costs.values())).values())
        for name, kinds in costs.items():
            decision = statistics.fmean(kinds.values())
            worst = max(worst, decision / small)
            each = "  ".join(f"{kind} {cost:.1f}" for kind, cost in sorted(kinds.items()))
            print(f"{policy:<11} {name:<22} {decision:7.1f} µs  ratio {decision / small:5.2f}   ({each})")
    raise SystemExit(0 if worst <= 2.0 else 1)


def _median_of(rounds: int, case: tuple[int, int, int, int], policy: PolicyType, switches: int) -> dict[str, float]:
    measured = [measure(*case, policy, switches) for _ in range(rounds)]
    kinds = set.intersection(*(set(kinds) for kinds in measured)) - {"TimerFired"}
    return {kind: statistics.median(one[kind] for one in measured) for kind in kinds}


if __name__ == "__main__":
    main()
