"""The scheduler's whole state, and the few operations by which it changes."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llmux.core.actions import Action
from llmux.core.candidates import CandidateQueue
from llmux.core.clock import Clock
from llmux.core.deadlines import Deadlines
from llmux.core.eviction import Eviction
from llmux.core.gpus import Gpus
from llmux.core.groups import Group, Rules
from llmux.core.identifiers import Footprint, GpuId, Seconds
from llmux.core.model import Model, NeedNumbers, Transition
from llmux.core.policies.base import Policy
from llmux.core.request import Request
from llmux.core.settings import Limits, ModelSpec, Placement
from llmux.core.states import (
    ALLOWED,
    BACKING_OFF,
    ON_GPU,
    RESIDENT,
    Asleep,
    Auto,
    Cold,
    Draining,
    Failed,
    Manual,
    Mode,
    Serving,
    State,
    Stuck,
)
from llmux.core.switch import Switch
from llmux.core.switch_costs import SwitchCosts


@dataclass(frozen=True, slots=True)
class SwitchCommand:
    """The operator wants a model on the GPU. ``mode_before`` is what the mode rolls back to if that fails."""

    number: int
    model: str
    mode_before: Mode | None
    kept_before: bool | None = None
    """Of a pin beside others: whether the model was kept before, as it is again if that fails."""

    @property
    def sets_mode(self) -> bool:
        """Whether only its model is served from now on."""
        return self.mode_before is not None


@dataclass(frozen=True, slots=True)
class SleepCommand:
    """The operator wants a model off the GPU."""

    number: int
    model: str
    eviction: Eviction | None


Command: TypeAlias = SwitchCommand | SleepCommand


class InvalidTransition(Exception):
    """A model was to go from one state to another that does not follow it: a fault in the core.

    The text ends with the model's history, which tells how it came about.
    """

    def __init__(self, model: Model, event: str, state: State) -> None:
        history = "".join(f"\n  {t.at:.3f} {t.event}: {t.before} -> {t.after}" for t in model.history)
        super().__init__(f"{model.name}: {model.state} -> {state} on {event}; history:{history or ' none'}")


class World:
    """All scheduling data.

    Models' states, queues and frozen requests change through the methods below, which keep the indexes and totals
    true; ``tests/support/invariants.py`` checks them all after every event of every test.
    """

    def __init__(
        self, specs: Iterable[ModelSpec], limits: Limits, policy: Policy, capacity: Footprint, groups: Iterable[Group]
    ) -> None:
        self.clock = Clock()
        """The time of the event being handled; shared with every model."""
        self.event_name = ""
        """The event being handled, for the models' histories."""
        self.actions: list[Action] = []
        """What the event being handled has led to so far, in order; empty between events."""
        self._need_numbers = NeedNumbers()
        self.models = {spec.name: self._fitting(spec, capacity, limits) for spec in specs}
        """Every configured model, in the configuration's order, and behind them the ``gpu_leases``."""
        self.gpu_leases: dict[str, Model] = {}
        """The models that stand for GPU leases; the only ones that are added and removed."""
        self.default_model: Model | None = None
        """The one that comes back when nobody needs what is in its way."""
        self.without_gpu = tuple(model for model in self.models.values() if not model.spec.uses_gpu)
        """Those that hold no GPU memory: they are woken at once, beside whatever is on the GPUs."""
        self.rules = Rules(self.models.values(), groups)
        self.limits, self.policy = limits, policy
        self.costs = SwitchCosts()

        self.gpus = Gpus(capacity, self.models.values())
        self.on_gpu: dict[str, Model] = {}
        """Models in a state of ``ON_GPU``, in the order in which their wakes began."""
        self.draining: dict[str, Model] = {}
        """Models that drain: their deadlines count for the timer."""
        self.in_host_memory: dict[str, Model] = {}
        """Sleeping models that are known to hold host memory, the one first that has slept so for longest."""
        self.host_mib = 0
        """Host memory that sleeping models hold, and those that are leaving will, as far as known."""
        self.missing: dict[GpuId, int] = {}
        """GPU memory that idle models are still to give up for other programs, while those lack any."""
        self.backing_off: dict[str, Model] = {}
        """Failed and stuck models whose ``retry_at`` has not come yet: it counts for the timer."""

        self.switches: dict[str, Switch] = {}
        """By target, oldest first; written by ``switching`` alone. Only at shutdown is a model Waking without one."""
        self.switch_wanted_at: dict[str, Seconds] = {}
        """Targets that a switch is wanted to but whose victims have to stay for now, and since when it is wanted."""
        self.candidates = CandidateQueue()
        """Models with queued or frozen requests that could be woken and that the mode allows."""
        self.deadlines = Deadlines()
        self.queued_requests = self.queued_bytes = self.frozen_requests = 0
        """Totals over all queues, bounded by ``limits``. Only requests that return may exceed the bound."""
        self.mode: Mode = Auto()
        self.commands: OrderedDict[int, Command] = OrderedDict()
        """The operator's commands, performed one after the other; at most ``limits.commands_max``."""
        self.stopping_until: Seconds | None = None
        """The end of the drain during shutdown; None while llmux runs."""
        self.aborted: set[str] = set()
        """Models whose wake or eviction was given up for the shutdown."""
        self.shutdown_reported = False

    def emit(self, action: Action) -> None:
        """Have something done, after everything emitted before."""
        self.actions.append(action)

    def allows(self, name: str) -> bool:
        """Whether the mode, and what stays on the GPUs, let requests for the model be served."""
        mode = self.mode
        return not (type(mode) is Manual and mode.allowed != name) and name not in self.rules.shut_out

    def set_state(self, model: Model, state: State) -> None:
        """Change a model's state, the memory it holds and its place in every index. Raises InvalidTransition."""
        before, now = model.state, self.clock.now
        if type(state) not in ALLOWED[type(before)]:
            raise InvalidTransition(model, self.event_name, state)
        model.history.append(Transition(now, self.event_name, before, state))
        if isinstance(before, RESIDENT) and not isinstance(state, RESIDENT):
            model.last_served_at = now
            model.estimates.stay_seconds = now - (before.since if isinstance(before, Serving) else before.serving_since)
        model.state = state
        model.find_placements()
        self.gpus.hold(model)
        host_mib = model.sleep.footprint_mib(state)
        self.host_mib += host_mib - model.sleep.held_mib
        model.sleep.held_mib = host_mib
        _keep(self.on_gpu, model, isinstance(state, ON_GPU))
        _keep(self.draining, model, isinstance(state, Draining))
        _keep(self.in_host_memory, model, isinstance(state, Asleep) and host_mib > 0)
        _keep(self.backing_off, model, isinstance(state, BACKING_OFF))
        self.update_candidate(model)

    def place(self, model: Model, placement: Placement) -> None:
        """Choose where a model will be started. It must have no engine, and no switch to it may be under way."""
        assert model.name not in self.switches
        if placement is not model.placement:
            assert placement in model.placements
            model.placement = placement
            model.find_placements()

    def correct_need(self, model: Model, places: tuple[Placement, ...]) -> None:
        """A model holds, or would hold, other amounts of memory than was thought, also where its engine is now."""
        gpus = model.placement.awake.keys()
        model.set_places(places)
        self.gpus.find_least_need(self.models.values())
        self.rules.staying = ()  # Who is shut out is to be found anew.
        model.placement = next(place for place in places if place.awake.keys() == gpus)
        model.find_placements()
        self.gpus.hold(model)

    def add_gpu_lease(self, spec: ModelSpec) -> None:
        """Enter the model that stands for a lease. Raises ValueError if the lease would never fit."""
        assert spec.is_gpu_lease
        assert spec.name not in self.models
        model = self._fitting(spec, self.gpus.capacity, self.limits)
        self.models[spec.name] = self.gpu_leases[spec.name] = model
        self.gpus.find_least_need(self.models.values())
        self.rules.staying = ()

    def remove_gpu_lease(self, model: Model) -> None:
        """Forget a lease that is over: nothing waits for it, and it holds no memory."""
        assert not (model.held or model.queue or model.in_flight or model.name in self.switches)
        del self.models[model.name], self.gpu_leases[model.name]
        self.gpus.find_least_need(self.models.values())
        self.backing_off.pop(model.name, None)
        self.aborted.discard(model.name)
        self.costs.forget(model.name)
        self.rules.shut_out.pop(model.name, None)

    def _fitting(self, spec: ModelSpec, capacity: Mapping[GpuId, int], limits: Limits) -> Model:
        for placement in spec.placements:
            for gpu, size in placement.awake.items():
                if size > capacity.get(gpu, 0):
                    raise ValueError(
                        f"the model '{spec.name}' needs {size} MiB of GPU {gpu.uuid}, which has "
                        f"{capacity.get(gpu, 0)}: it could never be woken there; give it more or other GPUs"
                    )
        return Model(spec, limits.max_wait_seconds, self.clock, self._need_numbers)

    def update_candidate(self, model: Model) -> None:
        """Enter, move or remove a candidate after its queue, its state or the mode changed."""
        head_since = model.head_since if model.can_be_woken else None
        if head_since is not None and self.allows(model.name):
            # Not before it left the GPU: a model with a deep queue must not come back before one that waits.
            self.candidates.place(model.name, max(head_since + model.max_wait_seconds, model.last_served_at))
        else:
            self.candidates.remove(model.name)

    def enqueue(self, model: Model, request: Request, *, returned: bool = False) -> None:
        """Put a request into its model's queue. ``returned``: by its arrival, not at the end."""
        if not model.queue:
            model.accrue()
        (model.queue.reinsert if returned else model.queue.append)(request)
        self.queued_requests += 1
        self.queued_bytes += request.size_bytes
        self._begin_waiting(request)

    def dequeue(self, model: Model, request: Request) -> None:
        """Take a request out of its model's queue; raises KeyError if it is not in it."""
        if len(model.queue) == 1:
            model.accrue()
        model.queue.remove(request)
        self.queued_requests -= 1
        self.queued_bytes -= request.size_bytes
        self.deadlines.stop(request)

    def freeze(self, model: Model, request: Request) -> None:
        """A request in flight waits with its engine from now on."""
        model.in_flight.discard(request)
        model.frozen[request] = None
        self.frozen_requests += 1
        self._begin_waiting(request)

    def unfreeze(self, model: Model, request: Request) -> None:
        """A request is not frozen any more: it resumes or ends."""
        if request.ttft_seconds is not None:
            request.paused_seconds += self.clock.now - request.waiting_since
        del model.frozen[request]
        self.frozen_requests -= 1
        self.deadlines.stop(request)

    def extend_wait(self, request: Request) -> None:
        """Let a queued request that would time out now wait as long again."""
        self.deadlines.stop(request)
        self._start_deadline(request)

    def _begin_waiting(self, request: Request) -> None:
        request.waiting_since = self.clock.now
        self._start_deadline(request)

    def _start_deadline(self, request: Request) -> None:
        own = request.timeout_seconds
        self.deadlines.start(request, self.clock.now + (self.limits.request_timeout_seconds if own is None else own))

    def under_way(self) -> Sequence[Command]:
        """The operator's commands that may be performed now: the first one, or all wakes up to the first other one.

        Wakes get their places in their order, and do not wait for one another where their models are on other GPUs.
        """
        found: list[Command] = []
        for command in self.commands.values():
            is_wake = isinstance(command, SwitchCommand) and not command.sets_mode
            if found and not is_wake:
                break
            found.append(command)
            if not is_wake:
                break
        return found

    @property
    def has_no_engines(self) -> bool:
        """Whether no engine runs any more, except those that cannot be stopped."""
        return all(isinstance(model.state, Cold | Failed | Stuck) for model in self.models.values())


def _keep(index: dict[str, Model], model: Model, member: bool) -> None:
    if member:
        index[model.name] = model
    else:
        index.pop(model.name, None)
