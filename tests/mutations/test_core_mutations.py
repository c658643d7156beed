"""Plants faults in the core, each of which the simulated runs must notice."""

import ast
from collections.abc import Callable
from functools import partial

import pytest

from llmux.core import admission, commands, leasing, lifecycle, placement, shutdown, switching, vacating
from llmux.core.deadlines import Deadlines
from llmux.core.model import Model
from llmux.core.policies.adaptive import Adaptive
from llmux.core.policy_view import SchedulerView
from llmux.core.request_queue import RequestQueue
from llmux.core.scheduler import Scheduler
from llmux.core.settings import Limits
from llmux.core.world import World
from tests.simulation.test_core_simulation import (
    test_a_steadily_busy_model_does_not_starve_a_cold_one as busy_against_cold,
)
from tests.simulation.test_core_simulation import test_a_switch_begins_within_the_bound as bounded_wait
from tests.simulation.test_core_simulation import (
    test_gpu_leases_on_one_gpu_after_the_other_do_not_starve_a_model_that_needs_them_all as leases_take_turns,
)
from tests.simulation.test_core_simulation import (
    test_several_gpus_do_not_starve_a_model_that_needs_them_all as several_gpus,
)
from tests.support.core_scenarios import random_walk
from tests.support.planted import (
    Fault,
    added,
    argument,
    assigned,
    compared,
    condition,
    constant,
    operand,
    over_nothing,
    planted,
    returned,
    without,
)
from tests.support.skips import REPLACES_COMPILED_CODE, is_compiled
from tests.unit.core.policies.test_adaptive import LONGEST_STAYS
from tests.unit.core.policies.test_adaptive import test_a_stay_is_bounded as quantum_has_an_end
from tests.unit.core.policies.test_adaptive import (
    test_an_overdue_candidate_does_not_cut_a_stay_short as quantum_is_kept,
)
from tests.unit.core.test_commands import test_a_failed_pin_rolls_the_mode_back as pin_rolls_back
from tests.unit.core.test_freezing import (
    test_a_model_stays_as_long_as_its_wake_took_so_that_frozen_requests_progress as stays_as_long,
)
from tests.unit.core.test_freezing import (
    test_a_pin_elsewhere_drains_because_it_would_keep_requests_frozen as drains_for_a_pin,
)
from tests.unit.core.test_freezing import test_a_sleep_that_failed_loses_what_was_to_be_frozen as fails_to_sleep
from tests.unit.core.test_freezing import test_an_engine_that_could_not_freeze_is_drained as drains_instead
from tests.unit.core.test_freezing import test_an_engine_that_dies_asleep_loses_what_is_frozen_in_it as dies_asleep
from tests.unit.core.test_leasing import (
    test_a_held_lease_is_no_victim_and_models_that_fit_beside_it_are_served as served_beside_a_lease,
)
from tests.unit.core.test_lifecycle import test_only_a_completed_request_resets_the_back_off as back_off_resets
from tests.unit.core.test_lifecycle import test_the_back_off_doubles_up_to_a_minute as back_off_doubles
from tests.unit.core.test_shutdown import (
    test_a_wake_that_is_under_way_at_the_deadline_is_aborted_once as aborts_once,
)
from tests.unit.core.test_shutdown import (
    test_what_is_frozen_resumes_when_what_is_in_flight_has_ended as frozen_resume,
)

if is_compiled:
    pytest.skip(REPLACES_COMPILED_CODE, allow_module_level=True)

pytestmark = pytest.mark.slow

WALKS = 150


def getter(attribute: property) -> Callable[..., object]:
    assert attribute.fget is not None
    return attribute.fget


