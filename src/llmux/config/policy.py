"""The section ``policy``: which policy decides about switches, and its times."""

import math
from enum import StrEnum

from pydantic import Field

from llmux.config.eviction import DEFAULT_EVICTION, EvictionField
from llmux.config.fields import Factor, Flag, PositiveFactor, PositiveSeconds, Seconds, Section
from llmux.config.model import ModelSettings
from llmux.core.eviction import Drain
from llmux.core.settings import RefuseAfter
from llmux.core.target import BATCH_TTFT_SECONDS, DEFAULT_TARGET


class PolicyType(StrEnum):
    """Which switch policy decides."""

    FIFO = "fifo"
    COST_AWARE = "cost_aware"
    TIME_SLICE = "time_slice"
    ADAPTIVE = "adaptive"


ABORTING = (PolicyType.FIFO, PolicyType.ADAPTIVE)
"""The policies under which ``drain_before_switch: false`` ends requests in flight: fifo, as in 0.7.7, and adaptive,
which 0.7.7's files get where they name no policy (there it was fifo)."""


FREEZING = (PolicyType.ADAPTIVE,)
"""The policies under which requests are frozen if nothing else is said. The others give a model ``min_active_seconds``
only, in which what was frozen may get no further than its recompute."""


class PolicySettings(Section):
    """When a switch is decided, and how long everything may take."""

    policy_type: PolicyType = Field(
        default=PolicyType.ADAPTIVE,
        description="fifo: switch at the first request for another model. cost_aware: when the queue is worth the "
        "switch. time_slice: when the resident model is idle. adaptive: when staying would delay others more than it "
        "serves. All of them honour max_wait_seconds.",
    )
    request_timeout_seconds: Seconds = Field(
        default=300.0,
        description="How long a request may wait for its model before it is answered with 504. The default leaves out "
        "the time in which that model is started cold, which start_timeout_seconds limits; a value that is set does "
        "not.",
    )
    refuse_after_seconds: PositiveSeconds | None = Field(
        default=None,
        description="An interactive request that is expected to wait for longer than this is refused at once, with 503 "
        "and a Retry-After, unless it is the only one that waits for its model. Default: never, since a forecast is "
        "sometimes wrong: requests wait until request_timeout_seconds.",
    )
    batch_refuse_after_seconds: PositiveSeconds | None = Field(
        default=None, description="The same for batch requests. Default: never, they wait."
    )
    drain_before_switch: Flag | None = Field(
        default=None,
        description="For models without their own `drain`. true: `drain: wait`. false: `drain: abort`, under fifo and "
        "adaptive; cost_aware and time_slice always drain. Default: `drain: freeze` under adaptive where the engine "
        "and the eviction can keep requests, else `drain: wait`.",
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
    idle_seconds: PositiveSeconds | None = Field(
        default=None,
        description="How long a model without its own `idle_seconds` stays on the GPU without a request. Default: "
        "until another model needs its place.",
    )
    ttft_target_seconds: PositiveSeconds = Field(
        default=DEFAULT_TARGET.ttft_seconds,
        description="A streamed answer is on time if its first token comes within this time, and the rest at "
        "reading_tokens_per_second from then on. Measured only: llmux_streams_total, status, simulate and replay. "
        "The default is for how long people keep their attention on a dialogue.",
    )
    batch_ttft_target_seconds: PositiveSeconds = Field(
        default=BATCH_TTFT_SECONDS, description="The same for batch requests."
    )
    reading_tokens_per_second: PositiveFactor = Field(
        default=DEFAULT_TARGET.tokens_per_second,
        description="How fast clients take answers. The default is a reader's speed; a program that acts on answers "
        "takes them faster.",
    )
    sleep_deeper_after_seconds: PositiveSeconds | None = Field(
        default=None,
        description="How long a model that nobody asks for sleeps in one way before it goes on to the next that holds "
        "less host memory, in the end to none: its engine is stopped. Default: only when host memory is short.",
    )
    min_quantum_seconds: Seconds = Field(default=2.0, description="Accepted for 0.7.7's files; has no effect.")

    def drain(self, *, can_keep_requests: bool) -> Drain:
        """What a switch does about requests in flight of a model that does not say it itself."""
        if self.drain_before_switch is False and self.policy_type in ABORTING:
            return Drain.ABORT
        freezes = self.drain_before_switch is None and self.policy_type in FREEZING and can_keep_requests
        return Drain.FREEZE if freezes else Drain.WAIT

    def refuse_after(self, model: ModelSettings) -> RefuseAfter:
        """How long requests for a model may be expected to wait: its own limits, or those of all models."""
        return RefuseAfter(
            model.refuse_after_seconds or self.refuse_after_seconds or math.inf,
            model.batch_refuse_after_seconds or self.batch_refuse_after_seconds or math.inf,
        )

    @property
    def effective_min_active_seconds(self) -> float:
        """``min_active_seconds``, or the default of the policy that decides."""
        if self.min_active_seconds is not None:
            return self.min_active_seconds
        return 1.0 if self.policy_type is PolicyType.ADAPTIVE else 5.0
