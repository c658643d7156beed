"""What may be changed in a configuration to serve a trace sooner: one model's GPU memory, eviction, or idle time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeAlias, assert_never

from llmux.config.eviction import EvictionSettings
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction, Process
from llmux.core.identifiers import Seconds
from llmux.core.scheduler import Scheduler
from llmux.hosts.local import size_mib

IDLE_SECONDS = (10.0, 60.0, 300.0)
"""Idle times that are tried, beside staying until another model needs the place."""
SIZES_MAX = 4
"""Sizes of ``gpu_memory`` that are tried for a model."""
STEP_MIB = 256
"""Sizes are rounded down to a multiple of this: what engines hold is not known any better."""
SHARERS = (2, 3, 4)
"""How many models are made to fit on a GPU together, in equal parts."""
WEIGHTS_FACTOR, OVERHEAD_MIB = 1.2, 1536
"""The least memory of a model whose weights are local: their size, a fifth for a small KV cache, and what CUDA and
activations take. An estimate, for those who do not say it themselves."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Give the model this much of each of its GPUs."""

    model: str
    mib: int


@dataclass(frozen=True, slots=True)
class LeaveBy:
    """Have the model leave by another eviction."""

    model: str
    eviction: Eviction


@dataclass(frozen=True, slots=True)
class LeaveAfter:
    """Have the model leave after this time without a request; None: not before another one needs its place."""

    model: str
    idle_seconds: Seconds | None


Change: TypeAlias = GpuMemory | LeaveBy | LeaveAfter

Changes: TypeAlias = tuple[Change, ...]
"""Of each model and kind at most one."""


def key_of(change: Change) -> str:
    """The key of the model's section that it changes."""
    match change:
        case GpuMemory():
            return "gpu_memory"
        case LeaveBy():
            return "eviction"
        case LeaveAfter():
            return "idle_seconds"
        case _:
            assert_never(change)


def value_of(change: Change) -> str | float | None:
    """The value of the key, as a configuration file has it."""
    match change:
        case GpuMemory(mib=mib):
            return f"{mib // 1024}GiB" if mib % 1024 == 0 else f"{mib}MiB"
        case LeaveBy(eviction=eviction):
            return str(eviction)
        case LeaveAfter(idle_seconds=seconds):
            return int(seconds) if seconds is not None and seconds.is_integer() else seconds
        case _:
            assert_never(change)


def with_changes(changes: Changes, more: Changes) -> Changes:
    """The changes with some more, each of which replaces one of the same key."""
    replaced = {(one.model, key_of(one)) for one in more}
    return (*(one for one in changes if (one.model, key_of(one)) not in replaced), *more)


def parts(changes: Changes) -> Sequence[Changes]:
    """What is worth judging alone: each change, and all sizes together, as one model's often needs another's."""
    sizes_ = tuple(change for change in changes if isinstance(change, GpuMemory))
    found = [(change,) for change in changes] + ([sizes_] if len(sizes_) > 1 else [])
    return [some for some in found if some != changes]


@dataclass(frozen=True, slots=True)
class Memory:
    """The GPUs' memory and what models need of it, in MiB on each GPU; all empty where models are not placed by it."""

    gpus: tuple[int, ...]
    needs: Mapping[str, int]
    least: Mapping[str, int]
    """What a model works with at the least, of those of which that is known: only their memory is ever lowered."""

    @classmethod
    def of(cls, scheduler: Scheduler, least: Mapping[str, int]) -> Self:
        """As the scheduler was built: with declared needs, or what else llmux knows of them."""
        if not scheduler.places_by_memory:
            return cls((), {}, {})
        needs = {
            model.name: max(max(place.awake.values(), default=0) for place in model.spec.placements)
            for model in scheduler.models
        }
        known = {name: mib for name, mib in least.items() if 0 < mib < needs[name]}
        return cls(tuple(total for total, _ in scheduler.gpu_memory().values()), needs, known)

    def with_sizes(self, changes: Changes) -> Self:
        """With what the models need after the changes."""
        sizes_ = {change.model: change.mib for change in changes if isinstance(change, GpuMemory)}
        return replace(self, needs={**self.needs, **sizes_})


