"""What the operator can see and do: everything behind the control API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, assert_never

from llmux.core.events import EvictionChanged, ModeChanged, SleepRequested, SwitchRequested, WakeRequested
from llmux.core.eviction import Eviction, Process, Weights
from llmux.core.model import Transition
from llmux.core.scheduler import Scheduler
from llmux.core.states import (
    Asleep,
    Auto,
    Cold,
    Draining,
    Evicting,
    Failed,
    Manual,
    Mode,
    Serving,
    State,
    Stuck,
    Waking,
)
from llmux.engines.steps import UnsupportedEviction, steps_of
from llmux.errors import EvictionRefused, ModelNotFound
from llmux.runtime.controller import Controller

_WEIGHTS = {Weights.RETAIN: "Retain", Weights.OFFLOAD: "Offload", Weights.DISCARD: "Discard"}
_PROCESSES = {
    Process.KEEP_RUNNING: "KeepRunning",
    Process.CUDA_SUSPEND: "CudaSuspend",
    Process.CHECKPOINT: "Checkpoint",
    Process.STOP: "Stop",
}


CHECKPOINTED = "checkpointed"
"""The state of a model that is in an image."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model as the operator sees it. ``process_state`` is in 0.7.7's words."""

    name: str
    in_flight: int
    queue_depth: int
    process_state: str
    eviction: Eviction
    on_gpu: bool
    failure: str | None
    pid: int | None
    oldest_wait_seconds: float
    frozen: int = 0
    unfaithful: tuple[Eviction, ...] = ()
    """Evictions after which it was found to say something else than before, and which it does not use any more."""


@dataclass(frozen=True, slots=True)
class Status:
    """The whole as the operator sees it. ``state`` is in 0.7.7's words."""

    state: str
    active_model: str | None
    mode: Mode
    models: tuple[ModelStatus, ...]

    @property
    def resident(self) -> tuple[str, ...]:
        """All models that hold the GPU."""
        return tuple(model.name for model in self.models if model.on_gpu)


class Engine(Protocol):
    """What the operator may look at of an engine."""

    @property
    def pid(self) -> int | None:
        """The engine's root process."""

    @property
    def output_tail(self) -> tuple[str, ...]:
        """Its last lines of output."""

    async def delete_images(self) -> None:
        """Delete what could bring it back from disk; nothing happens where there is none."""


