"""Who would have to leave for a place, kept from one decision to the next until something changes on its GPUs.

With many GPUs a decision prices many places, and the event that led to it has changed one of them. What is kept is only
what time does not change: that nobody has to leave, that one certain model has to, or that nothing helps. Its price is
computed anew in each decision.
"""

from dataclasses import dataclass
from typing import TypeAlias

from llmux.core.identifiers import Footprint, GpuId, Seconds
from llmux.core.model import Model
from llmux.core.placement import LEAST_SECONDS_UNUSED, Plan, Use
from llmux.core.states import Serving

NEEDS_MAX = 64
"""Needs for which plans are kept: most models of a fleet need the same, and each may have ``PLACES_MAX`` places."""

PlanPrice: TypeAlias = tuple[object, ...]
"""What a plan for a place costs, for comparing it with those for others: frozen and busy models that leave, whether
they are stopped, the rest of ``price_of``, and how much memory is left free."""

_NOBODY = Plan()


@dataclass(frozen=True, slots=True)
class KnownPlan:
    """Who leaves for one place, as found when its GPUs had changed so often."""

    changes: int
    """The sum over the place's GPUs: each count only grows, so it is the same while all of them are."""
    depends: bool = False
    """Whether it has to be found anew each time: several models could leave, and time changes which is cheapest."""
    is_possible: bool = False
    plan: Plan = _NOBODY
    leaving: Model | None = None
    """The only one whose leaving helps, and who leaves by the plan; None where nobody has to, or nothing helps."""
    cost: float = 0.0
    """The numerator of its regret."""
    left: int = 0
    """What stays free, in MiB, less what is freed."""

    def price(self, now: Seconds) -> PlanPrice:
        """What the plan costs now: as ``price_of`` says of who leaves."""
        model = self.leaving
        if model is None:
            return (0, 0, False, False, 0.0, 0, 0.0, self.left)
        # As ``use_of`` does, without the call: each decision prices many places.
        state, frozen, busy, is_idle = model.state, 0, 0, False
        if type(state) is not Serving:
            since, frozen = model.last_served_at, 1 if model.frozen else 0
        elif model.in_flight or model.queue.size:
            since, busy = state.since, 1
        else:
            since, is_idle = model.idle_since, True
        elapsed = now - since
        regret = self.cost / (elapsed if elapsed > LEAST_SECONDS_UNUSED else LEAST_SECONDS_UNUSED)
        return (frozen, busy, False, is_idle, regret, 1, since, self.left)


def use_of(model: Model) -> tuple[Use, Seconds]:
    """What a model that could leave is doing, and since when."""
    state = model.state
    if type(state) is not Serving:
        return (Use.FROZEN if model.frozen else Use.NONE), model.last_served_at
    if model.in_flight or model.queue.size:
        return Use.BUSY, state.since
    return Use.IDLE, model.idle_since


class KnownPlans:
    """The plans that are kept, by need and by the number of the place, and what makes them out of date."""

    __slots__ = ("_plans", "changes")

    def __init__(self, gpus: Footprint) -> None:
        self.changes: dict[GpuId, int] = dict.fromkeys(gpus, 0)
        """How often a model on each GPU has changed its state, its need or how it leaves."""
        self._plans: dict[int, list[KnownPlan | None]] = {}

    def changed(self, gpus: Footprint) -> None:
        """What was known of places on these GPUs is out of date."""
        for gpu in gpus:
            self.changes[gpu] += 1

    def of(self, model: Model) -> list[KnownPlan | None]:
        """The plans for the places of a model, and of all that need the same.

        To be replaced where their ``changes`` are not the present ones.
        """
        plans = self._plans.get(model.need_number)
        if plans is None:
            if len(self._plans) >= NEEDS_MAX:
                self._plans.clear()
            plans = self._plans[model.need_number] = [None] * len(model.need)
        return plans
