"""The section ``policy``: which policy decides about switches, and its times."""

from enum import StrEnum

from pydantic import Field

from llmux.config.eviction import DEFAULT_EVICTION, EvictionField
from llmux.config.fields import Factor, Flag, PositiveSeconds, Seconds, Section, Share


class PolicyType(StrEnum):
    """Which switch policy decides."""

    FIFO = "fifo"
    COST_AWARE = "cost_aware"
    TIME_SLICE = "time_slice"
    ADAPTIVE = "adaptive"


ABORTING = (PolicyType.FIFO, PolicyType.ADAPTIVE)
"""The policies under which ``drain_before_switch: false`` ends requests in flight: fifo, as in 0.7.7, and adaptive,
which 0.7.7's files get where they name no policy (there it was fifo)."""


class PolicySettings(Section):
    """When a switch is decided, and how long everything may take."""

    policy_type: PolicyType = Field(
        default=PolicyType.ADAPTIVE,
        description="fifo: switch at the first request for another model. cost_aware: when the queue is worth the "
        "switch. time_slice: when the resident model is idle. adaptive: after a quantum long enough to pay for the "
        "switch. All of them honour max_wait_seconds.",
    )
    request_timeout_seconds: Seconds = Field(
        default=300.0,
        description="How long a request may wait for its model before it is answered with 504. The default leaves out "
        "the time in which that model is started cold, which start_timeout_seconds limits; a value that is set does "
        "not.",
    )
    drain_before_switch: Flag = Field(
        default=True,
        description="false: treat every model without its own `drain` as `drain: abort`. Applies to fifo and adaptive; "
        "cost_aware and time_slice always drain.",
    )
    eviction: EvictionField = Field(
        default=DEFAULT_EVICTION, description="How a model without its own `eviction` leaves the GPU."
    )
    min_active_seconds: Seconds | None = Field(
        default=None,
        description="How long a model stays on the GPU after its wake, even if its switch is overdue. Default: 1 s "
        "under adaptive, whose quanta already cover the cost of a switch, and 5 s under the others.",
    )
    coalesce_window_seconds: Seconds = Field(
        default=2.0,
        description="cost_aware: how long requests are collected for a switch that is not worth its cost yet.",
    )
    amortization_factor: Factor = Field(
        default=0.5,
        description="cost_aware: how many waiting requests, per second of the switch's cost, make it worthwhile.",
    )
    max_wait_seconds: Seconds = Field(
        default=15.0,
        description="When a model's oldest waiting request gets this old, its switch becomes due, however busy the "
        "resident model is.",
    )
    tick_interval_seconds: PositiveSeconds = Field(
        default=0.5, description="time_slice: how long the resident model must be idle before it leaves."
    )
    switch_share_max: Share = Field(
        default=0.25,
        description="adaptive: the share of time that switches may take. Time that the demand leaves idle may be "
        "spent on them too, up to a share of 0.55 in all.",
    )
    idle_seconds: PositiveSeconds | None = Field(
        default=None,
        description="How long a model without its own `idle_seconds` stays on the GPU without a request. Default: "
        "until another model needs its place.",
    )
    min_quantum_seconds: Seconds = Field(default=2.0, description="Accepted for 0.7.7's files; has no effect.")

    @property
    def effective_min_active_seconds(self) -> float:
        """``min_active_seconds``, or the default of the policy that decides."""
        if self.min_active_seconds is not None:
            return self.min_active_seconds
        return 1.0 if self.policy_type is PolicyType.ADAPTIVE else 5.0