FAULTS = (
    Fault("evicts under a request", lifecycle.finish_drain, condition(1, always=True)),
    Fault("begins an eviction with requests in flight", lifecycle.instance_exited, without(0)),
    Fault("forgets the timer of a back-off", Scheduler._set_timer, argument("min", -1, 1, "1e9")),
    Fault("forgets to decide again when a policy waits", Scheduler._set_timer, argument("min", 0, 0, "1e9")),
    Fault("leaves Waking after a failed wake", lifecycle._fail, without(0)),
    Fault("counts a departed waiter as demand", switching.is_wanted, condition(0, always=True)),
    Fault("forgets to call off a switch", switching.call_off_unwanted, over_nothing(0)),
    Fault("ignores when a model left the GPU", World.update_candidate, argument("max", 0, 1, "0.0")),
    Fault("ignores what is overdue", switching._next_target, condition(-2, always=False)),
    Fault("ignores the drain's deadline", lifecycle.finish_drain, operand(0, 1, value=False)),
    Fault("believes that half the memory is enough", placement.fits, compared(0, right="{} // 2")),
    Fault("forgets what sleepers hold", Model.footprint, returned(0, "{}")),
    Fault("accepts the outcome of an old instance", Scheduler._apply, operand(0, 0, value=True)),
    Fault("forgets a woken model's waiters", lifecycle.wake_succeeded, without(-1)),
    Fault("never resets the back-off", admission.finish, without(-1, ast.Assign)),
    Fault("always resets the back-off", admission.finish, condition(-1, always=True)),
    Fault("does not double the back-off", Limits.backoff_seconds, constant(2.0, 1.0)),
    Fault("keeps the mode of a failed pin", commands._roll_back, without(0, ast.Assign)),
    Fault("puts a returned request at the back", admission.come_back, constant(True, False)),
    Fault("does not count attempts", admission.come_back, compared(0, left="0")),
    Fault("does not admit into a freed place", admission.come_back, without(-1)),
    Fault("ignores min_active_seconds", switching._ready_at, assigned(4, "0.0")),
    Fault("lets others take the GPUs that an overdue model waits for", switching._keep_free, condition(1, always=True)),
    Fault("freezes again too soon", switching._progress_seconds, condition(0, always=False)),
    Fault("forgets to thaw", lifecycle.wake_succeeded, without(-2)),
    Fault("forgets to hold back a waking engine", lifecycle.begin_wake, over_nothing(0)),
    Fault("stops an engine with requests frozen in it", lifecycle.begin_evict, condition(0, always=False)),
    Fault("forgets the frozen of an engine that was lost", lifecycle.evict_done, operand(0, 1, value=False)),
    Fault("freezes what the mode would keep frozen", lifecycle.freezes, operand(0, 3, value=True)),
    Fault("does not count the frozen as demand", getter(Model.head_since), condition(0, always=True)),  # type: ignore[arg-type]
    Fault("freezes in an engine that is stopped", lifecycle.freezes, operand(0, 2, value=True)),
    Fault("cuts a policy's quantum short", switching._ready_at, condition(-2, always=False)),
    Fault("lets a quantum last for ever", Adaptive.quantum_seconds, argument("min", -1, 0, "1e9")),
    Fault("forgets the quantum in the bound", Scheduler.wait_bound, assigned(2, "(0.0, 0.0)")),
    Fault("lets batch requests starve", RequestQueue.next, compared(0, left="{} + 1e9")),
    Fault("puts batch requests first", RequestQueue.next, compared(0, left="{} - 1e9")),
    Fault("forgets who was away", RequestQueue.reinsert, over_nothing(0)),
    Fault("ignores a model's own max_wait_seconds", World.update_candidate, added(0, "15.0")),
    Fault("never notes a first token", Model.first_token, without(-1)),
    Fault("waits for the first token of what was revoked", admission.revoke_all, without(0, ast.AugAssign)),
    Fault("admits above max_in_flight", getter(Model.has_free_place), compared(0, operator=ast.LtE)),  # type: ignore[arg-type]
    Fault("loses what is frozen at the end", shutdown._wake_frozen, over_nothing(0)),
    Fault("does not wait for what is frozen", shutdown.advance_shutdown, condition(0, always=True)),
    Fault("gives a wake up again and again", shutdown._abort, condition(0, always=False)),
    Fault("has a GPU lease leave for a model", vacating.Room._who_may_leave, operand(0, 2, value=True)),
    Fault("forgets to take a GPU lease back", leasing.end_released, over_nothing(0)),
    Fault("keeps everything free until GPU leases end", switching._keep_free, condition(1, always=False)),
    Fault("lets GPU leases starve a model", SchedulerView.keep_from_leases, without(0, ast.AugAssign)),
    Fault("times out what has stopped waiting", Deadlines.stop, without(0, ast.Assign)),
)

CHECKS: tuple[Callable[[], object], ...] = (
    pin_rolls_back,
    back_off_resets,
    back_off_doubles,
    drains_instead,
    drains_for_a_pin,
    fails_to_sleep,
    stays_as_long,
    dies_asleep,
    served_beside_a_lease,
    quantum_is_kept,
    frozen_resume,
    aborts_once,
    *(partial(quantum_has_an_end, *stay) for stay in LONGEST_STAYS),
    *(partial(random_walk, seed) for seed in range(WALKS)),
    *(partial(bounded_wait, policy, 3, seed) for policy in ("adaptive", "fifo", "time_slice") for seed in range(2)),
    partial(busy_against_cold, "time_slice"),
    partial(several_gpus, "fifo"),
    leases_take_turns,
)
"""Cheapest first: most faults are noticed within a few."""


def test_without_a_fault_every_check_passes():
    for check in CHECKS:
        check()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_planted_fault_is_noticed(fault: Fault):
    with planted(fault), pytest.raises((AssertionError, KeyError, RuntimeError)):
        for check in CHECKS:
            check()
