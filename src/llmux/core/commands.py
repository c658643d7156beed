"""What the operator asks for: switch, pin, wake, sleep, mode, eviction."""

from dataclasses import replace

from llmux.core.actions import CommandDone
from llmux.core.admission import refuse_disallowed
from llmux.core.events import ModeChanged, SleepRequested, SwitchRequested, WakeRequested
from llmux.core.eviction import Eviction
from llmux.core.identifiers import Seconds
from llmux.core.leasing import lease_in_the_way
from llmux.core.lifecycle import begin_drain, begin_evict
from llmux.core.model import Model
from llmux.core.states import Asleep, Auto, Cold, Draining, Failed, Manual, Mode, Serving
from llmux.core.world import Command, SleepCommand, SwitchCommand, World
from llmux.errors import CommandFailed, FailureReason


def active_model(world: World) -> str | None:
    """The one model that 0.7.7's API calls active: the one on its way in, else the one woken last.

    One that needs no GPU is that only while none does that needs one. A GPU lease never is.
    """
    coming = [world.models[target] for target in world.switches]
    serving = [model for model in world.on_gpu.values() if isinstance(model.state, Serving)]
    found = coming + sorted(serving, key=_serving_since, reverse=True)
    found = [model for model in found if not model.spec.is_gpu_lease]
    found.sort(key=lambda model: not model.spec.uses_gpu)
    return found[0].name if found else None


def _serving_since(model: Model) -> Seconds:
    assert isinstance(model.state, Serving)
    return model.state.since


def change_mode(world: World, event: ModeChanged) -> None:
    """Automatic or manual; in manual mode the active model goes on being served."""
    world.mode = Manual(None, active_model(world)) if event.manual else Auto()
    refuse_disallowed(world)


def request_switch(world: World, event: SwitchRequested) -> None:
    """Bring a model; in manual mode, and with ``pin``, only this model is served from now on."""
    sets_mode = event.pin or isinstance(world.mode, Manual)
    if _accept(world, SwitchCommand(event.command, event.model, world.mode if sets_mode else None)) and sets_mode:
        world.mode = Manual(event.model, event.model)
        refuse_disallowed(world)


def request_wake(world: World, event: WakeRequested) -> None:
    """Bring a model, the mode untouched; with ``keep`` it stays from now on, also if it is there already."""
    model = world.models[event.model]
    pending = [one for one in world.commands.values() if isinstance(one, SwitchCommand) and one.model == event.model]
    before = next((one.kept_before for one in pending if one.kept_before is not None), model.kept)
    command = SwitchCommand(event.command, event.model, None, before if event.keep else None)
    if _accept(world, command) and event.keep:
        world.rules.keep(model, kept=True)


def unpin(world: World) -> None:
    """Requests decide again, and every model may leave."""
    for number, command in list(world.commands.items()):
        if isinstance(command, SwitchCommand) and command.kept_before is not None:
            world.commands[number] = replace(command, kept_before=None)
    for model in world.models.values():
        world.rules.keep(model, kept=False)
    change_mode(world, ModeChanged(manual=False))


def request_sleep(world: World, event: SleepRequested) -> None:
    """Take a model off the GPU, where it does not come back before it is asked for."""
    if _accept(world, SleepCommand(event.command, event.model, event.eviction)):
        world.models[event.model].stays_away = True


def _accept(world: World, command: Command) -> bool:
    if world.stopping_until is not None:
        world.emit(CommandDone(command.number, CommandFailed("llmux is shutting down")))
        return False
    if isinstance(command, SwitchCommand) and (by := world.rules.shut_out.get(command.model)) is not None:
        reason = f"it cannot be served beside '{by}', which stays on the GPUs; unpin that, or put it to sleep"
        world.emit(CommandDone(command.number, CommandFailed(reason)))
        return False
    if len(world.commands) >= world.limits.commands_max:
        world.emit(CommandDone(command.number, CommandFailed("too many operator commands are waiting")))
        return False
    world.commands[command.number] = command
    return True


def advance_commands(world: World) -> None:
    """Perform the operator's commands one after the other, as far as they can go now; see ``World.under_way``."""
    while done := [command for command in world.under_way() if _advance(world, command)]:
        for command in done:
            _end(world, command, _refusal(world, command))


