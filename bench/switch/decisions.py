"""What one decision of the scheduler costs, in time and in function calls: few models and requests against very many.

The demand is steady (each request that ends is followed by a new one), the queues keep their length. Events are
averaged per kind (arrival, end, eviction's and wake's outcome, timer) and a decision is the mean over the kinds,
because long queues shift the mix towards the cheap ones. Calls are the same in every run, on every machine. Run it with
``python bench/switch/decisions.py``.
"""

import argparse
import cProfile
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable

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


Handle = Callable[[Scheduler, Event, float], tuple[list[Action], float]]
"""Have a scheduler handle an event at a time, and say what that cost."""


def timed(scheduler: Scheduler, event: Event, now: float) -> tuple[list[Action], float]:
    """The cost in microseconds."""
    began = time.perf_counter()
    actions = scheduler.handle(event, now)
    return actions, (time.perf_counter() - began) * 1e6


def counted(scheduler: Scheduler, event: Event, now: float) -> tuple[list[Action], float]:
    """The cost in function calls, those of built-in functions included."""
    profile = cProfile.Profile()
    actions = profile.runcall(scheduler.handle, event, now)
    return actions, sum(entry.callcount for entry in profile.getstats())


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
        self.handle: Handle = timed
        self.costs: dict[type, list[float]] = defaultdict(list)
        for number in range(queued):
            self.arrive(self.wanted[number % wanted])
        self.costs.clear()

    def send(self, event: Event) -> None:
        """One event: its cost, and what is to be done."""
        actions, cost = self.handle(self.scheduler, event, self.now)
        self.costs[type(event)].append(cost)
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


CASES = {
    "4 models, 10 queued": (4, 10, 4, 0),
    "1,000, 10,000 for 4": (1_000, 10_000, 4, 0),
    "1,000, 10,000 for all": (1_000, 10_000, 1_000, 0),
    "the same, on 8 GPUs": (1_000, 10_000, 1_000, 8),
}
"""Models, queued requests, models that they are for, GPUs (0: one model has all of them)."""


def measure(case: tuple[int, int, int, int], policy: PolicyType, switches: int, handle: Handle) -> dict[str, float]:
    """The mean cost of each kind of event over so many switches; a timer that fires is none of them."""
    cycle = Cycle(*case, policy)
    cycle.handle = handle
    while len(cycle.costs[WakeDone]) < switches:
        cycle.turn()
    return {kind.__name__: statistics.fmean(costs) for kind, costs in cycle.costs.items() if kind is not TimerFired}


def main() -> None:
    """Print a table, and fail if a decision makes more than twice as many calls in the large case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of the times, of which the median counts")
    parser.add_argument("--switches", type=int, default=60)
    arguments = parser.parse_args()
    worst = 0.0
    for policy in PolicyType:
        few = 0.0
        for name, case in CASES.items():
            times = [measure(case, policy, arguments.switches, timed) for _ in range(arguments.rounds)]
            kinds = set.intersection(*(set(one) for one in times))
            time = statistics.fmean(statistics.median(one[kind] for one in times) for kind in kinds)
            calls = measure(case, policy, arguments.switches, counted)
            mean = statistics.fmean(calls.values())
            few = few or mean
            worst = max(worst, mean / few)
            each = "  ".join(f"{kind} {count:.0f}" for kind, count in sorted(calls.items()))
            print(f"{policy:<11} {name:<22} {time:7.1f} µs  {mean:6.0f} calls  ratio {mean / few:5.2f}   ({each})")
    raise SystemExit(0 if worst <= 2.0 else 1)


if __name__ == "__main__":
    main()
