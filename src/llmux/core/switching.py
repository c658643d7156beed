"""Switches: deciding on one, taking it through its phases, calling it off.

The only module that makes switches and changes them (``World.switches``).
"""

import math
from collections.abc import Sequence
from itertools import islice, takewhile

from llmux.core import staying
from llmux.core.admission import lose_frozen
from llmux.core.events import WakeDone
from llmux.core.eviction import Process
from llmux.core.identifiers import GpuId, Seconds
from llmux.core.lifecycle import (
    begin_wake,
    freezes,
    stop_draining,
    wake_failed,
    wake_out_of_memory,
    wake_succeeded,
)
from llmux.core.model import Model
from llmux.core.placement import Plan, fits, give
from llmux.core.policies.base import Bring
from llmux.core.policy_view import SchedulerView
from llmux.core.states import LEAVING, Asleep, Draining, Serving, Waking
from llmux.core.switch import Switch
from llmux.core.vacating import Room, are_gone, lacks, leaves_any_open, vacate
from llmux.core.world import SleepCommand, SwitchCommand, World
from llmux.errors import EngineDied


def decide(world: World) -> Seconds:
    """Start every switch that is due; returns when to decide again (infinity: when something happens)."""
    now = world.clock.now
    if world.without_gpu:
        _start_without_gpu(world)
    still_wanted: dict[str, Seconds] = {}
    decide_again_at = math.inf
    every_gpu = world.gpus.capacity.keys()
    if len(world.switches) >= len(every_gpu) and not leaves_any_open(world):
        world.switch_wanted_at = still_wanted
        return decide_again_at
    view = SchedulerView(world)
    while view.closed != every_gpu:
        target, at = _next_target(world, view)
        if target is None:
            decide_again_at = min(decide_again_at, at)
            break
        found = view.best_placement(target)
        if found is None:
            # What is in its way is itself on the move, or leased. It keeps the place that it was given last.
            _keep_free(world, view, target)
            assert target.name in view.dealt_with, "the same target would be chosen again and again"
            continue
        if found.placement is not target.placement:
            world.place(target, found.placement)
        ready_at = _ready_at(world, view, target, found.plan)
        if ready_at > now:
            if ready_at < math.inf:
                if target.name not in world.switch_wanted_at:
                    world.switch_wanted_at[target.name] = now
                still_wanted[target.name] = world.switch_wanted_at[target.name]
                if ready_at < decide_again_at:
                    decide_again_at = ready_at
            # Once the target is overdue, the whole of its GPUs is kept free: a model that came beside it might be the
            # next to have to leave for it, and would have to be given its time first, and so on.
            if at <= now or (world.commands and _is_commanded(world, target)):
                view.keep_free(target)
            else:
                view.claim(target, found.plan)
            continue
        view.begin(target, found.plan)
        _start(world, target, found.plan)
    world.switch_wanted_at = still_wanted
    return decide_again_at


def _ready_at(world: World, view: SchedulerView, target: Model, plan: Plan) -> Seconds:
    """When the target's switch may begin; infinity where nobody has to leave but those that are leaving already."""
    if not plan.victims:
        return -math.inf if view.fits_now(target) else math.inf
    # An operator's command does not wait for a quantum; an overdue target does.
    is_commanded = bool(world.commands) and _is_commanded(world, target)
    ready_at = -math.inf
    for name in plan.victims:
        model = world.models[name]
        state = model.state
        if type(state) is not Serving:
            continue
        stays = world.limits.min_active_seconds
        if model.can_freeze:
            stays = max(stays, _progress_seconds(world, model))
        if (model.in_flight or model.queue.size) and not is_commanded:
            quantum = world.policy.quantum_seconds(view.incumbent(model), target.name, view, world.clock.now)
            if quantum > stays:
                stays = quantum
        if state.since + stays > ready_at:
            ready_at = state.since + stays
    return ready_at


