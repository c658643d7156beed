"""GPU leases in virtual time: other programs that ask for GPU memory, and hold it for as long as they run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llmux.core import actions, events
from llmux.core.gpu_lease import GpuLease, lease_placements
from llmux.core.identifiers import NOTHING, Seconds
from llmux.core.scheduler import Scheduler
from llmux.core.settings import Placement
from llmux.core.states import Cold
from llmux.errors import LlmuxError
from llmux.simulation.occupancy import LeaseTimes, Occupancy


class LeaseImpossible(LlmuxError):
    """A GPU lease asks for more than there is."""


@dataclass(frozen=True, slots=True)
class PlannedLease:
    """A program that will ask for GPU memory, and what it does once it has it."""

    at_seconds: Seconds
    held_seconds: Seconds
    memory_mib: int | None = None
    """Of each GPU; None: all of it."""
    gpus: int = 1

    def __str__(self) -> str:
        amount = "all" if self.memory_mib is None else f"{self.memory_mib}MiB"
        count = "" if self.gpus == 1 else f"x{self.gpus}"
        return f"{amount}{count}@{self.at_seconds:g}+{self.held_seconds:g}"


def leases_between(leases: Sequence[PlannedLease], start: Seconds, end: Seconds) -> list[PlannedLease]:
    """Those of a part of the time, which begins at 0 then: one that has begun before asks at once, for what is left."""
    found = []
    for lease in leases:
        ends_at = lease.at_seconds + lease.held_seconds
        begins_at = max(lease.at_seconds, start)
        if begins_at < min(ends_at, end):
            found.append(replace(lease, at_seconds=begins_at - start, held_seconds=ends_at - begins_at))
    return found


class VirtualLeases:
    """The programs of one run. They take and give back in no time what they were given."""

    def __init__(
        self,
        scheduler: Scheduler,
        occupancy: Occupancy,
        planned: Sequence[PlannedLease],
        schedule: Callable[[Seconds, events.Event], None],
    ) -> None:
        """Plan what they ask for. ``schedule`` has an event happen after some seconds. Raises LeaseImpossible."""
        self._scheduler = scheduler
        self._occupancy = occupancy
        self._schedule = schedule
        self._planned: dict[str, PlannedLease] = {}
        self._times: dict[str, LeaseTimes] = {}
        for number, lease in enumerate(sorted(planned, key=lambda one: one.at_seconds), start=1):
            record = GpuLease(number, _placements(scheduler, lease))
            self._planned[record.model] = lease
            self._times[record.model] = LeaseTimes(record.model, lease.at_seconds)
            schedule(lease.at_seconds, events.GpuLeaseRequested(record))

    def perform(self, action: actions.Action, now: Seconds) -> bool:
        """Do what is about a lease; returns whether it was. One that is refused ends without having been held."""
        match action:
            case actions.Wake(instance) if (name := instance.model) in self._planned:
                record = self._scheduler.find_gpu_lease(name)
                assert record is not None
                self._occupancy.hold(name, record.held, now)
                self._schedule(0.0, events.WakeDone(instance))
            case actions.Admit(GpuLease(model=name) as lease):
                self._times[name] = replace(self._times[name], held_at=now)
                self._schedule(self._planned[name].held_seconds, events.RequestDone(lease))
            case actions.Evict(instance) if (name := instance.model) in self._planned:
                self._occupancy.hold(name, NOTHING, now)
                self._times[name] = replace(self._times[name], ended_at=now)
                self._schedule(0.0, events.EvictDone(instance, Cold()))
            case actions.Reject(GpuLease(model=name)):
                self._times[name] = replace(self._times[name], ended_at=now)
            case _:
                return False
        return True

    def times(self, end: Seconds) -> tuple[LeaseTimes, ...]:
        """When each lease was asked for, held, and over, in the order of asking; without those after the end."""
        return tuple(times for times in self._times.values() if times.asked_at <= end)

    def are_held(self) -> bool:
        """Whether any program has memory now."""
        return any(times.held_at is not None and times.ended_at is None for times in self._times.values())


def _placements(scheduler: Scheduler, lease: PlannedLease) -> tuple[Placement, ...]:
    capacity = {gpu: total for gpu, (total, _) in scheduler.gpu_memory().items()}
    placements = lease_placements(capacity, lease.memory_mib, lease.gpus)
    if not placements:
        sizes = ", ".join(f"{total} MiB" for total in capacity.values())
        raise LeaseImpossible(f"the GPU lease {lease} does not fit: the GPUs have {sizes}; ask for less")
    return placements
