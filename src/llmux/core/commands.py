"""What the operator asks for: switch, pin, wake, sleep, mode, and the end."""

from dataclasses import replace

from llmux.core.actions import AbortEvict, AbortWake, CommandDone
from llmux.core.admission import lose_frozen, refuse_all, refuse_disallowed
from llmux.core.events import ModeChanged, ShutdownRequested, SleepRequested, SwitchRequested, WakeRequested
from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import Seconds
from llmux.core.lifecycle import begin_drain, begin_evict
from llmux.core.model import Model
from llmux.core.states import Asleep, Auto, Cold, Draining, Evicting, Failed, Manual, Mode, Serving, Waking
from llmux.core.world import Command, SleepCommand, SwitchCommand, World
from llmux.errors import CommandFailed, ShuttingDown


def active_model(world: World) -> str | None:
    """The one model that the outside calls active: the one on its way in, else the one woken last."""
    for claim in world.claims.values():
        return claim.target
    serving = [model for model in world.on_gpu.values() if isinstance(model.state, Serving)]
    return max(serving, key=_serving_since).name if serving else None


def _serving_since(model: Model) -> Seconds:
    assert isinstance(model.state, Serving)
    return model.state.since


def change_mode(world: World, event: ModeChanged, now: Seconds) -> None:
    """Automatic or manual; in manual mode the active model goes on being served."""
    world.mode = Manual(None, active_model(world)) if event.manual else Auto()
    refuse_disallowed(world, now)


def request_switch(world: World, event: SwitchRequested, now: Seconds) -> None:
    """Bring a model; in manual mode, and with ``pin``, only this model is served from now on."""
    sets_mode = event.pin or isinstance(world.mode, Manual)
    if _accept(world, SwitchCommand(event.command, event.model, world.mode if sets_mode else None)) and sets_mode:
        world.mode = Manual(event.model, event.model)
        refuse_disallowed(world, now)


def request_wake(world: World, event: WakeRequested) -> None:
    """Bring a model, the mode untouched."""
    _accept(world, SwitchCommand(event.command, event.model, None))


def request_sleep(world: World, event: SleepRequested) -> None:
    """Take a model off the GPU."""
    _accept(world, SleepCommand(event.command, event.model, event.eviction))


def _accept(world: World, command: Command) -> bool:
    if world.stopping_until is not None:
        world.emit(CommandDone(command.number, CommandFailed("llmux is shutting down")))
        return False
    if len(world.commands) >= world.limits.commands_max:
        world.emit(CommandDone(command.number, CommandFailed("too many operator commands are waiting")))
        return False
    world.commands[command.number] = command
    return True


def advance_commands(world: World, now: Seconds) -> None:
    """Perform the operator's commands one after the other, as far as they can go now."""
    while world.commands:
        command = next(iter(world.commands.values()))
        model = world.models[command.model]
        if isinstance(command, SwitchCommand):
            is_done = isinstance(model.state, Serving)
        else:
            is_done = _advance_sleep(world, model, command.eviction or model.eviction, now)
        if not is_done:
            return
        _end(world, command, None, now)


def fail_switches(world: World, model: Model, reason: str, now: Seconds) -> None:
    """A wake failed: so did every command that wanted it, and the mode goes back to what it was."""
    for command in list(world.commands.values()):
        if isinstance(command, SwitchCommand) and command.model == model.name:
            _end(world, world.commands[command.number], CommandFailed(reason), now)


def end_sleep(world: World, model: Model, eviction: Eviction, error: str | None, now: Seconds) -> None:
    """An eviction ended: so did the command that wanted it, even if another way off the GPU was taken in the end."""
    command = next(iter(world.commands.values()), None)
    if not isinstance(command, SleepCommand) or command.model != model.name:
        return
    if error is not None:
        _end(world, command, CommandFailed(error), now)
    elif eviction == (command.eviction or model.eviction):
        _end(world, command, None, now)


def _end(world: World, command: Command, error: CommandFailed | None, now: Seconds) -> None:
    del world.commands[command.number]
    world.emit(CommandDone(command.number, error))
    if error is not None and isinstance(command, SwitchCommand) and command.mode_before is not None:
        _roll_back(world, Manual(command.model, command.model), command.mode_before, now)


def _roll_back(world: World, failed: Mode, before: Mode, now: Seconds) -> None:
    """Undo a failed command's mode, or, where a later command has set another one, leave it nothing to go back to."""
    if world.mode == failed:
        world.mode = before
        refuse_disallowed(world, now)
    for number, command in list(world.commands.items()):
        if isinstance(command, SwitchCommand) and command.mode_before == failed:
            world.commands[number] = replace(command, mode_before=before)


def _advance_sleep(world: World, model: Model, eviction: Eviction, now: Seconds) -> bool:
    """One step of putting a model to sleep; whether it sleeps as deeply as was asked."""
    match model.state:
        case Cold() | Failed():
            return True
        case Asleep(eviction=asleep):
            if not eviction.is_deeper_than(asleep):
                return True
            begin_evict(world, model, eviction, now)
        case Serving():
            if not eviction.leaves_the_gpu:
                return True
            begin_drain(world, model, eviction, now + world.limits.drain_timeout_seconds, now)
        case Draining(since, serving_since, deadline, present) if eviction.leaves_the_gpu and eviction != present:
            world.set_state(model, Draining(since, serving_since, deadline, eviction), now)
        case _:
            pass
    return False


def change_eviction(model: Model, eviction: Eviction) -> None:
    """Override how a model leaves from now on, also if that was found to change what it says."""
    model.eviction_override = eviction
    model.unfaithful.discard(eviction)


def begin_shutdown(world: World, event: ShutdownRequested, now: Seconds) -> None:
    """Refuse what waits, give up what is under way, and let what is in flight end within the time given."""
    if world.stopping_until is not None:
        world.stopping_until = min(world.stopping_until, now + event.drain_seconds)
        return
    world.stopping_until = now + event.drain_seconds
    world.claims.clear()
    for model in world.models.values():
        refuse_all(world, model, ShuttingDown(), now)
        lose_frozen(world, model, ShuttingDown(), now)
        if isinstance(model.state, Waking):
            world.emit(AbortWake(model.instance))
        elif isinstance(model.state, Evicting) and model.state.eviction != STOP:
            world.emit(AbortEvict(model.instance))
    for command in list(world.commands.values()):
        _end(world, command, CommandFailed("llmux is shutting down"), now)


def advance_shutdown(world: World, now: Seconds) -> None:
    """Bring every engine one step nearer to its end."""
    assert world.stopping_until is not None
    for model in world.models.values():
        match model.state:
            case Serving():
                begin_drain(world, model, STOP, world.stopping_until, now)
            case Draining(since, serving_since, deadline, eviction) if (
                deadline > world.stopping_until or eviction != STOP
            ):
                deadline = min(deadline, world.stopping_until)
                world.set_state(model, Draining(since, serving_since, deadline, STOP), now)
            case Asleep():
                begin_evict(world, model, STOP, now)
            case _:
                pass
