"""What the operator can see and do: everything behind the control API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmux.core.events import EvictionChanged, ModeChanged, SleepRequested, SwitchRequested, WakeRequested
from llmux.core.eviction import Eviction, Process
from llmux.core.model import Transition
from llmux.core.scheduler import Scheduler
from llmux.core.states import ON_GPU, Asleep, Failed, Mode, State, Stuck
from llmux.engines.steps import UnsupportedEviction, steps_of
from llmux.errors import EvictionRefused, ModelNotFound
from llmux.runtime.controller import Controller


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model as the operator sees it."""

    name: str
    in_flight: int
    queue_depth: int
    state: State
    eviction: Eviction
    pid: int | None
    """The engine's root process."""
    oldest_wait_seconds: float
    """How long the longest-waiting request has waited; 0 if none waits."""
    frozen: int = 0
    distrusted_evictions: tuple[Eviction, ...] = ()
    """Evictions after which its output differed, and which it does not use any more."""

    @property
    def on_gpu(self) -> bool:
        """Whether it holds the memory of an awake model."""
        return isinstance(self.state, ON_GPU)

    @property
    def failure(self) -> str | None:
        """Why it failed, if it has."""
        return self.state.reason if isinstance(self.state, Failed | Stuck) else None


@dataclass(frozen=True, slots=True)
class Status:
    """Everything as the operator sees it."""

    active_model: str | None
    """The model on its way in, else the one woken last."""
    switching: tuple[str, str] | None
    """From which model to which a switch is under way; the first is empty when nothing has to leave."""
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
    """What the operator sees and does. Commands wait for their end; a caller that leaves stops nothing."""

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
        return Status(
            self._scheduler.active_model(),
            self._scheduler.switching(),
            self._scheduler.mode,
            tuple(self.model_status(name) for name in self._engines),
        )

    def model_status(self, name: str) -> ModelStatus:
        """One model; raises ModelNotFound."""
        self._check(name)
        record = self._scheduler.model(name)
        return ModelStatus(
            name,
            in_flight=len(record.in_flight),
            queue_depth=len(record.queue),
            state=record.state,
            eviction=record.eviction,
            pid=self._engines[name].pid,
            oldest_wait_seconds=self.now() - record.head_since if record.head_since is not None else 0.0,
            frozen=len(record.frozen),
            distrusted_evictions=tuple(sorted(record.distrusted_evictions, key=str)),
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
        state = self._scheduler.state(name)
        is_in_image = isinstance(state, Asleep) and state.eviction.process is Process.CHECKPOINT
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