def _advance(world: World, command: Command) -> bool:
    """Perform what can be performed of a command now; returns whether it is over."""
    model = world.models[command.model]
    if isinstance(command, SwitchCommand):
        return isinstance(model.state, Serving) or _refusal(world, command) is not None
    return _advance_sleep(world, model, command.eviction or model.eviction)


def _refusal(world: World, command: Command) -> CommandFailed | None:
    """Why a command cannot be performed while a GPU lease is held; nobody knows for how long that is."""
    model = world.models[command.model]
    if isinstance(command, SleepCommand) or isinstance(model.state, Serving):
        return None
    lease = lease_in_the_way(world, model)
    if lease is None:
        return None
    return CommandFailed(f"{lease.name} holds the GPU memory that '{model.name}' needs; end it, or wait for its end")


def fail_switches(world: World, model: Model, reason: str) -> None:
    """A wake failed: so did every command that wanted it, and the mode goes back to what it was."""
    for command in list(world.commands.values()):
        if isinstance(command, SwitchCommand) and command.model == model.name:
            # Looked up again: the failure of an earlier command may have changed this one's ``mode_before``.
            _end(world, world.commands[command.number], CommandFailed(reason))


def end_sleep(world: World, model: Model, eviction: Eviction, error: FailureReason | None) -> None:
    """An eviction ended: so did the command that wanted it, even if the model left in another way in the end."""
    command = next(iter(world.commands.values()), None)
    if not isinstance(command, SleepCommand) or command.model != model.name:
        return
    if error is not None:
        _end(world, command, CommandFailed(str(error)))
    elif eviction == (command.eviction or model.eviction):
        _end(world, command, None)


def fail_all(world: World, reason: str) -> None:
    """End every command that is under way or waits."""
    for command in list(world.commands.values()):
        _end(world, command, CommandFailed(reason))


def _end(world: World, command: Command, error: CommandFailed | None) -> None:
    del world.commands[command.number]
    world.emit(CommandDone(command.number, error))
    if error is not None and isinstance(command, SwitchCommand) and command.mode_before is not None:
        _roll_back(world, Manual(command.model, command.model), command.mode_before)
    if error is not None and isinstance(command, SwitchCommand) and command.kept_before is not None:
        world.rules.keep(world.models[command.model], kept=command.kept_before)


def _roll_back(world: World, failed: Mode, before: Mode) -> None:
    """Undo a failed command's mode; where a later command has replaced it, see that it does not roll back to it."""
    if world.mode == failed:
        world.mode = before
        refuse_disallowed(world)
    for number, command in list(world.commands.items()):
        if isinstance(command, SwitchCommand) and command.mode_before == failed:
            world.commands[number] = replace(command, mode_before=before)


def _advance_sleep(world: World, model: Model, eviction: Eviction) -> bool:
    """One step of putting a model to sleep; returns whether it sleeps as deeply as was asked."""
    match model.state:
        case Cold() | Failed():
            return True
        case Asleep(eviction=asleep):
            if not eviction.is_deeper_than(asleep):
                return True
            begin_evict(world, model, eviction)
        case Serving():
            if not model.spec.frees_memory(eviction):
                return True
            begin_drain(world, model, eviction, world.clock.now + world.limits.drain_timeout_seconds)
        case Draining(since, serving_since, deadline, present) if (
            model.spec.frees_memory(eviction) and eviction != present
        ):
            world.set_state(model, Draining(since, serving_since, deadline, eviction))
        case _:
            pass
    return False


def change_default(world: World, name: str | None) -> None:
    """Have another model be the one to return to, or none."""
    world.default_model = None if name is None else world.models[name]
    if world.default_model is not None:
        world.default_model.stays_away = False


def change_eviction(world: World, model: Model, eviction: Eviction) -> None:
    """Override how a model leaves from now on, also if that was found to change its output."""
    model.eviction_override = eviction
    model.distrusted_evictions.discard(eviction)
    model.find_eviction()
    model.sleep.refused.discard(eviction)
    world.gpus.known_plans.changed(model.awake)
