"""The scheduler's whole state, and the few primitives by which it changes."""

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from llmux.core.actions import Action
from llmux.core.candidates import CandidateQueue
from llmux.core.eviction import Eviction
from llmux.core.identifiers import Footprint, GpuId, Seconds
from llmux.core.model import Model, Transition
from llmux.core.placement import free_memory, give, take
from llmux.core.policies.base import Policy
from llmux.core.settings import Limits, ModelSpec
from llmux.core.states import (
    ON_GPU,
    OUT_OF_ORDER,
    RESIDENT,
    Asleep,
    Auto,
    Cold,
    Draining,
    Failed,
    Mode,
    State,
    Stuck,
)
from llmux.core.switch_costs import SwitchCosts


@dataclass(slots=True)
class Claim:
    """A switch that has been decided: ``victims`` leave, then ``target`` is woken. It reserves the target's memory."""

    target: str
    victims: tuple[str, ...]
    wanted_at: Seconds
    drain_began_at: Seconds
    evict_began_at: Seconds | None = None
    wake_began_at: Seconds | None = None


@dataclass(frozen=True, slots=True)
class SwitchCommand:
    """An operator's wish for a model on the GPU. ``mode_before`` is what the mode rolls back to if it fails."""

    number: int
    model: str
    mode_before: Mode | None


@dataclass(frozen=True, slots=True)
class SleepCommand:
    """An operator's wish for a model off the GPU."""

    number: int
    model: str
    eviction: Eviction | None


Command: TypeAlias = SwitchCommand | SleepCommand


class World:
    """All scheduling data. Every change of a model's state or queue goes through here, so the indexes stay true."""

    def __init__(
        self, specs: Iterable[ModelSpec], limits: Limits, policy: Policy, capacity: Mapping[GpuId, int]
    ) -> None:
        self.models = {spec.name: _fitting(spec, capacity, limits) for spec in specs}
        self.limits = limits
        self.policy = policy
        self.capacity = dict(capacity)
        self.free = free_memory(capacity, [model.held for model in self.models.values()])
        """What no model holds on each GPU."""
        self.costs = SwitchCosts()
        self.mode: Mode = Auto()
        self.stopping_until: Seconds | None = None
        self.shutdown_reported = False
        self.claims: dict[str, Claim] = {}
        self.wanted_at: dict[str, Seconds] = {}
        self.commands: OrderedDict[int, Command] = OrderedDict()
        self.on_gpu: dict[str, Model] = {}
        self.draining: dict[str, Model] = {}
        self.with_residue: dict[str, Model] = {}
        self.backing_off: dict[str, Model] = {}
        self.turns = CandidateQueue()
        self.queued_requests = 0
        self.queued_bytes = 0
        self.frozen_requests = 0
        self.actions: list[Action] = []
        self.event_name = ""
        self._deadlines: list[tuple[Seconds, int, str]] = []

    def emit(self, action: Action) -> None:
        """Have something done, after everything emitted before."""
        self.actions.append(action)

    def allows(self, name: str) -> bool:
        """Whether the mode lets requests for the model be served."""
        return isinstance(self.mode, Auto) or self.mode.allowed == name

    def set_state(self, model: Model, state: State, now: Seconds) -> None:
        """The only place where a model's state changes."""
        model.history.append(Transition(now, self.event_name, model.state, state))
        if isinstance(model.state, RESIDENT) and not isinstance(state, RESIDENT):
            model.last_served_at = now
        model.state = state
        self._hold(model, model.footprint(state))
        _keep(self.on_gpu, model, isinstance(state, ON_GPU))
        _keep(self.draining, model, isinstance(state, Draining))
        _keep(self.with_residue, model, isinstance(state, Asleep) and bool(model.held))
        _keep(self.backing_off, model, isinstance(state, OUT_OF_ORDER))
        self.refresh_turn(model, now)

    def _hold(self, model: Model, footprint: Footprint) -> None:
        if footprint is model.held:
            return
        give(self.free, model.held)
        take(self.free, footprint)
        model.held = footprint

    def refresh_turn(self, model: Model, now: Seconds) -> None:
        """Bring the turn order in line after the model's queue or state changed."""
        head_since = model.head_since if model.can_be_woken(now) else None
        if head_since is not None and self.allows(model.name):
            self.turns.place(model.name, max(head_since + model.max_wait_seconds, model.last_served_at))
        else:
            self.turns.remove(model.name)

    def watch_deadline(self, request: int, model: Model, deadline: Seconds) -> None:
        """Remember when a queued or frozen request has waited too long."""
        heapq.heappush(self._deadlines, (deadline, request, model.name))
        if len(self._deadlines) > 2 * (self.queued_requests + self.frozen_requests) + 1024:
            self._deadlines = [entry for entry in self._deadlines if self._is_waiting(*entry)]
            heapq.heapify(self._deadlines)

    def next_deadline(self, before: Seconds) -> Seconds:
        """When the next queued or frozen request has waited too long; infinity if none has before that time."""
        while self._deadlines and self._deadlines[0][0] < before:
            deadline, request, name = self._deadlines[0]
            if self._is_waiting(deadline, request, name):
                return deadline
            heapq.heappop(self._deadlines)
        return math.inf

    def next_expired(self, now: Seconds) -> tuple[int, Model] | None:
        """Take out a queued or frozen request that has waited too long, if there is one."""
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, request, name = heapq.heappop(self._deadlines)
            if self._is_waiting(deadline, request, name):
                return request, self.models[name]
        return None

    def _is_waiting(self, deadline: Seconds, request: int, name: str) -> bool:
        model = self.models[name]
        entry = model.waiting.get(request) or model.frozen.get(request)
        return entry is not None and entry.deadline == deadline

    @property
    def is_empty_of_engines(self) -> bool:
        """Whether no engine runs any more (or none that could still be stopped)."""
        return all(isinstance(model.state, Cold | Failed | Stuck) for model in self.models.values())


def _fitting(spec: ModelSpec, capacity: Mapping[GpuId, int], limits: Limits) -> Model:
    for gpu, size in spec.awake.items():
        if size > capacity.get(gpu, 0):
            raise ValueError(
                f"the model '{spec.name}' needs {size} MiB of GPU {gpu.uuid}, which has {capacity.get(gpu, 0)}: "
                "it could never be woken; give it more or other GPUs"
            )
    return Model(spec, limits.max_wait_seconds)


def _keep(index: dict[str, Model], model: Model, member: bool) -> None:
    if member:
        index[model.name] = model
    else:
        index.pop(model.name, None)
