"""Switches: deciding on one, taking it through its phases, calling it off.

The only module that makes switches and changes them (``World.switches``).
"""

import math

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
from llmux.core.placement import fits
from llmux.core.policies.base import Bring
from llmux.core.policy_view import SchedulerView, sharing
from llmux.core.states import Asleep, Draining, Evicting, Serving
from llmux.core.switch import Switch
from llmux.core.vacating import Plan, best_placement, plan_vacating, unreserved, vacate
from llmux.core.world import SleepCommand, SwitchCommand, World
from llmux.errors import EngineDied

_LEAVING = frozenset((Draining, Evicting))


def decide(world: World) -> Seconds:
    """Start every switch that is due; returns when to decide again (infinity: when something happens)."""
    now = world.clock.now
    if world.without_gpu:
        _start_without_gpu(world)
    still_wanted: dict[str, Seconds] = {}
    decide_again_at = math.inf
    reserved = _reserved_gpus(world) if world.switches else set()
    if len(reserved) >= len(world.capacity):
        world.switch_wanted_at = still_wanted
        return decide_again_at
    view = SchedulerView(world, reserved)
    while len(view.reserved_gpus) < len(world.capacity):
        target, until = _next_target(world, view)
        decide_again_at = min(decide_again_at, until)
        if target is None:
            break
        plan = _place(world, view, target) if target.can_be_woken else None
        view.reserve(target)
        if plan is None:
            continue
        ready_at = max(_may_leave_at(world, plan), _quantum_ends_at(world, view, plan, target))
        if ready_at > now:
            still_wanted[target.name] = world.switch_wanted_at.get(target.name, now)
            decide_again_at = min(decide_again_at, ready_at)
            continue
        _start(world, target, plan)
    world.switch_wanted_at = still_wanted
    return decide_again_at


def _place(world: World, view: SchedulerView, target: Model) -> Plan | None:
    """Choose where the target comes to, if it is to be started: where least has to leave for it.

    None while what is in its way is itself on the move. Then it keeps the place that it was given last, for which
    ``view.reserve`` keeps GPUs free.
    """
    found = best_placement(world, target, view.open_placements(target))
    if found is None:
        return None
    world.place(target, found.placement)
    return found.plan


def _start_without_gpu(world: World) -> None:
    """Switch to what needs no GPU: no policy is asked, since nothing has to leave for it or to wait."""
    command = next(iter(world.commands.values())) if world.commands else None
    commanded = command.model if isinstance(command, SwitchCommand) else None
    for model in world.without_gpu:
        is_wanted_now = model.name in world.candidates or model.name == commanded
        if is_wanted_now and model.can_be_woken and model.name not in world.switches:
            _start(world, model, Plan(()))


def _reserved_gpus(world: World) -> set[GpuId]:
    """The GPUs to which a switch is under way."""
    gpus: set[GpuId] = set()
    for switch in world.switches.values():
        gpus.update(world.models[switch.target].awake)
    return gpus


def _next_target(world: World, view: SchedulerView) -> tuple[Model | None, Seconds]:
    """The operator's command first, then whatever is overdue, then the policy's choice.

    With no target: when to decide again.
    """
    command = next(iter(world.commands.values())) if world.commands else None
    if isinstance(command, SwitchCommand):
        commanded = world.models[command.model]
        if commanded.can_be_woken:
            if view.is_available(commanded.name):
                return commanded, math.inf
            _keep_free(world, view, commanded)
    first = _first_candidate(world, view)
    if first is None:
        return None, math.inf
    name, overdue_at = first
    if overdue_at <= world.clock.now:
        return world.models[name], math.inf
    _sample(world)
    choice = world.policy.choose(view, world.clock.now)
    if isinstance(choice, Bring):
        return world.models[choice.model], math.inf
    return None, min(choice.until, overdue_at)


def _first_candidate(world: World, view: SchedulerView) -> tuple[str, Seconds] | None:
    """The first available candidate, and when it is overdue.

    An overdue one that waits for a GPU which another switch has keeps its other GPUs free meanwhile: small models must
    not starve one that needs them all.
    """
    first = world.candidates.first()
    if first is None or view.is_available(first[0]):
        return first
    for name in world.candidates:
        if world.candidates.overdue_at(name) > world.clock.now or view.is_available(name):
            break
        _keep_free(world, view, world.models[name])
    available = view.first_available()
    return None if available is None else (available, world.candidates.overdue_at(available))


def _keep_free(world: World, view: SchedulerView, model: Model) -> None:
    """Give the GPUs that the model needs to no other one in this decision."""
    if model.name not in world.switches:
        view.reserve(model)


def _sample(world: World) -> None:
    """Bring the estimates that a policy may read up to date, so that the view itself changes nothing.

    These are the estimates of models that share a GPU with a serving model, or wait for one. With nothing serving, no
    incumbent is shown.
    """
    sampled: set[str] = set()
    for serving in list(world.on_gpu.values()):
        if isinstance(serving.state, Serving):
            resident, waiting = sharing(world, serving.awake)
            for model in (serving, *resident, *waiting):
                if model.name not in sampled:
                    sampled.add(model.name)
                    model.sample()


