"""Plants a fault in the core and asserts that the simulated runs notice it.

A fault is a change of one line of source; the function's code is replaced in place and put back afterwards.
"""

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType

import pytest

from llmux.core import admission, commands, lifecycle, placement, switching
from llmux.core.model import Model
from llmux.core.policies.adaptive import Adaptive
from llmux.core.request import Lanes
from llmux.core.scheduler import Scheduler
from llmux.core.settings import Limits
from llmux.core.world import World
from tests.simulation.test_core_simulation import (
    test_a_steadily_busy_model_does_not_starve_a_cold_one as busy_against_cold,
)
from tests.simulation.test_core_simulation import test_a_switch_begins_within_the_bound as bounded_wait
from tests.simulation.test_core_simulation import (
    test_several_gpus_do_not_starve_a_model_that_needs_them_all as several_gpus,
)
from tests.support.core_scenarios import random_walk
from tests.unit.core.policies.test_adaptive import LONGEST_TURNS
from tests.unit.core.policies.test_adaptive import test_an_overdue_model_does_not_cut_a_turn_short as turn_is_kept
from tests.unit.core.policies.test_adaptive import test_catching_up_has_an_end as turn_has_an_end
from tests.unit.core.test_commands import test_a_failed_pin_rolls_the_mode_back as pin_rolls_back
from tests.unit.core.test_freezing import (
    test_a_model_stays_as_long_as_its_wake_took_so_that_frozen_requests_come_on as stays_as_long,
)
from tests.unit.core.test_freezing import test_an_engine_that_could_not_freeze_is_drained as drains_instead
from tests.unit.core.test_freezing import test_an_engine_that_dies_asleep_loses_what_is_frozen_in_it as dies_asleep
from tests.unit.core.test_lifecycle import test_only_a_completed_request_resets_the_back_off as back_off_resets
from tests.unit.core.test_lifecycle import test_the_back_off_doubles_up_to_a_minute as back_off_doubles


@dataclass(frozen=True)
class Fault:
    """One planted fault: in a function, a piece of source is replaced by another."""

    what: str
    function: Callable[..., object]
    old: str
    new: str