class Operations:
    """The operator's view and hands."""

    def __init__(
        self, scheduler: Scheduler, controller: Controller, engines: Mapping[str, Engine], *, has_images: bool = False
    ) -> None:
        """``has_images``: whether engines can be put into images."""
        self._has_images = has_images
        self._scheduler = scheduler
        self._controller = controller
        self._engines = engines

    def now(self) -> float:
        """The clock that a history's times are on."""
        return self._controller.now()

    def status(self) -> Status:
        """Where everything is now."""
        active = self._scheduler.active_model()
        switching = self._scheduler.switching()
        if switching is not None:
            state = f"switching:{switching[0] or 'none'}->{switching[1]}"
        else:
            state = f"active:{active}" if active is not None else "idle"
        return Status(
            state,
            active if switching is None else None,
            self._scheduler.mode,
            tuple(self.model_status(name) for name in self._engines),
        )

    def model_status(self, name: str) -> ModelStatus:
        """One model; raises ModelNotFound."""
        self._check(name)
        record = self._scheduler.model(name)
        state = record.state
        return ModelStatus(
            name,
            len(record.in_flight),
            len(record.queue),
            process_state(state),
            record.eviction,
            isinstance(state, Waking | Serving | Draining | Evicting | Stuck),
            state.reason if isinstance(state, Failed | Stuck) else None,
            self._engines[name].pid,
            self.now() - record.head_since if record.head_since is not None else 0.0,
            len(record.frozen),
            tuple(sorted(record.unfaithful, key=str)),
        )

    def history(self, name: str) -> Sequence[Transition]:
        """A model's latest transitions; raises ModelNotFound."""
        self._check(name)
        return self._scheduler.history(name)

    def output_tail(self, name: str) -> tuple[str, ...]:
        """The last lines of a model's engine; raises ModelNotFound."""
        self._check(name)
        return self._engines[name].output_tail

    async def switch(self, name: str) -> None:
        """Bring a model onto the GPU; in manual mode the pin moves to it. Raises ModelNotFound, CommandFailed."""
        self._check(name)
        await self._controller.command(lambda number: SwitchRequested(number, name))

    async def pin(self, name: str) -> None:
        """Bring a model and serve only it; a failure leaves the mode as it was. Raises as ``switch``."""
        self._check(name)
        await self._controller.command(lambda number: SwitchRequested(number, name, pin=True))

    async def wake(self, name: str) -> None:
        """Bring a model onto the GPU. Raises as ``switch``."""
        self._check(name)
        await self._controller.command(lambda number: WakeRequested(number, name))

    async def sleep(self, name: str, eviction: Eviction | None = None) -> None:
        """Take a model off the GPU once its requests have ended. Raises as ``switch``, and EvictionRefused.

        Stopping one that is in an image deletes its images: that is how it is made to start cold.
        """
        self._check(name)
        if eviction is not None:
            self._check_eviction(eviction)
        is_in_image = process_state(self._scheduler.state(name)) == CHECKPOINTED
        await self._controller.command(lambda number: SleepRequested(number, name, eviction))
        if is_in_image and (eviction or self._scheduler.model(name).eviction).process is Process.STOP:
            await self._engines[name].delete_images()

    def set_mode(self, *, manual: bool) -> None:
        """Choose who switches; a pin is dropped."""
        self._controller.feed(ModeChanged(manual))

    def set_eviction(self, name: str, eviction: Eviction) -> None:
        """Override how a model leaves the GPU, from the next time on and until llmux ends.

        Raises ModelNotFound, EvictionRefused.
        """
        self._check(name)
        self._check_eviction(eviction)
        self._controller.feed(EvictionChanged(name, eviction))

    def _check_eviction(self, eviction: Eviction) -> None:
        try:
            steps_of(eviction)
        except UnsupportedEviction as unsupported:
            raise EvictionRefused(str(unsupported)) from None
        if eviction.process is Process.CHECKPOINT and not self._has_images:
            raise EvictionRefused(
                f"the eviction '{eviction}' needs the section 'checkpoint' in the configuration, which says where "
                "images are kept; add 'checkpoint: {}' for its defaults and restart llmux"
            )
        if not eviction.leaves_the_gpu and len(self._engines) > 1:
            raise EvictionRefused(
                f"a model with the eviction '{eviction}' never leaves the GPU, and the other models need it; "
                "use offload or discard with keep_running, or any with stop"
            )

    def _check(self, name: str) -> None:
        if name not in self._engines:
            raise ModelNotFound(name, list(self._engines))


def process_state(state: State) -> str:
    """A model's state in 0.7.7's words: a model is running until it has begun to leave, asleep until it is awake."""
    match state:
        case Cold():
            return "not_started"
        case Waking(asleep=None):
            return "starting"
        case Serving() | Draining() | Evicting(eviction=Eviction(process=Process.STOP)):
            return "running"
        case Asleep(Eviction(process=Process.CHECKPOINT)):
            return CHECKPOINTED
        case Waking(asleep=eviction) | Asleep(eviction) | Evicting(eviction=eviction):
            assert eviction is not None
            return f"sleeping:{_WEIGHTS[eviction.weights]}+{_PROCESSES[eviction.process]}"
        case Stuck(reason=reason) | Failed(reason=reason):
            return f"failed:{reason}"
        case _:
            assert_never(state)


def describe_mode(mode: Mode) -> dict[str, str]:
    """The mode as 0.7.7's status shows it."""
    match mode:
        case Auto():
            return {"mode": "auto"}
        case Manual(pinned=pinned):
            return {"mode": "manual"} if pinned is None else {"mode": "manual", "pinned": pinned}
        case _:
            assert_never(mode)