def _may_leave_at(world: World, plan: Plan) -> Seconds:
    """When every victim has had its minimum time on the GPU."""
    may_leave_at = -math.inf
    for name in plan.victims:
        model = world.models[name]
        if not isinstance(model.state, Serving):
            continue
        stays = world.limits.min_active_seconds
        if model.in_flight and freezes(world, model, model.eviction):
            # Frozen sooner, its requests might be recomputed again and again without making progress.
            stays = max(stays, model.wake_seconds)
        may_leave_at = max(may_leave_at, model.state.since + stays)
    return may_leave_at


def _quantum_ends_at(world: World, view: SchedulerView, plan: Plan, target: Model) -> Seconds:
    """When the policy lets busy victims go, overdue target or not; an operator's command does not wait for that."""
    if world.commands and _is_commanded(world, target):
        return -math.inf
    busy = [
        model
        for model in map(world.models.__getitem__, plan.victims)
        if isinstance(model.state, Serving) and not model.is_idle
    ]
    if busy:
        _sample(world)
    ends_at = -math.inf
    for model in busy:
        assert isinstance(model.state, Serving)
        quantum = world.policy.quantum_seconds(view.incumbent(model), target.name, view, world.clock.now)
        ends_at = max(ends_at, model.state.since + quantum)
    return ends_at


def _start(world: World, target: Model, plan: Plan) -> None:
    now = world.clock.now
    wanted_at = world.switch_wanted_at.get(target.name, now)
    world.switches[target.name] = Switch(target.name, plan.victims, wanted_at, now, None if plan.victims else now)
    vacate(world, plan)


def advance(world: World, switch: Switch) -> Seconds:
    """Take a switch as far as it can go; returns when to try again (infinity: when something happens)."""
    target = world.models[switch.target]
    if switch.is_waking:
        return math.inf
    leaving = [type(world.models[name].state) for name in switch.victims]
    if leaving.count(Draining) < len(leaving):
        switch.begin_evicting(world.clock.now)
    if not _LEAVING.isdisjoint(leaving) or not target.can_be_woken:
        return math.inf
    if fits(target.awake, unreserved(world, target)):
        switch.begin_waking(world.clock.now)
        begin_wake(world, target)
        return math.inf
    # A victim fell back to a way of leaving that frees less than planned, or another model took the memory. The
    # policy has chosen already, so that only the minimum time of new victims counts.
    plan = plan_vacating(world, target)
    if plan is None:
        return math.inf
    ready_at = _may_leave_at(world, plan)
    if ready_at > world.clock.now:
        return ready_at
    switch.replan(plan.victims)
    vacate(world, plan)
    return math.inf


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
    """The sleeping model used longest ago, if possible one without frozen requests.

    One in an image on disk holds no GPU memory.
    """
    sleepers = [
        model
        for model in world.models.values()
        if isinstance(model.state, Asleep)
        and model.state.eviction.process is not Process.CHECKPOINT
        and model.spec.uses_gpu
    ]
    return min(sleepers, key=lambda model: (bool(model.frozen), model.last_served_at), default=None)


def call_off_unwanted(world: World) -> None:
    """Call off switches that are no longer wanted and whose wake has not begun. Victims that drain go on serving."""
    for switch in list(world.switches.values()):
        if switch.is_waking or is_wanted(world, world.models[switch.target]):
            continue
        del world.switches[switch.target]
        commanded_to_sleep = {command.model for command in world.commands.values() if isinstance(command, SleepCommand)}
        for name in switch.victims:
            model = world.models[name]
            if isinstance(model.state, Draining) and name not in commanded_to_sleep:
                stop_draining(world, model)


def abandon_all(world: World) -> None:
    """llmux is shutting down: nothing is switched to any more. What is under way ends by itself."""
    world.switches.clear()


def is_wanted(world: World, model: Model) -> bool:
    """Whether the model is wanted: by requests that the mode allows, or by the operator."""
    if model.is_asked_for and world.allows(model.name):
        return True
    return _is_commanded(world, model)


def _is_commanded(world: World, model: Model) -> bool:
    return any(
        isinstance(command, SwitchCommand) and command.model == model.name for command in world.commands.values()
    )


def occupies_every_gpu(world: World) -> bool:
    """Whether one switch has every GPU and is under way, so that nothing can be decided before it gets further."""
    if len(world.switches) != 1 or any(model.name in world.candidates for model in world.without_gpu):
        return False
    switch = next(iter(world.switches.values()))
    if len(world.models[switch.target].awake) < len(world.capacity):
        return False
    return switch.is_waking or not _LEAVING.isdisjoint(type(world.models[name].state) for name in switch.victims)
