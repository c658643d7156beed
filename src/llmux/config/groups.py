"""Groups of models and pins: whether they can be kept beside what else is configured."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from llmux.config import preloading
from llmux.config.placement import known_placements, unknown_model
from llmux.config.problems import dotted
from llmux.config.settings import Settings
from llmux.core.groups import Group
from llmux.core.identifiers import Footprint
from llmux.core.placement import fits, free_memory
from llmux.core.settings import Placement
from llmux.errors import ConfigError, Problem


def groups_of(settings: Settings) -> tuple[Group, ...]:
    """The core's description of the configured groups."""
    return tuple(
        Group(group.models, group.exclusive, group.persistent, group.together) for group in settings.groups.values()
    )


def problems(settings: Settings) -> Iterator[Problem]:
    """Unknown models, and models that could never be served beside those that stay, as far as is known of the GPUs."""
    unknown = list(_unknown(settings))
    yield from unknown
    if unknown:
        return
    yield from _pinned_rivals(settings)
    yield from _companions_that_are_rivals(settings)
    if (found := known_placements(settings, settings.models)) is None:
        return
    gpus, places = found
    known = {name for name in places if _is_need_known(settings, name)}
    for group_name, group in settings.groups.items():
        is_known = not settings.places_by_memory or known.issuperset(group.models)
        if group.together and is_known and not _all_fit({name: places[name] for name in group.models}, gpus):
            message = "there is never room for all of its models on the GPUs"
            remedy = "say with gpu_memory how much each needs, or take some out of the group"
            yield Problem(dotted(("groups", group_name, "together")), message, remedy)
    for name, path, why in _staying(settings):
        inside = {name, *_of_the_same_persistent_groups(settings, name)} if "groups" in path else {name}
        shut_out = [
            other
            for other in settings.models
            if other not in inside
            and (not settings.places_by_memory or {name, other} <= known)
            and not _fit_together(places[name], places[other], gpus)
        ]
        if shut_out:
            named = ", ".join(f"'{other}'" for other in shut_out)
            message = f"'{name}' {why}, and beside it there is never room for {named}"
            remedy = "say with gpu_memory how much each needs, give it other GPUs, or let it leave"
            yield Problem(path, message, remedy)


def _unknown(settings: Settings) -> Iterator[Problem]:
    for name, group in settings.groups.items():
        for position, model in enumerate(group.models):
            path = dotted(("groups", name, "models", position))
            if model not in settings.models:
                yield unknown_model(settings, path, model)
            elif model in group.models[:position]:
                yield Problem(path, f"'{model}' is in the group twice", "name it once")


def _pinned_rivals(settings: Settings) -> Iterator[Problem]:
    """A pinned model of an exclusive group keeps every other one of it away for good."""
    for name, group in settings.groups.items():
        pinned = [model for model in group.models if settings.models[model].pin is not None]
        if group.exclusive and pinned and len(group.models) > 1:
            message = f"'{pinned[0]}' is pinned, so that no other model of this exclusive group could be served"
            yield Problem(dotted(("groups", name, "exclusive")), message, "take it out of the group, or remove its pin")


def _companions_that_are_rivals(settings: Settings) -> Iterator[Problem]:
    for name, group in settings.groups.items():
        for other_name, other in settings.groups.items():
            both = [model for model in group.models if model in other.models]
            if group.together and other.exclusive and len(both) > 1:
                message = f"by '{other_name}', '{both[0]}' and '{both[1]}' may not be on the GPUs at the same time"
                yield Problem(dotted(("groups", name, "together")), message, "leave out one of the two rules")


def _staying(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """The models that stay on the GPUs: each with the key that says so, and what it says."""
    for name, model in settings.models.items():
        if model.pin is not None:
            yield name, dotted(("models", name, "pin")), "stays on the GPUs once it is there"
    for group_name, group in settings.groups.items():
        if group.persistent:
            for name in group.models:
                yield name, dotted(("groups", group_name, "persistent")), "leaves for no model outside the group"


def _of_the_same_persistent_groups(settings: Settings, name: str) -> Iterator[str]:
    for group in settings.groups.values():
        if group.persistent and name in group.models:
            yield from group.models


def _is_need_known(settings: Settings, name: str) -> bool:
    engine = settings.engine_of(name)
    return bool(engine.options.gpu_memory_mib) or engine.start_share is not None or not engine.uses_gpu


def _all_fit(places: Mapping[str, Sequence[Placement]], gpus: Footprint) -> bool:
    """Whether all find room if they come one after the other."""
    try:
        preloading.groups(places, gpus)
    except ConfigError:
        return False
    return True


def _fit_together(one: Sequence[Placement], other: Sequence[Placement], gpus: Footprint) -> bool:
    return any(fits(place.awake, free_memory(gpus, [taken.awake])) for taken, place in product(one, other))
