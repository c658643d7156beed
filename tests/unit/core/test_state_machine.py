"""Hypothesis drives the production scheduler through everything that can happen; a liveness phase ends each run.

``LLMUX_HYPOTHESIS_EXAMPLES`` is their number (tests/support/examples.py).
"""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.support.core_scenarios import KEEP_ALIVES, POLICIES, SCENARIOS, Walk
from tests.support.examples import examples

PROFILE = settings(
    examples(30),
    stateful_step_count=50,
    suppress_health_check=list(HealthCheck),
)

models = st.integers(0, 5)
picks = st.integers(0, 20)


class SchedulerMachine(RuleBasedStateMachine):
    """One scheduler among clients, engines and an operator who do as they please."""

    walk: Walk

    @initialize(scenario=st.sampled_from(SCENARIOS), policy=st.sampled_from(sorted(POLICIES)), fast=st.booleans())
    def start(self, scenario, policy, fast):
        self.walk = Walk(scenario, policy, short_cuts=fast)

    @rule(model=models, count=st.integers(1, 4), size=st.sampled_from((0, 1, 400)))
    def arrive(self, model, count, size):
        self.walk.arrive(model, count, size)

    @rule(model=models)
    def arrive_without_waking(self, model):
        self.walk.arrive(model, may_wake=False)

    @rule(model=models, count=st.integers(1, 3))
    def arrive_as_batch(self, model, count):
        self.walk.arrive(model, count, batch=True)

    @rule(model=models, keep_alive=st.sampled_from(KEEP_ALIVES))
    def arrive_with_a_wish(self, model, keep_alive):
        self.walk.arrive(model, keep_alive_seconds=keep_alive)

    @rule(pick=picks)
    def change_default(self, pick):
        self.walk.default(pick)

    @rule(pick=picks)
    def leave(self, pick):
        self.walk.leave(pick)

    @rule(model=models)
    def everybody_leaves(self, model):
        self.walk.leave_model(model)

    @rule(pick=picks, completed=st.booleans())
    def end(self, pick, completed):
        self.walk.complete(pick, completed=completed)

    @rule(pick=picks)
    def answer(self, pick):
        self.walk.answer(pick)

    @rule(model=models)
    def end_all(self, model):
        self.walk.complete_all(model)

    @rule(pick=picks)
    def give_back(self, pick):
        self.walk.give_back(pick)

    @rule(pick=picks)
    def outcome_as_asked(self, pick):
        self.walk.outcome(pick, 9)

    @rule(pick=picks, kind=st.integers(0, 4))
    def outcome(self, pick, kind):
        self.walk.outcome(pick, kind)

    @rule(model=models, kind=st.integers(0, 5))
    def stale_outcome(self, model, kind):
        self.walk.stale_outcome(model, kind)

    @rule(model=models, mib=st.integers(1, 10), residue_mib=st.integers(0, 3))
    def engine_is_measured(self, model, mib, residue_mib):
        self.walk.measure(model, mib, residue_mib)

    @rule(model=models)
    def engine_exits(self, model):
        self.walk.exit(model)

    @rule()
    def early_timer(self):
        self.walk.early_timer()

    @rule(pick=st.integers(0, 7))
    def time_passes(self, pick):
        self.walk.pass_time(pick)

    @rule(manual=st.booleans())
    def mode(self, manual):
        self.walk.mode(manual=manual)

    @rule(model=models, pin=st.booleans())
    def switch(self, model, pin):
        self.walk.switch(model, pin=pin)

    @rule(model=models)
    def wake(self, model):
        self.walk.wake(model)

    @rule(model=models)
    def pin_beside_others(self, model):
        self.walk.keep(model)

    @rule()
    def unpin(self):
        self.walk.unpin()

    @rule(model=models, kind=st.integers(0, 6))
    def sleep(self, model, kind):
        self.walk.sleep(model, kind)

    @rule(model=models, kind=st.integers(0, 4))
    def override_eviction(self, model, kind):
        self.walk.override(model, kind)

    @rule(missing=st.integers(1, 12))
    def host_memory_short(self, missing):
        self.walk.host_memory_short(missing)

    @rule(pick=models, count=st.integers(1, 3), timeout=st.sampled_from((0.0, 3.0, 20.0, float("inf"))))
    def lease(self, pick, count, timeout):
        self.walk.lease(pick, count=count, timeout_seconds=timeout)

    @rule(pick=picks)
    def memory_pressure(self, pick):
        self.walk.memory_pressure(pick)

    @rule(pick=picks)
    def end_lease(self, pick):
        self.walk.end_lease(pick)

    @precondition(lambda self: len(self.walk.driver.requests) > 15)
    @rule(drain_seconds=st.sampled_from((0.0, 5.0, 20.0)))
    def shut_down(self, drain_seconds):
        self.walk.shut_down(drain_seconds)

    def teardown(self):
        if hasattr(self, "walk"):
            self.walk.end_well()


def test_the_promises_hold_whatever_happens():
    run_state_machine_as_test(SchedulerMachine, settings=PROFILE)
