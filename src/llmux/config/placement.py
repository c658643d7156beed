"""Where models may be on the GPUs: what the configuration says of both."""

import os
from collections.abc import Iterable, Iterator, Mapping

from llmux.config.problems import dotted
from llmux.config.remedies import nearest
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction, Process, Weights
from llmux.core.identifiers import ALL_OF_IT, VISIBLE_GPUS, GpuId
from llmux.core.need import NeedSource, SaidNeed, SeenNeed, need_on
from llmux.core.placement import gpu_sets
from llmux.core.settings import WITHOUT_GPU, Placement
from llmux.engines.base import Engine
from llmux.errors import ConfigError, Problem

THIS_HOST = "local"
WEIGHTS_STAY = Eviction(Weights.RETAIN, Process.KEEP_RUNNING)
MIB = 1 << 20


def leaves_sharing_open(settings: Settings) -> bool:
    """Whether it depends on the machine alone if models are placed by memory.

    It does if nothing in the configuration asks for it, nor for what is possible only without it.
    """
    if settings.share_gpus is not None or settings.places_by_memory:
        return False
    return not any(
        VISIBLE_GPUS in model.env
        or (settings.engine_of(name).uses_gpu and not settings.eviction_of(name).leaves_the_gpu)
        for name, model in settings.models.items()
    )


def declared_gpus(settings: Settings, environment: Mapping[str, str] = os.environ) -> dict[GpuId, int]:
    """The memory of each declared GPU in MiB, in the order of their positions."""
    visible = [entry.strip() for entry in environment.get(VISIBLE_GPUS, "").split(",") if entry.strip()]
    names = visible if len(visible) >= len(settings.gpus) else [str(position) for position in range(len(settings.gpus))]
    declared = zip(settings.gpus, names, strict=False)
    return {GpuId(THIS_HOST, gpu.device or name): gpu.memory // MIB for gpu, name in declared}


def placements(
    settings: Settings, name: str, gpus: Mapping[GpuId, int], seen: SeenNeed | None = None
) -> tuple[Placement, ...]:
    """Where the model may be, at least one place. ``gpus``: the memory of each in MiB, by position.

    ``seen``: what its engine was seen to hold.

    Raises ConfigError if it needs more GPUs, or more memory of one, than there is.
    """
    engine = settings.engine_of(name)
    if not engine.uses_gpu:
        return (WITHOUT_GPU,)
    if not settings.places_by_memory:
        return (Placement(ALL_OF_IT, shrinks=engine.frees_memory(WEIGHTS_STAY)),)
    # How much of its memory its weights take is not known: what keeps them on the GPU leaves nothing for others.
    seen, said = seen or SeenNeed(), said_need(settings, name)
    needs = {gpu: need_on(total_mib, said, seen).mib for gpu, total_mib in gpus.items()}
    sets = list(_sets(settings, name, gpus))
    fitting = [chosen for chosen in sets if all(needs[gpu] <= gpus[gpu] for gpu in chosen)]
    if not fitting:
        most_mib = max(min(gpus[gpu] for gpu in chosen) for chosen in sets)
        message = f"it needs {min(needs.values())} MiB, and the GPUs that it may use have {most_mib}"
        raise ConfigError([Problem(dotted(("models", name, "gpu_memory")), message, "correct it, or gpus")])
    return tuple(_placement({gpu: needs[gpu] for gpu in chosen}, seen) for chosen in fitting)


def _placement(awake: Mapping[GpuId, int], seen: SeenNeed) -> Placement:
    def residue(mib: int) -> Mapping[GpuId, int]:
        # Asleep it holds no more than awake, so that going to sleep never takes memory.
        return {gpu: min(mib, size) for gpu, size in awake.items()}

    return Placement(awake, {eviction: residue(mib) for eviction, mib in seen.residue_mib.items() if mib})


def known_placements(
    settings: Settings, names: Iterable[str]
) -> tuple[Mapping[GpuId, int], Mapping[str, tuple[Placement, ...]]] | None:
    """The GPUs, and where each of these models may be, for checks; None where only the machine tells, or one is wrong.

    What is wrong with one, ``problems`` says.
    """
    gpus = declared_gpus(settings) if settings.places_by_memory else ALL_OF_IT
    if not gpus:
        return None
    try:
        return gpus, {name: placements(settings, name, gpus) for name in names}
    except (ConfigError, ValueError):
        return None


def unknown_model(settings: Settings, path: str, name: str) -> Problem:
    """The problem of a key at ``path`` that should name a model, and names none."""
    return Problem(path, f"'{name}' is not the key of a model", nearest(name, settings.models))


def said_need(settings: Settings, name: str) -> SaidNeed:
    """What the configuration and its engine's arguments say that the model needs of each of its GPUs."""
    engine = settings.engine_of(name)
    if engine.options.gpu_memory_mib:
        return SaidNeed(NeedSource.DECLARED, mib=engine.options.gpu_memory_mib)
    if engine.start_share is not None:
        return SaidNeed(NeedSource.ARGUMENTS, share=engine.start_share)
    return SaidNeed()


def _sets(settings: Settings, name: str, sizes: Mapping[GpuId, int]) -> Iterator[tuple[GpuId, ...]]:
    """The sets of GPUs that the model may use; raises ConfigError if it names or needs others than there are."""
    chosen, engine, gpus = settings.models[name].gpus, settings.engine_of(name), list(sizes)
    path = dotted(("models", name, "gpus"))
    if isinstance(chosen, tuple):
        if max(chosen) >= len(gpus):
            message = f"there is no GPU {max(chosen)}: there are {len(gpus)}, and positions begin with 0"
            raise ConfigError([Problem(path, message, "correct it")])
        yield tuple(gpus[position] for position in chosen)
        return
    count = _count(engine, min(sizes.values())) if chosen is None else chosen
    if count is None:
        # Wherever it is: nobody else may be there.
        yield tuple(gpus)
        return
    if count > len(gpus):
        message = f"it needs {count} GPUs, and there are {len(gpus)}"
        raise ConfigError([Problem(path, message, "correct it, or the engine's arguments")])
    yield from gpu_sets(gpus, count)


def _count(engine: Engine, gpu_mib: int) -> int | None:
    """How many GPUs an engine uses where the configuration does not say it; None: all of them."""
    if not engine.sees_given_gpus:
        return None
    return engine.gpu_count if engine.options.gpu_memory_mib else engine.gpus_used(gpu_mib)


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
