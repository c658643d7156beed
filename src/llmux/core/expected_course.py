"""What is expected to happen on the GPUs: the policy is asked what it would do, with averages in place of requests.

Nothing here changes the world. Switches take what they took lately, and at each step the policy is asked as
``switching`` asks it: overdue models first, then its choice, then for how long busy ones have to stay. Left out: GPU
leases that wait, commands of the operator, and what may still fail.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice

from llmux.core.busy_time import seconds_until_ended
from llmux.core.expected_model import LEAST_SECONDS, ExpectedModel
from llmux.core.identifiers import Seconds
from llmux.core.model import Model
from llmux.core.placement import Occupant, Price, Use, give, take, victims
from llmux.core.policies.base import Bring, Candidate, Incumbent, Waiting, WaitingModel
from llmux.core.policy_view import CANDIDATES_MAX
from llmux.core.states import Draining, Evicting, Serving, Waking
from llmux.core.vacating import Room
from llmux.core.world import World

STEPS_MAX = 128
"""Decisions of one course."""
MODELS_MAX = 64
"""Models of one course: those that are on the GPUs, and those whose requests are overdue first. Both bound its cost."""
HORIZON_SECONDS: Seconds = 900.0
"""How far ahead a course looks: three times the default time-out."""
_OVERTIME_SHARE = 0.1
"""What takes longer than it was expected to goes on for this share of what it has taken."""


class Course:
    """The stays of the models that anybody asks for, as they are expected from ``made_at`` on."""

    def __init__(self, world: World, now: Seconds, asked: str) -> None:
        """``asked``: a model that a request is for which is not queued, beside those for which any wait."""
        self.world = world
        self.made_at = self.now = now
        names = dict.fromkeys((asked, *world.on_gpu, *world.switches, *islice(world.candidates, MODELS_MAX)))
        names |= dict.fromkeys(islice(world.models, MODELS_MAX))
        self.models = {
            name: ExpectedModel(world, model, now)
            for name, model in ((name, world.models[name]) for name in names)
            if name == asked or _counts(world, model, now)
        }
        if self.models[asked].head_since is None:
            self.models[asked].head_since = now
        self.free = dict(Room(world).expected)
        self._unplaced = {name for name, one in self.models.items() if one.model.is_asked_for or name == asked}
        self._begin()
        self._play()

    def _begin(self) -> None:
        now = self.now
        for one in self.models.values():
            match one.model.state:
                case Serving(since):
                    one.go_on(since, now)
                case Waking(since):
                    one.serve_from(now + _left(one.coming_seconds, now - since))
                case _:
                    pass
        for switch in self.world.switches.values():
            target = self.models.get(switch.target)
            if target is not None and not switch.is_waking:
                gone_at = max((self._gone_at(self.world.models[name]) for name in switch.victims), default=now)
                target.serve_from(gone_at + target.coming_seconds)

    def _gone_at(self, model: Model) -> Seconds:
        """When a model that is leaving has left."""
        now, leaving_seconds = self.now, self.world.costs.evict_seconds(model.name) or 0.0
        match model.state:
            case Draining(deadline=deadline):
                remaining = ExpectedModel(self.world, model, now).remaining_seconds
                return min(deadline, now + seconds_until_ended(len(model.in_flight), remaining)) + leaving_seconds
            case Evicting(since=since):
                return now + _left(leaving_seconds, now - since)
            case _:
                return now

    def _play(self) -> None:
        """Let the policy decide, until every model has admitted what waits for it."""
        for _ in range(STEPS_MAX):
            again_at = self._decide()
            self._unplaced = {name for name in self._unplaced if not self.models[name].admits_all(self.now)}
            if not self._unplaced or again_at > self.made_at + HORIZON_SECONDS:
                return
            self.now = max(again_at, self.now + LEAST_SECONDS)
            for one in self.models.values():
                one.update(self.now)

    def _decide(self) -> Seconds:
        """Begin the switches that are due; returns when to decide again."""
        now, again_at = self.now, math.inf
        view = _View(self)
        while (first := view.first()) is not None:
            overdue_at = view.overdue_at(first)
            target = first
            if overdue_at > now:
                choice = self.world.policy.choose(view, now)
                if not isinstance(choice, Bring):
                    again_at = min(again_at, choice.until, overdue_at)
                    break
                target = self.models[choice.model]
            leaving = view.leaving_for(target) or ()
            ready_at = max((self._may_leave_at(one, target, view) for one in leaving), default=now)
            if ready_at > now:
                again_at = min(again_at, ready_at)
                if overdue_at <= now:
                    break
            else:
                self._switch(target, leaving)
            view.deal_with(target, leaving)
        return min(again_at, self._next_change())

    def _next_change(self) -> Seconds:
        """When next the state of any model changes by itself."""
        now, next_at = self.now, math.inf
        for one in self.models.values():
            if now < (at := one.changes_at(now)) < next_at:
                next_at = at
        return next_at

    def _may_leave_at(self, one: ExpectedModel, target: ExpectedModel, view: "_View") -> Seconds:
        """When a model has had its minimum time and, if it is busy, its quantum."""
        assert one.since is not None
        stays = self.world.limits.min_active_seconds
        if not one.is_idle(self.now):
            if one.can_freeze:
                stays = max(stays, one.coming_seconds)
            quantum = self.world.policy.quantum_seconds(view.incumbent(one), target.model.name, view, self.now)
            stays = max(stays, quantum)
        return one.since + stays

    def _switch(self, target: ExpectedModel, leaving: Sequence[ExpectedModel]) -> None:
        gone_at = self.now
        for one in leaving:
            drained_at = one.leave(self.now, self.world.limits.drain_timeout_seconds)
            gone_at = max(gone_at, drained_at + one.leaving_seconds)
            give(self.free, one.frees)
        take(self.free, target.lacks(target.model.placement))
        target.serve_from(gone_at + target.coming_seconds)


def _left(expected: Seconds, elapsed: Seconds) -> Seconds:
    """What is left of something that was expected to take so long."""
    return expected - elapsed if elapsed < expected else _OVERTIME_SHARE * elapsed


def _counts(world: World, model: Model, now: Seconds) -> bool:
    """Whether a model is on the GPUs, or may come to be asked for."""
    if model.spec.is_gpu_lease or not world.allows(model.name):
        return False
    return (
        isinstance(model.state, Serving | Waking)
        or model.is_asked_for
        or model.estimates.arrivals_per_second_at(now) > 0
    )


class _View:
    """The ``PolicyView`` of one decision of a course."""

    __slots__ = ("_candidates", "_course", "_found", "_incumbents", "_spoken_for")

    def __init__(self, course: Course) -> None:
        self._course = course
        self._spoken_for: set[str] = set()
        self._incumbents: dict[str, Incumbent] = {}
        self._found: dict[object, Sequence[ExpectedModel] | None] = {}
        order = [
            (max(since + one.model.max_wait_seconds, one.last_left_at), number, one)
            for number, one in enumerate(course.models.values())
            if one.since is None and (since := one.asked_for_from()) <= course.now
        ]
        order.sort(key=lambda entry: entry[:2])
        self._candidates = {one.model.name: (one, overdue_at) for overdue_at, _, one in order}

    def first(self) -> ExpectedModel | None:
        """The candidate that is overdue first, of those that could come."""
        return next(self._available(), None)

    def overdue_at(self, one: ExpectedModel) -> Seconds:
        """When a candidate is overdue."""
        return self._candidates[one.model.name][1]

    def deal_with(self, target: ExpectedModel, leaving: Sequence[ExpectedModel]) -> None:
        """From here on these are no candidates, and leave for nobody else."""
        self._spoken_for.update((target.model.name, *(one.model.name for one in leaving)))
        self._found.clear()

    def leaving_for(self, one: ExpectedModel) -> Sequence[ExpectedModel] | None:
        """Those that would leave; None where nobody's leaving helps."""
        # Most models need the same memory and hold none of it, as in SchedulerView.
        key = one.model.need if self._course.world.rules.is_like_others(one.model) else one.model.name
        if key not in self._found:
            self._found[key] = self._find(one)
        return self._found[key]

    def _available(self) -> Iterator[ExpectedModel]:
        for name, (one, _) in self._candidates.items():
            if name not in self._spoken_for and self.leaving_for(one) is not None:
                yield one

    def _find(self, one: ExpectedModel) -> Sequence[ExpectedModel] | None:
        course, rules = self._course, self._course.world.rules
        movable = {other.model.name: other for other in self._movable(one)}
        rivals = [name for name in rules.rivals(one.model.name) if self._is_there(name)]
        if not movable.keys() >= set(rivals):
            return None
        free = dict(course.free)
        for name in rivals:
            give(free, movable[name].frees)
        occupants = [self._occupant(other) for name, other in movable.items() if name not in rivals]
        for place in one.model.placements:
            found = victims(one.lacks(place), free, occupants)
            if found is not None:
                return [*(movable[name] for name in rivals), *(movable[occupant.model] for occupant in found)]
        return None

    def _movable(self, coming: ExpectedModel) -> Iterator[ExpectedModel]:
        """The models that could leave for one."""
        for name, one in self._course.models.items():
            if one.since is None or one.since > self._course.now or name in self._spoken_for:
                continue
            if self._course.world.rules.may_leave_for(one.model, coming.model):
                yield one

    def _is_there(self, name: str) -> bool:
        one = self._course.models.get(name)
        return one is not None and one.since is not None

    def _occupant(self, one: ExpectedModel) -> Occupant:
        assert one.since is not None
        use = Use.IDLE if one.is_idle(self._course.now) else Use.BUSY
        since = one.idle_at if use is Use.IDLE else one.since
        return Occupant(one.model.name, one.frees, Price(use, 1 / max(self._course.now - since, LEAST_SECONDS), since))

    def oldest(self) -> Candidate | None:
        first = self.first()
        return None if first is None else _candidate(first)

    def candidates(self) -> Iterator[Candidate]:
        return map(_candidate, islice(self._available(), CANDIDATES_MAX))

    def in_the_way(self, candidate: Candidate) -> Sequence[Incumbent]:
        return [self.incumbent(one) for one in self.leaving_for(self._course.models[candidate.model]) or ()]

    def cost(self, leaving: str, coming: str) -> Seconds:
        return self._course.world.costs.direction(leaving, coming)

    def known_cost(self, leaving: str, coming: str) -> Seconds | None:
        return self._course.world.costs.known(leaving, coming)

    def incumbent(self, one: ExpectedModel) -> Incumbent:
        """What the policy sees of a serving model."""
        found = self._incumbents.get(one.model.name)
        if found is None:
            found = self._incumbents[one.model.name] = self._incumbent(one)
        return found

    def _incumbent(self, one: ExpectedModel) -> Incumbent:
        assert one.since is not None
        is_idle = one.is_idle(self._course.now)
        return Incumbent(
            one.model.name,
            one.since,
            0 if is_idle else max(1, round(one.in_flight)),
            0 if is_idle else round(one.queued),
            one.idle_at if is_idle else None,
            can_freeze=one.can_freeze,
            weight=one.model.spec.weight,
            awaiting_first_token=0 if is_idle else round(one.unread),
            arrivals_per_second=one.arrivals_per_second,
            residence_seconds=one.times.residence_seconds,
            prefill_seconds=one.times.prefill_seconds,
            pause_seconds=one.model.estimates.pause_seconds,
        )

    def waiting_for(self, leaving: str) -> Waiting:
        needed = self._course.models[leaving].model.awake
        candidates = (one for one, _ in self._candidates.values())
        waiting = [
            *islice((one for one in candidates if not one.model.possible_gpus.isdisjoint(needed)), CANDIDATES_MAX)
        ]
        requests = sum(one.model.spec.weight * one.waiting for one in waiting)
        patience = self._course.world.limits.request_timeout_seconds
        heads = ((one.head_since, one.last_stay_seconds) for one in waiting)
        each = tuple(WaitingModel(since, patience, stay) for since, stay in heads if since is not None)
        return Waiting(len(waiting), requests, each)


def _candidate(one: ExpectedModel) -> Candidate:
    assert one.head_since is not None
    return Candidate(one.model.name, one.head_since, one.waiting, one.model.spec.weight)
