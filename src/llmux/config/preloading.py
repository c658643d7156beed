"""The models that are on the GPUs from the start: whether they can be there together, and which start at once."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from llmux.config.placement import known_placements, unknown_model
from llmux.config.problems import dotted
from llmux.config.settings import Settings
from llmux.core.identifiers import Footprint, GpuId
from llmux.core.placement import fits, take
from llmux.core.settings import Placement
from llmux.errors import ConfigError, Problem


def groups(places: Mapping[str, Sequence[Placement]], gpus: Mapping[GpuId, int]) -> Sequence[Sequence[str]]:
    """The models that are to be preloaded in their order, those together that are started at the same time.

    A model begins with those before it as long as they are on other GPUs: its place is then the one that it would get
    after them, too. ``places``: where each may be; ``gpus``: the memory of each in MiB. Raises ConfigError where one
    would have to leave for another.
    """
    found: list[list[str]] = []
    taken: set[GpuId] = set()
    for name, place in _chosen(places, gpus):
        if not found or not taken.isdisjoint(place):
            found.append([])
            taken.clear()
        found[-1].append(name)
        taken.update(place)
    return found


def problems(settings: Settings) -> Iterator[Problem]:
    """Names that are no model's, and models that cannot stay beside each other, as far as the configuration tells."""
    unknown = list(_unknown(settings))
    yield from unknown
    for name, count in Counter(settings.preload).items():
        if count > 1:
            yield Problem("preload", f"names '{name}' {count} times", "name it once")
    default = settings.default_model
    if default in settings.models and settings.models[default].idle_seconds is not None:
        path = dotted(("models", default, "idle_seconds"))
        yield Problem(path, f"'{default}' is the default_model, which stays when it is idle", "remove it")
    named = filter(None, (*settings.preload, default))
    if not unknown and (found := known_placements(settings, named)) is not None:
        gpus, places = found
        yield from _crowded(settings, places, gpus)


def _unknown(settings: Settings) -> Iterator[Problem]:
    named = [("default_model", settings.default_model)] if settings.default_model is not None else []
    named += [(f"preload.{position}", name) for position, name in enumerate(settings.preload)]
    for path, name in named:
        if name not in settings.models:
            yield unknown_model(settings, path, name)


def _crowded(
    settings: Settings, places: Mapping[str, Sequence[Placement]], gpus: Mapping[GpuId, int]
) -> Iterator[Problem]:
    try:
        groups({name: places[name] for name in settings.preload}, gpus)
    except ConfigError as error:
        yield from error.problems
        return
    try:
        groups(places, gpus)
    except ConfigError:
        message = "does not fit beside the models of preload: they would leave for it once they are idle"
        yield Problem("default_model", message, "choose one of preload, or preload fewer")


def _chosen(places: Mapping[str, Sequence[Placement]], gpus: Mapping[GpuId, int]) -> Iterator[tuple[str, Footprint]]:
    """Where each would be if they came one after the other: where it leaves the least memory free, as in a switch.

    Raises ConfigError.
    """
    free = dict(gpus)
    before: list[str] = []
    for name, own in places.items():
        fitting = [place.awake for place in own if fits(place.awake, free)]
        if not fitting:
            others = ", ".join(f"'{other}'" for other in before)
            message = f"'{name}' does not fit on the GPUs beside {others}, so that one of them would leave for it"
            remedy = "preload fewer, or say with gpu_memory how much each needs"
            raise ConfigError([Problem("preload", message, remedy)])
        chosen = min(fitting, key=lambda awake: sum(free[gpu] - size for gpu, size in awake.items()))
        take(free, chosen)
        before.append(name)
        yield name, chosen