FAULTS = (
    Fault("evicts under a request", lifecycle.finish_drain, "if not model.in_flight:", "if True:"),
    Fault(
        "begins an eviction with requests in flight",
        lifecycle.instance_exited,
        "revoke_all(world, model, EngineDied(model.name, event.reason), now)",
        "pass",
    ),
    Fault("forgets the timer of a back-off", Scheduler._set_timer, "_retry_at(model))", "1e9)"),
    Fault("forgets to look again when a policy waits", Scheduler._set_timer, "min(look_again_at, ", "min(1e9, "),
    Fault(
        "leaves Waking after a failed wake",
        lifecycle._fail,
        "world.set_state(model, Failed(reason, now + pause, refusing), now)",
        "pass",
    ),
    Fault(
        "counts a departed waiter as demand",
        switching.is_wanted,
        "if model.is_asked_for",
        "if True",
    ),
    Fault(
        "forgets to call off a switch",
        switching.call_off_unwanted,
        "in list(world.switches.values()):",
        "in ():",
    ),
    Fault("ignores that a turn has ended", World.refresh_turn, ", model.last_served_at)", ", 0.0)"),
    Fault("ignores who is overdue", switching._next_target, "if overdue_at <= now:", "if False:"),
    Fault("ignores the drain's deadline", lifecycle.finish_drain, "now >= model.state.deadline", "False"),
    Fault("believes that half the memory is enough", placement.fits, "< size:", "< size // 2:"),
    Fault("forgets what sleepers hold", Model.footprint, "self.spec.residue(asleep)", "{}"),
    Fault(
        "accepts the outcome of an old instance",
        Scheduler._apply,
        "if instance == model.instance and isinstance(model.state, Waking)",
        "if isinstance(model.state, Waking)",
    ),
    Fault("forgets a woken model's waiters", lifecycle.wake_done, "    admit_waiting(world, model, now)\n", ""),
    Fault("never resets the back-off", admission.finish, "model.failures = 0", "pass"),
    Fault("always resets the back-off", admission.finish, "if completed:", "if True:"),
    Fault("does not double the back-off", Limits.backoff_seconds, "* 2.0 **", "* 1.0 **"),
    Fault("keeps the mode of a failed pin", commands._roll_back, "world.mode = before", "pass"),
    Fault(
        "puts a returned request at the back",
        admission.come_back,
        "        _move_before_the_younger(model, event.request)\n",
        "",
    ),
    Fault("does not count attempts", admission.come_back, "event.attempts >=", "0 >="),
    Fault("does not admit into a freed place", admission.come_back, "    admit_waiting(world, model, now)\n", ""),
    Fault("ignores min_active_seconds", switching._may_leave_at, "= world.limits.min_active_seconds", "= 0.0"),
    Fault("lets others take the GPUs that an overdue model waits for", switching._keep_free, "if ", "if False and "),
    Fault("freezes again too soon", switching._may_leave_at, "max(stays, model.wake_seconds)", "stays"),
    Fault("forgets to thaw", lifecycle.wake_done, "    thaw_all(world, model)\n", ""),
    Fault(
        "stops an engine with requests frozen in it",
        lifecycle.begin_evict,
        "if not eviction.keeps_process:",
        "if False:",
    ),
    Fault(
        "forgets the frozen of an engine that was lost",
        lifecycle.evict_done,
        "isinstance(event.residency, Cold)",
        "False",
    ),
    Fault("freezes what the mode would keep frozen", lifecycle.freezes, "and world.allows(model.name)", ""),
    Fault("does not count the frozen as demand", Model.head_since.fget, "if not self.frozen", "if True"),  # type: ignore[attr-defined]
    Fault("freezes in an engine that cannot", lifecycle.freezes, "and eviction.keeps_process ", ""),
    Fault("cuts a policy's turn short", switching._turn_ends_at, "model.state.since + turn", "0.0"),
    Fault("lets a turn last for ever", Adaptive.quantum_seconds, "now >= leaving.since + longest", "False"),
    Fault("forgets the turn in the bound", Scheduler.wait_bound, "max(world.limits.min_active_seconds, ", "min(0.0, "),
    Fault("lets batch requests starve", Lanes.first, "+ self.patience_seconds <", "+ 1e9 <"),
    Fault("puts batch requests first", Lanes.first, "+ self.patience_seconds <", "- 1e9 <"),
    Fault("forgets who was away", Lanes.add_again, "(request, *reversed(older))", "()"),
    Fault("ignores a model's own max_wait_seconds", World.refresh_turn, "model.max_wait_seconds", "15.0"),
    Fault("never hears of a first token", Model.answer, "    self.awaiting_first_token.discard(request)\n", ""),
    Fault(
        "waits for the first token of what was revoked", admission.revoke_all, "model.awaiting_first_token -= ", "_ = "
    ),
    Fault("admits above max_in_flight", Model.has_room.fget, "< self", "<= self"),  # type: ignore[attr-defined]
)


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """The fault in place, for every caller of the function."""
    function = fault.function
    assert isinstance(function, FunctionType)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(fault.old) == 1, (
        f"the source has changed: {fault.old!r} is there {source.count(fault.old)} times"
    )
    namespace: dict[str, object] = {}
    lines = [line for line in source.replace(fault.old, fault.new).splitlines() if not line.startswith("@")]
    exec(compile("\n".join(lines), "planted", "exec"), function.__globals__, namespace)
    mutated = namespace[function.__name__]
    assert isinstance(mutated, FunctionType)
    original: CodeType = function.__code__
    function.__code__ = mutated.__code__
    try:
        yield
    finally:
        function.__code__ = original


def _everything() -> None:
    for seed in range(150):
        random_walk(seed)
    for seed_policy in ("adaptive", "fifo", "time_slice"):
        bounded_wait(seed_policy, 3)
    busy_against_cold("time_slice")
    several_gpus("fifo")
    pin_rolls_back()
    back_off_resets()
    back_off_doubles()
    drains_instead()
    stays_as_long()
    dies_asleep()
    turn_is_kept()
    for leaving, longest in LONGEST_TURNS:
        turn_has_an_end(leaving, longest)


def test_without_a_fault_nothing_is_noticed():
    _everything()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_planted_fault_is_noticed(fault: Fault):
    with planted(fault), pytest.raises((AssertionError, KeyError, RuntimeError)):
        _everything()
