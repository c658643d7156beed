"""Which GPU was used for what: memory held, time, and the models that were on it, from a run's timeline."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmux.core.identifiers import EVERY_GPU, NOTHING, Footprint, GpuId, Seconds
from llmux.simulation.residency import OFF_GPU, Phase, Shares, Timeline


@dataclass(slots=True)
class Occupancy:
    """Per model, what it held of the GPUs (in MiB) from when on; nothing before the first entry."""

    capacity: Mapping[GpuId, int]
    held: dict[str, list[tuple[Seconds, Footprint]]] = field(default_factory=dict)

    def hold(self, model: str, footprint: Footprint, at: Seconds) -> None:
        """Record what the model holds from now on."""
        entries = self.held.setdefault(model, [])
        if (entries[-1][1] if entries else NOTHING) != footprint:
            entries.append((at, footprint))

    def held_by(self, model: str, at: Seconds) -> Footprint:
        """What the model held at a time; at that of a change, after it."""
        entries = self.held.get(model, [])
        number = bisect_right(entries, at, key=lambda entry: entry[0])
        return entries[number - 1][1] if number else NOTHING


@dataclass(frozen=True, slots=True)
class SwitchCauses:
    """Why switches happened: each by how the model that came had left."""

    first: int = 0
    """It had not been there before."""
    forced: int = 0
    """It had left because another model needed its memory."""
    unforced: int = 0
    """It had left by itself: because nobody had asked for it."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.first + self.forced + self.unforced


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """One GPU lease of a run."""

    name: str
    asked_at: Seconds
    held_at: Seconds | None = None
    """None if it never was: it was refused, or waited at the end of the run."""
    ended_at: Seconds | None = None
    """None if it was held, or waited, at the end of the run."""


@dataclass(frozen=True, slots=True)
class ReadAheadFigures:
    """What reading files ahead of wakes did."""

    wakes: int = 0
    """Those that read files, cold starts included."""
    whole: int = 0
    """Of these, those of which all files had been read ahead."""
    saved_seconds: Seconds = 0.0
    queued_mib: float = 0.0
    """Read for models for which requests waited."""
    predicted_mib: float = 0.0


@dataclass(frozen=True, slots=True)
class Sleepers:
    """What became of models off the GPUs."""

    steps_down: int = 0
    """How often one went on to an eviction that keeps less, or left by one because of the host memory."""
    host_mib_max: int = 0
    """The most host memory that they held together, as far as it was estimated."""


NO_SLEEPERS = Sleepers()


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """How one GPU was used."""

    name: str
    total_mib: int | None
    """None where models are not placed by memory: then it stands for all GPUs together."""
    held_mean: float
    """The share of its memory that models held, sleeping ones included, on average over the time."""
    held_max: float
    shares: Shares
    """Of the time, by what the models on this GPU were doing."""
    worked: float
    """The share of the time in which any of them worked on requests, whatever the others did."""
    residents: Mapping[str, float]
    """By model, the share of the time in which it was on this GPU, from the beginning of its wake to its leaving; by
    GPU lease, that in which it was held."""


@dataclass(frozen=True, slots=True)
class GpuUse:
    """How all GPUs were used in one run, and how many switches memory forced."""

    gpus: tuple[GpuFigures, ...]
    causes: SwitchCauses
    seconds: Seconds
    sleepers: Sleepers = NO_SLEEPERS
    leases: Sequence[LeaseTimes] = ()
    read_ahead: ReadAheadFigures | None = None
    """None where that was not simulated."""

    @property
    def idle_seconds(self) -> Seconds:
        """Time without work on any request, added up over the GPUs."""
        return self.seconds * sum(1.0 - gpu.worked for gpu in self.gpus)


def gpu_use(
    occupancy: Occupancy,
    timeline: Timeline,
    causes: SwitchCauses,
    end: Seconds,
    sleepers: Sleepers = NO_SLEEPERS,
    leases: Sequence[LeaseTimes] = (),
) -> GpuUse:
    """The figures of each GPU, in the configuration's order."""
    gpus = tuple(_figures(occupancy, timeline, leases, gpu, end) for gpu in occupancy.capacity)
    return GpuUse(gpus, causes, end, sleepers, leases)


def _figures(
    occupancy: Occupancy, timeline: Timeline, leases: Sequence[LeaseTimes], gpu: GpuId, end: Seconds
) -> GpuFigures:
    on_it = timeline_on(occupancy, timeline, gpu)
    whole = end or 1.0
    residents = {
        model: seconds / whole
        for model in on_it.entries
        if (seconds := sum(ends - begins for begins, ends, phase in on_it.spans(model, end) if phase not in OFF_GPU))
    }
    residents |= {
        lease.name: ((end if lease.ended_at is None else lease.ended_at) - lease.held_at) / whole
        for lease in leases
        if lease.held_at is not None and gpu in occupancy.held_by(lease.name, lease.held_at)
    }
    mean, most = _held(occupancy, gpu, end)
    total = occupancy.capacity[gpu]
    is_all = gpu == EVERY_GPU
    return GpuFigures(
        name="all" if is_all else gpu.uuid,
        total_mib=None if is_all else total,
        held_mean=mean / total,
        held_max=most / total,
        shares=on_it.shares(end),
        worked=_worked(on_it, end),
        residents=residents,
    )


def timeline_on(occupancy: Occupancy, timeline: Timeline, gpu: GpuId) -> Timeline:
    """The phases of the models while they were on this GPU; off the GPU while they were on others."""
    found = Timeline()
    for model, entries in timeline.entries.items():
        for at, phase in entries:
            is_elsewhere = phase not in OFF_GPU and gpu not in occupancy.held_by(model, at)
            found.enter(model, Phase.NOT_STARTED if is_elsewhere else phase, at)
    return found


def _worked(on_it: Timeline, end: Seconds) -> float:
    """The share of the time in which any model serves or drains."""
    work = Timeline()
    for model, entries in on_it.entries.items():
        for at, phase in entries:
            work.enter(model, Phase.SERVING if phase in (Phase.SERVING, Phase.DRAINING) else Phase.NOT_STARTED, at)
    return work.shares(end).serving


def _held(occupancy: Occupancy, gpu: GpuId, end: Seconds) -> tuple[float, int]:
    """The memory held on a GPU in MiB: the mean over the time, and the most."""
    changes: list[tuple[Seconds, int]] = []
    for entries in occupancy.held.values():
        before = 0
        for at, footprint in entries:
            size = footprint.get(gpu, 0)
            changes.append((max(0.0, at), size - before))
            before = size
    held = most = 0
    area, since = 0.0, 0.0
    for at, change in _summed(changes):
        at = min(at, end)
        area += held * (at - since)
        held, since = held + change, at
        most = max(most, held)
    return (area + held * (end - since)) / (end or 1.0), most


def _summed(changes: Sequence[tuple[Seconds, int]]) -> list[tuple[Seconds, int]]:
    """The changes in order, those of one moment as one: what comes then may take what goes then."""
    by_time: dict[Seconds, int] = {}
    for at, change in sorted(changes):
        by_time[at] = by_time.get(at, 0) + change
    return list(by_time.items())