def least_of_weights(settings: Settings) -> dict[str, int]:
    """An estimate of the least memory of each model whose weights are local files. Reads the disk."""
    found = {}
    for name in settings.models:
        engine = settings.engine_of(name)
        if weights_mib := size_mib(engine.weight_files()):
            found[name] = math.ceil(weights_mib / engine.gpu_count * WEIGHTS_FACTOR) + OVERHEAD_MIB
    return found


def applied(settings: Settings, changes: Changes, memory: Memory) -> Settings:
    """The settings, whose memory is given, with the changes.

    A model with less memory gets fewer requests at once, in proportion to what is left above the least, which is taken
    for its KV cache: as if the cache had been full with as many as it got before. Thus no saving is overstated.
    """
    models = dict(settings.models)
    for change in changes:
        name = change.model
        match change:
            case GpuMemory(mib=mib):
                least = memory.least[name]
                share = (mib - least) / (memory.needs[name] - least)
                places = max(1, math.floor(settings.max_in_flight_of(name) * share))
                update: dict[str, object] = {"gpu_memory": mib << 20, "max_in_flight": places}
            case LeaveBy(eviction=eviction):
                update = {"eviction": EvictionSettings.of(eviction)}
            case LeaveAfter(idle_seconds=seconds):
                update = {"idle_seconds": seconds}
            case _:
                assert_never(change)
        models[name] = models[name].model_copy(update=update)
    return settings.model_copy(update={"models": models})


def is_kept_by_llmux(settings: Settings, change: GpuMemory) -> bool:
    """Whether llmux starts the engine with arguments that keep it within the size; False if its own say otherwise."""
    model = settings.models[change.model].model_copy(update={"gpu_memory": change.mib << 20})
    changed = settings.model_copy(update={"models": {**settings.models, change.model: model}})
    return bool(changed.engine_of(change.model).memory_arguments(change.mib))


def evictions(settings: Settings, name: str) -> Iterator[Change]:
    """Other ways to leave that the engine has and that need nothing that is not set up.

    An image needs the section ``checkpoint``; whether the driver can suspend processes here is not known.
    """
    now = settings.eviction_of(name)
    for eviction in settings.engine_of(name).evictions():
        needs_set_up = eviction.process is Process.CUDA_SUSPEND and not settings.needs_cuda_suspend
        needs_set_up |= eviction.process is Process.CHECKPOINT and settings.checkpoint is None
        if eviction != now and eviction.leaves_the_gpu and not needs_set_up:
            yield LeaveBy(name, eviction)


def idle_times(settings: Settings, name: str) -> Iterator[Change]:
    """Other idle times."""
    now = settings.idle_seconds_of(name)
    yield from (LeaveAfter(name, seconds) for seconds in IDLE_SECONDS if seconds != now)
    if now != math.inf and settings.policy.idle_seconds is None:
        yield LeaveAfter(name, None)


def sizes(name: str, memory: Memory, present: Memory) -> Iterator[Change]:
    """Less memory, so that the model fits beside one of the others as they are at ``present``, or beside several as
    small as itself.
    """
    if name not in memory.least:
        return
    others = [need for other, need in present.needs.items() if other != name]
    found = {
        size - size % STEP_MIB
        for total in memory.gpus
        for size in (*(total - need for need in others), *(total // sharers for sharers in SHARERS))
    }
    fitting = sorted((size for size in found if memory.least[name] <= size < memory.needs[name]), reverse=True)
    yield from (GpuMemory(name, size) for size in fitting[:SIZES_MAX])


def equal_parts(memory: Memory) -> Iterator[Changes]:
    """Several models at once lowered to equal parts of the smallest GPU: one alone would not fit beside the others."""
    smallest = min(memory.gpus, default=0)
    for sharers in SHARERS:
        part = smallest // sharers - smallest // sharers % STEP_MIB
        lowered = tuple(
            GpuMemory(name, part) for name, least in memory.least.items() if least <= part < memory.needs[name]
        )
        if len(lowered) > 1:
            yield lowered


def alternatives(settings: Settings, name: str, memory: Memory, present: Memory) -> Iterator[list[Changes]]:
    """What may be tried for a model, by the key that is changed. ``present``: the memory with what is best so far."""
    for found in (sizes(name, memory, present), evictions(settings, name), idle_times(settings, name)):
        yield [(change,) for change in found]