def _start_without_gpu(world: World) -> None:
    """Switch to what needs no GPU: no policy is asked, since nothing has to leave for it or to wait."""
    commanded = _commanded(world)
    for model in world.without_gpu:
        is_wanted_now = model.name in world.candidates or model in commanded
        if is_wanted_now and model.can_be_woken and model.name not in world.switches:
            _start(world, model, Plan())


def _next_target(world: World, view: SchedulerView) -> tuple[Model | None, Seconds]:
    """The operator's commands first, then whatever is overdue, then the policy's choice.

    And when the target is overdue; without one, when to decide again.
    """
    for commanded in _commanded(world) if world.commands else ():
        if commanded.can_be_woken:
            if view.is_available(commanded.name):
                return commanded, -math.inf
            _keep_free(world, view, commanded)
    first = _first_candidate(world, view)
    if first is None:
        return None, math.inf
    name, overdue_at = first
    if overdue_at <= world.clock.now:
        return world.models[name], overdue_at
    view.sample()
    choice = world.policy.choose(view, world.clock.now)
    if isinstance(choice, Bring):
        return world.models[choice.model], world.candidates.overdue_at(choice.model)
    return None, min(choice.until, overdue_at)


def _commanded(world: World) -> Sequence[Model]:
    """The models that the operator wants on the GPU now, in the order of the commands."""
    if not world.commands:
        return ()
    return [world.models[command.model] for command in world.under_way() if isinstance(command, SwitchCommand)]


def _first_candidate(world: World, view: SchedulerView) -> tuple[str, Seconds] | None:
    """The first available candidate, and when it is overdue.

    An overdue one that waits for a GPU which another switch has keeps its other GPUs free meanwhile: small models must
    not starve one that needs them all.
    """
    candidates, now = world.candidates, world.clock.now
    # What is not available stays so, but whoever waits for the end of a GPU lease is looked at again.
    position = 0 if world.gpu_leases else candidates.passed
    for overdue_at, _, name in islice(candidates.entries, position, None):
        if name not in world.switches and (world.gpu_leases or name not in view.dealt_with):
            if view.is_available(name):
                candidates.passed = position
                return name, overdue_at
            if overdue_at <= now:
                _keep_free(world, view, world.models[name])
                if name not in candidates:  # It is stopped, to be started elsewhere.
                    return _first_candidate(world, view)
        position += 1
    candidates.passed = position
    return None


def _keep_free(world: World, view: SchedulerView, model: Model) -> None:
    """Give the GPUs that the model needs to no other one in this decision.

    Where it waits for the end of a GPU lease, only to no other lease: nobody knows how long that takes.
    """
    if model.name in world.switches:
        return
    if view.is_leased_out(model):
        view.keep_from_leases(model)
    elif model.name not in view.dealt_with:
        view.keep_free(model)
        staying.start_elsewhere(world, model)


def _may_leave_at(world: World, plan: Plan) -> Seconds:
    """When every victim has had its minimum time on the GPU."""
    may_leave_at = -math.inf
    for name in plan.victims:
        model = world.models[name]
        if isinstance(model.state, Serving):
            stays = max(world.limits.min_active_seconds, _progress_seconds(world, model))
            may_leave_at = max(may_leave_at, model.state.since + stays)
    return may_leave_at


def _progress_seconds(world: World, model: Model) -> Seconds:
    """How long a model stays at least whose requests would be frozen.

    Frozen sooner, they might be recomputed again and again without making progress.
    """
    return model.wake_seconds if model.in_flight and freezes(world, model, model.eviction) else 0.0


def _start(world: World, target: Model, plan: Plan) -> None:
    now = world.clock.now
    wanted_at = world.switch_wanted_at.get(target.name, now)
    world.switches[target.name] = Switch(target.name, plan.victims, wanted_at, now, None if plan.victims else now)
    staying.settle(world)
    _vacate(world, target, plan)


