"""Models of a ``together`` group: while one of them is used the others come, and none of them leaves for being idle."""

import math

from llmux.core.identifiers import Seconds
from llmux.core.model import Model
from llmux.core.states import Serving
from llmux.core.switching import bring_beside
from llmux.core.vacating import Room
from llmux.core.world import World


def unused_since(world: World, model: Model) -> Seconds:
    """Since when neither an idle model nor its companions have been used; infinity while one of them is."""
    since = model.idle_since
    for companion in _companions(world, model):
        is_used = isinstance(companion.state, Serving) and not companion.is_idle
        since = max(since, math.inf if is_used else companion.idle_since)
    return since


def bring(world: World) -> None:
    """Wake a companion of a model that is in use, if nobody has to leave for it and nobody waits for anything.

    One at a time: its outcome leads here again.
    """
    if not world.rules.has_companions or world.candidates or world.commands or world.switches or world.missing:
        return
    for model in world.on_gpu.values():
        if not isinstance(model.state, Serving) or model.is_idle:
            continue
        for companion in _companions(world, model):
            if _may_come(world, companion) and _has_room(world, companion):
                bring_beside(world, companion)
                return


def _companions(world: World, model: Model) -> list[Model]:
    return [world.models[name] for name in world.rules.companions(model.name)]


def _may_come(world: World, model: Model) -> bool:
    is_refused = model.name in world.rules.shut_out or not world.allows(model.name)
    return model.can_be_woken and not model.stays_away and not is_refused


def _has_room(world: World, model: Model) -> bool:
    """Whether it fits somewhere beside everything that is on the GPUs; that is where it comes then."""
    room = Room(world)
    found = room.best(model, model.placements)
    if found is None or found.plan.victims or not room.fits_now(model, found.placement):
        return False
    world.place(model, found.placement)
    return True
