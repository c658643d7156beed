"""The section ``policy``: when to switch, and the times that go with it."""

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
"""The policies that may be told by ``drain_before_switch`` to end requests in flight."""


class PolicySettings(Section):
    """When a switch is decided, and how patient everybody is."""

    policy_type: PolicyType = Field(
        default=PolicyType.ADAPTIVE,
        description="fifo: switch at the first request for another model. cost_aware: when the queue is worth the "
        "switch. time_slice: when the resident model has nothing to do. adaptive: after turns that are long enough to "
        "pay for the switch. All keep max_wait_seconds.",
    )
    request_timeout_seconds: Seconds = Field(
        default=300.0, description="How long a request may wait for its model before it is answered with 504."
    )
    drain_before_switch: Flag = Field(
        default=True,
        description="false: as if every model without its own `drain` had `drain: abort`. Only policy_type fifo "
        "and adaptive read it; cost_aware and time_slice always drain.",
    )
    eviction: EvictionField = Field(
        default=DEFAULT_EVICTION, description="How a model without its own `eviction` leaves the GPU."
    )
    min_active_seconds: Seconds | None = Field(
        default=None,
        description="How long a model stays on the GPU after its wake, forced switches included; null: 1 s under "
        "adaptive, whose turns are as long as their switches need anyway, 5 s under the others.",
    )
    coalesce_window_seconds: Seconds = Field(
        default=2.0, description="cost_aware: how long to gather requests for a switch that is not worth it yet."
    )
    amortization_factor: Factor = Field(
        default=0.5, description="cost_aware: waiting requests per second of the switch's cost that make it worth it."
    )
    max_wait_seconds: Seconds = Field(
        default=15.0,
        description="How old the oldest waiting request of a model may become before its switch is due, however "
        "busy the resident model is.",
    )
    tick_interval_seconds: PositiveSeconds = Field(
        default=0.5, description="time_slice: how long the resident model must have been idle before it has to leave."
    )
    switch_share_max: Share = Field(
        default=0.25,
        description="adaptive: the part of the time that may go into switching. What the demand leaves over may be "
        "spent on it too, up to 0.55 in all.",
    )
    min_quantum_seconds: Seconds = Field(default=2.0, description="Accepted for compatibility; has no effect.")

    @property
    def effective_min_active_seconds(self) -> float:
        """``min_active_seconds``, or the policy's own if there is none."""
        if self.min_active_seconds is not None:
            return self.min_active_seconds
        return 1.0 if self.policy_type is PolicyType.ADAPTIVE else 5.0
