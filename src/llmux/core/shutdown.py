"""The end: what waits is refused, what has begun may end within the time given, and every engine is stopped.

Requests that are frozen have begun too: their models are woken once more, one after the other, as memory becomes free.
"""

from llmux.core import switching
from llmux.core.actions import AbortEvict, AbortWake
from llmux.core.admission import lose_frozen, refuse_all
from llmux.core.commands import fail_all
from llmux.core.events import ShutdownRequested
from llmux.core.eviction import STOP
from llmux.core.identifiers import Seconds
from llmux.core.leasing import release_all
from llmux.core.lifecycle import begin_drain, begin_evict, begin_wake
from llmux.core.model import Model
from llmux.core.placement import fits
from llmux.core.states import Asleep, Draining, Evicting, Serving, Waking
from llmux.core.vacating import lacks
from llmux.core.world import World
from llmux.errors import ShuttingDown


def begin_shutdown(world: World, event: ShutdownRequested) -> None:
    """Refuse what waits, and give what has begun the time to end; a second order can only shorten that."""
    ends_at = world.clock.now + event.drain_seconds
    if world.stopping_until is not None:
        world.stopping_until = min(world.stopping_until, ends_at)
        return
    world.stopping_until = ends_at
    switching.abandon_all(world)
    release_all(world)
    for model in world.models.values():
        refuse_all(world, model, ShuttingDown())
    fail_all(world, "llmux is shutting down")


def advance_shutdown(world: World, ends_at: Seconds) -> None:
    """Bring every engine one step nearer to its end; ``ends_at`` is when nothing is waited for any more."""
    if world.frozen_requests and world.clock.now >= ends_at:
        for model in world.models.values():
            lose_frozen(world, model, ShuttingDown())
    for model in world.models.values():
        match model.state:
            case Serving():
                begin_drain(world, model, STOP, ends_at)
            case Draining(since, serving_since, deadline, eviction) if deadline > ends_at or eviction != STOP:
                world.set_state(model, Draining(since, serving_since, min(deadline, ends_at), STOP))
            case Asleep() if not model.frozen:
                begin_evict(world, model, STOP)
            case Waking() | Evicting() if not model.frozen:
                _abort(world, model)
            case _:
                pass
    if world.frozen_requests:
        _wake_frozen(world)


def _abort(world: World, model: Model) -> None:
    """Give up a wake or an eviction that nobody waits for, once; stopping an engine is not given up."""
    if model.name in world.aborted:
        return
    if isinstance(model.state, Waking):
        world.emit(AbortWake(model.instance))
    elif isinstance(model.state, Evicting) and model.state.eviction != STOP:
        world.emit(AbortEvict(model.instance))
    else:
        return
    world.aborted.add(model.name)


def _wake_frozen(world: World) -> None:
    """Wake sleepers with frozen requests as far as they fit, those first that have waited longest.

    The one that left last always fits once the GPU is empty: it was there while the others were asleep.
    """
    asleep = [model for model in world.models.values() if model.frozen and isinstance(model.state, Asleep)]
    for model in sorted(asleep, key=lambda model: model.head_since or 0.0):
        fits_there = fits(lacks(model, model.placement), world.gpus.free) and not switching.starts_beside(world, model)
        if fits_there and world.on_gpu.keys().isdisjoint(world.rules.rivals(model.name)):
            begin_wake(world, model)
