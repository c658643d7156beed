"""Where models may be on the GPUs: what the configuration says of both."""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import comb

from llmux.config.problems import dotted
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction, Process, Weights
from llmux.core.identifiers import ALL_OF_IT, VISIBLE_GPUS, GpuId
from llmux.core.settings import WITHOUT_GPU, Placement
from llmux.errors import ConfigError, Problem

THIS_HOST = "local"
WEIGHTS_STAY = Eviction(Weights.RETAIN, Process.KEEP_RUNNING)
MIB = 1 << 20
PLACES_MAX = 128
"""Places that a decision may have to compare for one model. Of 8 GPUs there are at most 70 sets of one size; where
there are more, only those of neighbours count."""


def declared_gpus(settings: Settings, environment: Mapping[str, str] = os.environ) -> dict[GpuId, int]:
    """The memory of each declared GPU in MiB, in the order of their positions."""
    visible = [entry.strip() for entry in environment.get(VISIBLE_GPUS, "").split(",") if entry.strip()]
    names = visible if len(visible) >= len(settings.gpus) else [str(position) for position in range(len(settings.gpus))]
    declared = zip(settings.gpus, names, strict=False)
    return {GpuId(THIS_HOST, gpu.device or name): gpu.memory // MIB for gpu, name in declared}


def placements(settings: Settings, name: str, gpus: Mapping[GpuId, int]) -> tuple[Placement, ...]:
    """Where the model may be, at least one place. ``gpus``: the memory of each in MiB, by position.

    Raises ConfigError if it needs more GPUs, or more memory of one, than there is.
    """
    engine = settings.engine_of(name)
    if not engine.uses_gpu:
        return (WITHOUT_GPU,)
    if not settings.places_by_memory:
        return (Placement(ALL_OF_IT, shrinks=engine.frees_memory(WEIGHTS_STAY)),)
    # How much of its memory its weights take is not known: what keeps them on the GPU leaves nothing for others.
    needs = {gpu: _need(settings, name, total_mib) for gpu, total_mib in gpus.items()}
    sets = list(_sets(settings, name, list(gpus)))
    fitting = [chosen for chosen in sets if all(needs[gpu] <= gpus[gpu] for gpu in chosen)]
    if not fitting:
        most_mib = max(min(gpus[gpu] for gpu in chosen) for chosen in sets)
        message = f"it needs {min(needs.values())} MiB, and the GPUs that it may use have {most_mib}"
        raise ConfigError([Problem(dotted(("models", name, "gpu_memory")), message, "correct it, or gpus")])
    return tuple(Placement({gpu: needs[gpu] for gpu in chosen}) for chosen in fitting)


def _need(settings: Settings, name: str, total_mib: int) -> int:
    engine = settings.engine_of(name)
    if engine.options.gpu_memory_mib:
        return engine.options.gpu_memory_mib
    return total_mib if engine.start_share is None else int(engine.start_share * total_mib)


def _sets(settings: Settings, name: str, gpus: Sequence[GpuId]) -> Iterator[tuple[GpuId, ...]]:
    """The sets of GPUs that the model may use; raises ConfigError if it names or needs others than there are."""
    chosen, engine = settings.models[name].gpus, settings.engine_of(name)
    path = dotted(("models", name, "gpus"))
    if isinstance(chosen, tuple):
        if max(chosen) >= len(gpus):
            message = f"there is no GPU {max(chosen)}: there are {len(gpus)}, and positions begin with 0"
            raise ConfigError([Problem(path, message, "correct it")])
        yield tuple(gpus[position] for position in chosen)
        return
    if chosen is None and not engine.sees_given_gpus:
        # Wherever it is: nobody else may be there.
        yield tuple(gpus)
        return
    count = engine.gpu_count if chosen is None else chosen
    if count > len(gpus):
        message = f"it needs {count} GPUs, and there are {len(gpus)}"
        raise ConfigError([Problem(path, message, "correct it, or the engine's arguments")])
    if comb(len(gpus), count) <= PLACES_MAX:
        yield from combinations(gpus, count)
    else:
        yield from (tuple(gpus[first : first + count]) for first in range(len(gpus) - count + 1))


def problems(settings: Settings) -> Iterator[Problem]:
    """What cannot be placed, as far as the configuration alone tells."""
    if not settings.places_by_memory:
        return
    gpus = declared_gpus(settings)
    if len(gpus) < len(settings.gpus):
        yield Problem("gpus", "names a device twice", "give each one a device of its own")
    for name, model in settings.models.items():
        engine = settings.engine_of(name)
        if VISIBLE_GPUS in model.env:
            message = f"{VISIBLE_GPUS} is set by llmux where it places models by memory"
            yield Problem(dotted(("models", name, "env", VISIBLE_GPUS)), message, "remove it, and use the model's gpus")
        if isinstance(model.gpus, int) and not engine.sees_given_gpus:
            message = "llmux cannot tell this engine which GPUs to use"
            yield Problem(dotted(("models", name, "gpus")), message, "list those that it uses, as [0]")
            continue
        try:
            if gpus:
                placements(settings, name, gpus)
        except ConfigError as error:
            yield from error.problems
        except ValueError:
            # An argument of its engine is wrong: ``checks.engines`` says which.
            continue
