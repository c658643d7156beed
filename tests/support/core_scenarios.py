"""Configurations for tests of the core, and a random walk over everything that can happen to it."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

from llmux.core.actions import Wake
from llmux.core.events import (
    DefaultChanged,
    EvictDone,
    EvictionChanged,
    HostMemoryShort,
    MemoryPressure,
    ModeChanged,
    SleepRequested,
    SwitchRequested,
    TimerFired,
    Unpinned,
    WakeDone,
    WakeRequested,
)
from llmux.core.eviction import STOP, Drain, Eviction
from llmux.core.groups import Group
from llmux.core.identifiers import ALL_OF_IT, Footprint, GpuId, InstanceId
from llmux.core.policies.adaptive import Adaptive
from llmux.core.policies.base import Policy
from llmux.core.policies.cost_aware import CostAware
from llmux.core.policies.fifo import Fifo
from llmux.core.policies.time_slice import TimeSlice
from llmux.core.request import Priority
from llmux.core.settings import WITHOUT_GPU, Limits, ModelSpec, Placement
from llmux.core.states import Asleep, Cold, Failed
from llmux.errors import EngineDied, Evicted, FailureReason, ModelNotAllowed, QueueTimeout
from tests.support.core_driver import CoreDriver
from tests.support.core_truth import Fates, Held, Place, evicted

OFFLOAD = Eviction.parse("offload+keep_running")
DISCARD = Eviction.parse("discard+keep_running")
SUSPEND = Eviction.parse("retain+cuda_suspend")
CHECKPOINT = Eviction.parse("discard+checkpoint")
NEVER_LEAVES = Eviction.parse("retain+keep_running")
EVICTIONS = (OFFLOAD, DISCARD, SUSPEND, CHECKPOINT, STOP)

GPUS = tuple(GpuId("local", str(number)) for number in range(3))
FOUR_GPUS = (*GPUS, GpuId("local", "3"))

POLICIES: dict[str, Callable[[], Policy]] = {
    "adaptive": Adaptive,
    "fifo": Fifo,
    "cost_aware": CostAware,
    "time_slice": TimeSlice,
}

LIMITS = Limits(
    request_timeout_seconds=100_000.0,
    min_active_seconds=5.0,
    max_wait_seconds=15.0,
    drain_timeout_seconds=20.0,
    queue_limit_requests=60,
    queue_limit_bytes=1_000,
    commands_max=3,
    gpu_leases_max=2,
)


@dataclass(frozen=True)
class Scenario:
    """One configuration of the scheduler."""

    name: str
    specs: tuple[ModelSpec, ...]
    capacity: Footprint
    limits: Limits = LIMITS
    host_mib: Mapping[str, Mapping[Eviction, int]] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()


def names(count: int) -> list[str]:
    """Names of models."""
    return list("abcdefghij"[:count])


def _sized(name: str, eviction: Eviction, awake: Footprint, residue: int = 0, **more: object) -> ModelSpec:
    return ModelSpec(name, eviction, placements=(_placement(awake, residue),), **more)  # type: ignore[arg-type]


def _anywhere(
    name: str,
    eviction: Eviction,
    count: int,
    size: int,
    residue: int = 0,
    *,
    gpus: tuple[GpuId, ...] = (),
    **more: object,
) -> ModelSpec:
    """A model that needs as much of each of so many of the GPUs (four unless told otherwise), whichever they are."""
    sets = combinations(gpus or FOUR_GPUS, count)
    places = tuple(_placement(dict.fromkeys(chosen, size), residue) for chosen in sets)
    return ModelSpec(name, eviction, placements=places, **more)  # type: ignore[arg-type]


def _placement(awake: Footprint, residue: int) -> Placement:
    return Placement(awake, {kind: dict.fromkeys(awake, residue) for kind in (OFFLOAD, DISCARD)} if residue else {})


def _staying(name: str, awake: Footprint, weights: int, **more: object) -> ModelSpec:
    asleep = {NEVER_LEAVES: dict.fromkeys(awake, weights)}
    placement = Placement(awake, asleep, shrinks=True)
    return ModelSpec(name, NEVER_LEAVES, placements=(placement,), **more)  # type: ignore[arg-type]


SCENARIOS = (
    Scenario(
        "one GPU, all of it",
        (
            ModelSpec("a", OFFLOAD),
            ModelSpec("b", DISCARD, max_in_flight=2),
            ModelSpec("c", STOP, max_in_flight=1),
            ModelSpec("d", CHECKPOINT, max_in_flight=4, drain=Drain.ABORT),
        ),
        ALL_OF_IT,
    ),
    Scenario(
        "one GPU, beside models that need none",
        (
            ModelSpec("a", OFFLOAD, max_in_flight=2),
            ModelSpec("b", NEVER_LEAVES, max_in_flight=2, placements=(WITHOUT_GPU,)),
            ModelSpec("c", DISCARD, max_in_flight=1, drain=Drain.FREEZE),
            ModelSpec("d", STOP, max_in_flight=1, placements=(WITHOUT_GPU,)),
        ),
        ALL_OF_IT,
    ),
    Scenario(
        "one GPU, two models, no minimum",
        (ModelSpec("a", OFFLOAD, max_in_flight=1), ModelSpec("b", SUSPEND, max_in_flight=3)),
        ALL_OF_IT,
        replace(LIMITS, min_active_seconds=0.0),
    ),
    Scenario(
        "one GPU, models that leave when they are idle",
        (
            ModelSpec("a", OFFLOAD, max_in_flight=2, idle_seconds=2.0),
            ModelSpec("b", STOP, max_in_flight=1, drain=Drain.FREEZE, idle_seconds=9.0),
            ModelSpec("c", DISCARD),
            ModelSpec("d", NEVER_LEAVES, placements=(WITHOUT_GPU,), idle_seconds=1.0),
        ),
        ALL_OF_IT,
        replace(LIMITS, min_active_seconds=1.0),
    ),
    Scenario(
        "short time-outs",
        (ModelSpec("a", OFFLOAD, max_in_flight=2), ModelSpec("b", STOP), ModelSpec("c", DISCARD, max_in_flight=1)),
        ALL_OF_IT,
        replace(LIMITS, request_timeout_seconds=12.0, max_wait_seconds=4.0, min_active_seconds=1.0),
    ),
    Scenario(
        "short time-outs that do not cover starts",
        (ModelSpec("a", STOP, max_in_flight=1), ModelSpec("b", OFFLOAD), ModelSpec("c", STOP)),
        ALL_OF_IT,
        replace(LIMITS, request_timeout_seconds=12.0, request_timeout_covers_starts=False, min_active_seconds=1.0),
    ),
    Scenario(
        "one GPU, requests are frozen",
        (
            ModelSpec("a", OFFLOAD, max_in_flight=2, drain=Drain.FREEZE),
            ModelSpec("b", CHECKPOINT, max_in_flight=3, drain=Drain.FREEZE, weight=3.0, max_wait_seconds=4.0),
            ModelSpec("c", STOP, max_in_flight=2, drain=Drain.FREEZE, max_wait_seconds=40.0),
            ModelSpec("d", DISCARD, max_in_flight=1),
        ),
        ALL_OF_IT,
        replace(LIMITS, request_timeout_seconds=400.0),
    ),
    Scenario(
        "one GPU, sizes and residues",
        (
            _sized("a", OFFLOAD, {GPUS[0]: 6}, 2, max_in_flight=2, drain=Drain.FREEZE),
            _sized("b", DISCARD, {GPUS[0]: 4}, 1, max_in_flight=1),
            _sized("c", STOP, {GPUS[0]: 10}),
            _sized("d", OFFLOAD, {GPUS[0]: 3}, 1, max_in_flight=3),
            _sized("e", NEVER_LEAVES, {GPUS[0]: 0}),
            _sized("f", STOP, {}),
        ),
        {GPUS[0]: 10},
    ),
    Scenario(
        "one GPU, weights that stay on it",
        (
            _staying("a", {GPUS[0]: 6}, 3, max_in_flight=2, drain=Drain.FREEZE),
            _staying("b", {GPUS[0]: 5}, 3, max_in_flight=1),
            _sized("c", OFFLOAD, {GPUS[0]: 7}, 1),
        ),
        {GPUS[0]: 10},
    ),
    Scenario(
        "one GPU, small models that come at the same time",
        (
            _sized("a", OFFLOAD, {GPUS[0]: 4}, 1, max_in_flight=2),
            _sized("b", DISCARD, {GPUS[0]: 3}, max_in_flight=1, drain=Drain.FREEZE),
            _sized("c", OFFLOAD, {GPUS[0]: 3}, max_in_flight=2),
            _sized("d", SUSPEND, {GPUS[0]: 5}, 1, max_in_flight=1),
            _sized("e", STOP, {GPUS[0]: 2}, max_in_flight=1),
            _sized("f", OFFLOAD, {GPUS[0]: 10}, 1, max_in_flight=4),
        ),
        {GPUS[0]: 10},
        replace(LIMITS, min_active_seconds=1.0),
    ),
    Scenario(
        "one GPU, little host memory",
        (
            ModelSpec("a", OFFLOAD, max_in_flight=2, ladder=(DISCARD, CHECKPOINT, STOP)),
            ModelSpec("b", OFFLOAD, max_in_flight=1, ladder=(DISCARD, STOP), drain=Drain.FREEZE),
            ModelSpec("c", DISCARD, max_in_flight=1, ladder=(DISCARD, CHECKPOINT, STOP), idle_seconds=4.0),
            ModelSpec("d", SUSPEND, max_in_flight=3, drain=Drain.ABORT),
            ModelSpec("e", STOP),
        ),
        ALL_OF_IT,
        replace(LIMITS, min_active_seconds=1.0, host_memory_max_mib=10),
        {
            "a": {OFFLOAD: 6, DISCARD: 2},
            "b": {OFFLOAD: 5, DISCARD: 3},
            "c": {OFFLOAD: 7, DISCARD: 4},
            "d": {OFFLOAD: 3, SUSPEND: 11},
        },
    ),
    Scenario(
        "one GPU, sleepers that go deeper with time",
        (
            ModelSpec("a", OFFLOAD, max_in_flight=2, ladder=(DISCARD, CHECKPOINT, STOP), drain=Drain.FREEZE),
            ModelSpec("b", DISCARD, max_in_flight=1, ladder=(DISCARD, STOP)),
            ModelSpec("c", OFFLOAD),
        ),
        ALL_OF_IT,
        replace(LIMITS, min_active_seconds=1.0, sleep_deeper_after_seconds=8.0),
        {"a": {OFFLOAD: 6, DISCARD: 2}, "b": {OFFLOAD: 3, DISCARD: 3}, "c": {OFFLOAD: 2}},
    ),
    Scenario(
        "two GPUs, a pinned model and groups",
        (
            _anywhere("a", OFFLOAD, 1, 4, 1, gpus=GPUS[:2], max_in_flight=2, keep=True),
            _sized("b", DISCARD, {GPUS[0]: 6}, max_in_flight=1, drain=Drain.FREEZE),
            _sized("c", OFFLOAD, {GPUS[1]: 6}, 1, max_in_flight=2),
            _anywhere("d", STOP, 1, 7, gpus=GPUS[:2], max_in_flight=1),
            _sized("e", OFFLOAD, {GPUS[0]: 10, GPUS[1]: 3}, max_in_flight=1, drain=Drain.FREEZE),
            _sized("f", STOP, {GPUS[1]: 2}, max_in_flight=2),
            _sized("g", STOP, {}, max_in_flight=2),
        ),
        dict.fromkeys(GPUS[:2], 10),
        replace(LIMITS, min_active_seconds=1.0),
        groups=(
            Group(("b", "c", "g"), exclusive=True),
            Group(("c", "d"), exclusive=True),
            Group(("d", "f"), persistent=True),
        ),
    ),
    Scenario(
        "two GPUs and models that come along",
        (
            _anywhere("a", OFFLOAD, 1, 4, 1, gpus=GPUS[:2], max_in_flight=2, idle_seconds=4.0),
            _sized("b", DISCARD, {GPUS[0]: 6}, max_in_flight=1, drain=Drain.FREEZE),
            _sized("c", OFFLOAD, {GPUS[1]: 5}, 1, max_in_flight=2, idle_seconds=2.0),
            _anywhere("d", STOP, 1, 4, gpus=GPUS[:2], max_in_flight=1),
            _sized("e", OFFLOAD, {GPUS[0]: 10, GPUS[1]: 3}, max_in_flight=1),
        ),
        dict.fromkeys(GPUS[:2], 10),
        replace(LIMITS, min_active_seconds=1.0),
        groups=(
            Group(("a", "b"), together=True),
            Group(("a", "c", "d"), together=True),
            Group(("b", "d"), exclusive=True),
        ),
    ),
    Scenario(
        "two GPUs",
        (
            _sized("a", OFFLOAD, {GPUS[0]: 8, GPUS[1]: 8}, 1, max_in_flight=2),
            _sized("b", DISCARD, {GPUS[0]: 6}, 2, max_in_flight=1),
            _sized("c", OFFLOAD, {GPUS[1]: 6}, 1, max_in_flight=2),
            _sized("d", STOP, {GPUS[0]: 5}, max_in_flight=2),
            _sized("e", SUSPEND, {GPUS[1]: 5}, max_in_flight=1, drain=Drain.FREEZE),
        ),
        {GPUS[0]: 10, GPUS[1]: 10},
    ),
    Scenario(
        "three GPUs",
        (
            _sized("a", OFFLOAD, dict.fromkeys(GPUS, 10), 1),
            _sized("b", STOP, {GPUS[0]: 10, GPUS[1]: 4}, max_in_flight=2),
            _sized("c", DISCARD, {GPUS[1]: 6, GPUS[2]: 6}, 2, max_in_flight=2),
            _sized("d", OFFLOAD, {GPUS[2]: 7}, 1, max_in_flight=1),
            _sized("e", OFFLOAD, {GPUS[0]: 9}, 1, max_in_flight=1),
            _sized("f", OFFLOAD, {GPUS[1]: 9}, 1, max_in_flight=1),
        ),
        dict.fromkeys(GPUS, 10),
        replace(LIMITS, min_active_seconds=0.0),
    ),
    Scenario(
        "four GPUs, models that may be anywhere",
        (
            _anywhere("a", OFFLOAD, 1, 6, 1, max_in_flight=2),
            _anywhere("b", STOP, 1, 4, max_in_flight=1, drain=Drain.FREEZE),
            _anywhere("c", STOP, 2, 10, max_in_flight=2),
            _anywhere("d", DISCARD, 4, 7, 2, max_in_flight=1),
            _anywhere("e", STOP, 1, 10, max_in_flight=1),
            _sized("f", STOP, {FOUR_GPUS[3]: 5}, max_in_flight=1),
            _anywhere("g", OFFLOAD, 3, 3, 1, max_in_flight=1, drain=Drain.FREEZE),
        ),
        dict.fromkeys(FOUR_GPUS, 10),
        replace(LIMITS, min_active_seconds=1.0),
    ),
)


KEEP_ALIVES = (0.0, 3.0, 30.0, math.inf)


class Walk:
    """Everything that can happen to a scheduler, each as a method that takes small numbers as its choices."""

    def __init__(self, scenario: Scenario, policy: str, *, short_cuts: bool = True) -> None:
        self.driver = CoreDriver(
            scenario.specs,
            POLICIES[policy](),
            scenario.limits,
            scenario.capacity,
            scenario.groups,
            host_mib=scenario.host_mib,
            fates=Held(),
            short_cuts=short_cuts,
            mixed_requests=True,
        )
        self.names = [spec.name for spec in scenario.specs]

    def arrive(
        self,
        pick: int,
        count: int = 1,
        size_bytes: int = 0,
        *,
        may_wake: bool = True,
        batch: bool = False,
        keep_alive_seconds: float | None = None,
    ) -> None:
        priority = Priority.BATCH if batch else Priority.INTERACTIVE
        for _ in range(count):
            self.driver.arrive(
                self._name(pick),
                size_bytes,
                may_wake=may_wake,
                priority=priority,
                keep_alive_seconds=keep_alive_seconds,
            )

    def leave(self, pick: int) -> None:
        waiting = self.driver.in_place(Place.WAITING)
        if waiting:
            self.driver.leave(waiting[pick % len(waiting)])

    def leave_model(self, pick: int) -> None:
        for number in list(self.driver.waiting[self._name(pick)]):
            request = self.driver.requests[number]
            if request.place is Place.WAITING:
                self.driver.leave(request)

    def answer(self, pick: int) -> None:
        admitted = self.driver.in_place(Place.IN_FLIGHT) + self.driver.in_place(Place.FROZEN)
        if admitted:
            self.driver.answer(admitted[pick % len(admitted)])

    def complete(self, pick: int, *, completed: bool = True) -> None:
        admitted = self.driver.in_place(Place.IN_FLIGHT) + self.driver.in_place(Place.FROZEN)
        if admitted:
            self.driver.complete(admitted[pick % len(admitted)], completed=completed)

    def complete_all(self, pick: int) -> None:
        for number in list(self.driver.in_flight[self._name(pick)]):
            self.driver.complete(self.driver.requests[number])

    def give_back(self, pick: int) -> None:
        admitted = self.driver.in_place(Place.IN_FLIGHT) + self.driver.in_place(Place.FROZEN)
        if admitted:
            self.driver.give_back(admitted[pick % len(admitted)])

    def outcome(self, pick: int, kind: int) -> None:
        """A pending wake or eviction ends: mostly well, sometimes not as asked, sometimes badly."""
        pending = self.driver.pending
        if not pending:
            return
        action = pending[pick % len(pending)]
        if isinstance(action, Wake):
            error = "it broke" if kind in (0, 1, 2) else None
            is_mismatch = kind == 2 and action.asleep is not None
            self.driver.finish_wake(action.instance.model, error, out_of_memory=kind == 1, is_mismatch=is_mismatch)
        else:
            others: dict[int, EvictDone] = {
                0: evicted(action, error="still there"),
                1: evicted(action, Cold()),
                2: evicted(action, Asleep(OFFLOAD)),
            }
            if action.eviction == STOP:
                others.pop(1), others.pop(2)
            self.driver.finish_evict(action.instance.model, others.get(kind))

    def stale_outcome(self, pick: int, kind: int) -> None:
        """An outcome of an instance that is no more."""
        engine = self.driver.engines[self._name(pick)]
        old = InstanceId(engine.spec.name, engine.generation - 1)
        if kind % 2:
            self.driver.send(WakeDone(old, FailureReason("late") if kind % 3 else None))
        else:
            self.driver.send(EvictDone(old, Cold(), FailureReason("late") if kind % 3 else None))

    def measure(self, pick: int, mib: int, residue_mib: int) -> None:
        """A model that can leave turns out to need another amount of memory than was thought."""
        spec = self.driver.engines[self._name(pick)].spec
        has_sizes = self.driver.capacity is not ALL_OF_IT
        if has_sizes and spec.uses_gpu and spec.frees_memory(spec.eviction) and self.driver.engines[spec.name].running:
            self.driver.measure(spec.name, mib, residue_mib)

    def exit(self, pick: int) -> None:
        self.driver.exit(self._name(pick))

    def early_timer(self) -> None:
        self.driver.timer_at = None
        self.driver.send(TimerFired())

    def pass_time(self, pick: int) -> None:
        self.driver.run_until(self.driver.now + (0.1, 0.6, 1.0, 2.5, 6.0, 16.0, 25.0, 70.0)[pick % 8])

    def mode(self, *, manual: bool) -> None:
        self.driver.send(ModeChanged(manual))

    def switch(self, pick: int, *, pin: bool) -> None:
        self.driver.command(SwitchRequested, self._name(pick), pin=pin)

    def wake(self, pick: int) -> None:
        self.driver.command(WakeRequested, self._name(pick))

    def keep(self, pick: int) -> None:
        self.driver.command(WakeRequested, self._name(pick), keep=True)

    def unpin(self) -> None:
        self.driver.send(Unpinned())

    def sleep(self, pick: int, kind: int) -> None:
        eviction = (None, *EVICTIONS, NEVER_LEAVES)[kind % 7]
        self.driver.command(SleepRequested, self._name(pick), eviction=eviction)

    def override(self, pick: int, kind: int) -> None:
        self.driver.send(EvictionChanged(self._name(pick), EVICTIONS[kind % 5]))

    def default(self, pick: int) -> None:
        name = None if pick % 3 == 0 else self._name(pick)
        self.driver.send(DefaultChanged(name))

    def host_memory_short(self, missing_mib: int) -> None:
        self.driver.send(HostMemoryShort(missing_mib))

    def lease(self, pick: int, *, count: int = 1, timeout_seconds: float = float("inf")) -> None:
        """A program wants a part of the GPUs, or all of one."""
        smallest = min(self.driver.capacity.values())
        memory_mib = (None, max(1, smallest // 3), max(1, smallest // 2), smallest)[pick % 4]
        self.driver.lease(memory_mib, min(count, len(self.driver.capacity)), timeout_seconds=timeout_seconds)

    def end_lease(self, pick: int) -> None:
        leases = [one for one in self.driver.requests.values() if one.is_gpu_lease and one.place is not Place.ENDED]
        if leases:
            self.driver.leave(leases[pick % len(leases)])

    def memory_pressure(self, pick: int) -> None:
        """Programs that are not ours lack memory of one GPU, or of none any more."""
        gpus = list(self.driver.capacity)
        gpu = gpus[pick % len(gpus)]
        missing = {} if pick % 3 == 0 else {gpu: max(1, self.driver.capacity[gpu] // (pick % 3 + 1))}
        self.driver.send(MemoryPressure(missing))

    def shut_down(self, drain_seconds: float) -> None:
        self.driver.shut_down(drain_seconds)

    def end_well(self) -> None:
        """Faults stop: everything that waits is served within the bound, commands end, and a shutdown completes."""
        driver = self.driver
        if not driver.stopping:
            driver.send(Unpinned())
        driver.fates = Fates()
        for request in driver.in_place(Place.IN_FLIGHT) + driver.in_place(Place.FROZEN):
            driver.after(1.0, lambda request=request: driver.complete(request))  # type: ignore[misc]
        for action in driver.pending:
            finish = driver.finish_wake if isinstance(action, Wake) else driver.finish_evict
            driver.after(1.0, lambda finish=finish, action=action: finish(action.instance.model) and None)  # type: ignore[misc]
        crashed = {name for name in self.names if getattr(driver.scheduler.state(name), "crash", None)}
        waiting = [request for request in driver.in_place(Place.WAITING) if request.model not in crashed]
        turns = driver.scheduler.wait_bound(
            Fates.longest_switch_seconds, leases=driver.limits.gpu_leases_max, longest_lease_seconds=1.0
        )
        turns += driver.limits.backoff_max_seconds
        # A queue of n requests may need n turns where the engine takes few at a time; each command is a turn too.
        rounds = 1 + max((len(queue) for queue in driver.waiting.values()), default=0) + len(driver.commands)
        driver.run_while(self._is_busy, until=driver.now + turns * rounds)
        # A model that holds memory asleep is stopped, with what is frozen in it, where another could else never run.
        reasons = {Drain.ABORT: (QueueTimeout, Evicted), Drain.FREEZE: (QueueTimeout, EngineDied)}
        beside = (ModelNotAllowed,) if any(group.persistent for group in driver.groups) else ()
        drains = {spec.name: spec.drain for spec in driver.specs}
        for request in waiting:
            legitimate = (*reasons.get(drains.get(request.model, Drain.WAIT), (QueueTimeout,)), *beside)
            assert request.error is None or isinstance(request.error, legitimate), f"refused: {request}"
        if driver.limits.request_timeout_seconds > turns:
            # GPU leases have a time of their own.
            assert not any(isinstance(one.error, QueueTimeout) for one in waiting if not one.is_gpu_lease)
        assert all(request.place is Place.ENDED for request in driver.requests.values())
        assert not driver.commands, f"commands never ended: {driver.commands}"
        assert not driver.pending
        if driver.stopping:
            assert all(not engine.running for engine in driver.engines.values() if not self._is_stuck(engine.spec.name))

    def _is_busy(self) -> bool:
        driver = self.driver
        if driver.stopping:
            return not driver.stopped
        places = (Place.WAITING, Place.IN_FLIGHT, Place.FROZEN)
        return bool(driver.commands or driver.pending or any(driver.in_place(place) for place in places))

    def _is_stuck(self, name: str) -> bool:
        return not isinstance(self.driver.scheduler.state(name), Cold | Failed)

    def _name(self, pick: int) -> str:
        return self.names[pick % len(self.names)]


def random_walk(seed: int, steps: int = 120) -> None:
    """One seeded run over everything; the seed alone reproduces it."""
    rng = random.Random(seed)
    scenario = SCENARIOS[seed % len(SCENARIOS)]
    walk = Walk(scenario, rng.choice(list(POLICIES)), short_cuts=rng.random() < 0.5)
    few = rng.randrange(1 << 16)
    ordinary: list[Callable[[], None]] = [
        lambda: walk.arrive(rng.randrange(few % 7 + 1), rng.randrange(1, 4), rng.choice((0, 1, 90))),
        lambda: walk.arrive(rng.randrange(9)),
        lambda: walk.complete(rng.randrange(50), completed=rng.random() < 0.8),
        lambda: walk.complete_all(rng.randrange(9)),
        lambda: walk.outcome(rng.randrange(9), 9),
        lambda: walk.outcome(rng.randrange(9), 9),
        lambda: walk.pass_time(rng.randrange(8)),
        lambda: walk.pass_time(rng.randrange(4)),
    ]
    rare: list[Callable[[], None]] = [
        lambda: walk.answer(rng.randrange(50)),
        lambda: walk.leave(rng.randrange(50)),
        lambda: walk.leave_model(rng.randrange(9)),
        lambda: walk.arrive(rng.randrange(9), may_wake=False),
        lambda: walk.arrive(rng.randrange(9), rng.randrange(1, 4), batch=True),
        lambda: walk.give_back(rng.randrange(50)),
        lambda: walk.outcome(rng.randrange(9), rng.randrange(5)),
        lambda: walk.outcome(rng.randrange(9), rng.randrange(5)),
        lambda: walk.stale_outcome(rng.randrange(9), rng.randrange(6)),
        lambda: walk.measure(rng.randrange(9), rng.randrange(1, 11), rng.randrange(4)),
        lambda: walk.exit(rng.randrange(9)),
        lambda: walk.exit(rng.randrange(9)),
        walk.early_timer,
        lambda: walk.mode(manual=rng.random() < 0.4),
        lambda: walk.switch(rng.randrange(9), pin=rng.random() < 0.5),
        lambda: walk.wake(rng.randrange(9)),
        lambda: walk.keep(rng.randrange(9)),
        walk.unpin,
        lambda: walk.sleep(rng.randrange(9), rng.randrange(7)),
        lambda: walk.lease(rng.randrange(4), count=rng.randrange(1, 4)),
        lambda: walk.lease(rng.randrange(4), timeout_seconds=rng.choice((0.0, 3.0, 20.0))),
        lambda: walk.end_lease(rng.randrange(9)),
        lambda: walk.memory_pressure(rng.randrange(12)),
        lambda: walk.override(rng.randrange(9), rng.randrange(5)),
        lambda: walk.arrive(rng.randrange(9), keep_alive_seconds=rng.choice(KEEP_ALIVES)),
        lambda: walk.default(rng.randrange(9)),
        lambda: walk.host_memory_short(rng.randrange(1, 9)),
    ]
    for step in range(steps):
        rng.choice(rare if rng.random() < 0.25 else ordinary)()
        if step == steps - 20 and rng.random() < 0.25:
            walk.shut_down(rng.choice((0.0, 5.0, 20.0)))
    walk.end_well()


__all__ = ["EVICTIONS", "GPUS", "KEEP_ALIVES", "POLICIES", "SCENARIOS", "Scenario", "Walk", "random_walk"]