def _vacate(world: World, target: Model, plan: Plan) -> None:
    if plan.victims:
        for switch in world.switches.values():
            if switch.target != target.name:
                switch.forget(plan.victims)
    vacate(world, plan)


def bring_beside(world: World, target: Model) -> None:
    """Wake a model for which nobody has to leave, whether anybody asks for it or not."""
    _start(world, target, Plan())
    _advance(world, world.switches[target.name])


def advance_all(world: World) -> Seconds:
    """Take every switch as far as it can go; returns when to try again (infinity: when something happens)."""
    again_at = math.inf
    for switch in world.switches.values():
        if switch.wake_began_at is None:
            at = _advance(world, switch)
            if at < again_at:
                again_at = at
    return again_at


def _advance(world: World, switch: Switch) -> Seconds:
    target, is_waited_for = world.models[switch.target], False
    for name in switch.victims:
        state = type(world.models[name].state)
        is_waited_for = is_waited_for or state in LEAVING
        if state is not Draining and switch.evict_began_at is None:
            switch.begin_evicting(world.clock.now)
    if is_waited_for or not target.can_be_woken:
        return math.inf
    if starts_beside(world, target):
        return math.inf
    if _fits_now(world, switch, target):
        switch.begin_waking(world.clock.now)
        begin_wake(world, target)
        return math.inf
    # A victim fell back to a way of leaving that frees less than planned, or an older switch needs the memory. The
    # policy has chosen already, so that only the minimum time of new victims counts.
    found = _room_for(world, switch).best(target, (target.placement,))
    if found is None or not found.plan.victims:
        return math.inf
    plan = found.plan
    ready_at = _may_leave_at(world, plan)
    if ready_at > world.clock.now:
        return ready_at
    switch.replan(plan.victims)
    _vacate(world, target, plan)
    return math.inf


def _fits_now(world: World, switch: Switch, target: Model) -> bool:
    """What ``Room.fits_now`` says in the room that older switches leave, which this does not have to make."""
    needed, expected = lacks(target, target.placement), world.gpus.expected
    if not fits(needed, world.gpus.free):
        return False
    for other in world.switches.values():
        if other is switch:
            break
        if other.wake_began_at is None:
            if expected is world.gpus.expected:
                expected = dict(expected)
            older = world.models[other.target]
            for gpu, size in lacks(older, older.placement).items():
                expected[gpu] -= size
    return fits(needed, expected) and (not world.rules.are_any or are_gone(world, world.rules.rivals(target.name)))


def _room_for(world: World, switch: Switch) -> Room:
    """What older switches leave for this one."""
    return Room(world, takewhile(lambda other: other is not switch, world.switches.values()))


def starts_beside(world: World, target: Model) -> bool:
    """Whether an engine would be started on a GPU beside another one that is being woken, or the other way round.

    Seldom: a switch begins only where that is not so, but an engine that had to be stopped meanwhile starts cold.
    """
    for other in world.on_gpu.values():
        if type(other.state) is not Waking or not (other.state.asleep is None or target.starts_cold):
            continue
        if not target.awake.keys().isdisjoint(other.awake):
            return True
    return False


def finish_wake(world: World, model: Model, event: WakeDone) -> bool:
    """End the model's switch with its wake's outcome; returns whether it failed for good.

    A wake that ran out of GPU memory is tried once more in a new switch, in which the sleeper used longest ago has to
    leave too.
    """
    switch = world.switches.pop(model.name, None)
    if event.error is None:
        if switch is not None:
            report = switch.done(world.clock.now)
            model.last_switch_ended_at, model.last_switch_seconds = world.clock.now, report.total_seconds
            if not model.spec.is_gpu_lease:
                world.emit(report)
        wake_succeeded(world, model, can_freeze=event.can_freeze)
        return False
    lose_frozen(world, model, EngineDied(model.name, event.error))
    sleeper = _sleeper_to_stop(world) if event.out_of_memory and not model.retried_after_oom else None
    if switch is None or sleeper is None:
        wake_failed(world, model, event)
        return True
    world.switches[model.name] = switch.retry(sleeper.name)
    wake_out_of_memory(world, model, event.error, sleeper)
    return False


def _sleeper_to_stop(world: World) -> Model | None:
    """The sleeping model used longest ago, if possible one without frozen requests; none that is to be woken.

    One in an image on disk holds no GPU memory.
    """
    sleepers = [
        model
        for model in world.models.values()
        if isinstance(model.state, Asleep)
        and model.state.eviction.process is not Process.CHECKPOINT
        and model.spec.uses_gpu
        and model.name not in world.switches
    ]
    return min(sleepers, key=lambda model: (bool(model.frozen), model.last_served_at), default=None)


def call_off_unwanted(world: World) -> None:
    """Call off switches that are no longer wanted and whose wake has not begun. Victims that drain go on serving.

    One that cannot go on where it was to begin is called off too, and decided anew.
    """
    for switch in list(world.switches.values()):
        if switch.wake_began_at is not None:
            continue
        target = world.models[switch.target]
        is_candidate = switch.target in world.candidates  # Then it is wanted, and could be woken.
        if (is_candidate or is_wanted(world, target)) and not (
            target.starts_cold and _is_stranded(world, switch, target)
        ):
            continue
        del world.switches[switch.target]
        commanded_to_sleep = {command.model for command in world.commands.values() if isinstance(command, SleepCommand)}
        for name in switch.victims:
            model = world.models[name]
            if isinstance(model.state, Draining) and name not in commanded_to_sleep:
                stop_draining(world, model)


def _is_stranded(world: World, switch: Switch, target: Model) -> bool:
    """Whether there is no room where the target was to be started, nobody there could make any, and other places exist.

    Seldom: a model that stays was pinned, or turned out to need more, after the switch had begun.
    """
    for gpu in target.placement.awake:
        for name in world.gpus.models_on[gpu]:
            if type(world.models[name].state) is not Serving:
                return False
    if len(target.placements) == 1 or _fits_now(world, switch, target):
        return False
    return _room_for(world, switch).best(target, (target.placement,)) is None


def abandon_all(world: World) -> None:
    """llmux is shutting down: nothing is switched to any more. What is under way ends by itself."""
    world.switches.clear()


def is_wanted(world: World, model: Model) -> bool:
    """Whether the model is wanted: by requests that the mode allows, or by the operator."""
    if (model.queue.size or model.frozen) and world.allows(model.name):
        return True
    return bool(world.commands) and _is_commanded(world, model)


def _is_commanded(world: World, model: Model) -> bool:
    return any(
        isinstance(command, SwitchCommand) and command.model == model.name for command in world.commands.values()
    )


def occupy_every_gpu(world: World) -> bool:
    """Whether the switches under way leave no room on any GPU, so that nothing can be decided meanwhile."""
    if world.rules.staying:
        return False  # An overdue model may have to be stopped that sleeps where one that stays is.
    for model in world.without_gpu:
        if model.name in world.candidates:
            return False
    taken: dict[GpuId, int] = {}
    closed: set[GpuId] = set()
    for switch in world.switches.values():
        if switch.wake_began_at is None and not _has_leaving_victim(world, switch):
            return False
        target = world.models[switch.target]
        if target.starts_engine:
            closed.update(target.placement.awake)
        else:
            give(taken, target.placement.awake)
    least = world.gpus.least_need
    for gpu, capacity in world.gpus.capacity.items():
        if gpu in closed or gpu not in least:
            continue
        if gpu not in taken or capacity - taken[gpu] >= least[gpu]:
            return False
    return True


def _has_leaving_victim(world: World, switch: Switch) -> bool:
    for name in switch.victims:  # noqa: SIM110 - as in placement.fits
        if type(world.models[name].state) in LEAVING:
            return True
    return False
