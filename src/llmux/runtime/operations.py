"""The operator's view and commands, as plain values: what the control API renders and calls."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmux.core.events import EvictionChanged, ModeChanged, SleepRequested, SwitchRequested, Unpinned, WakeRequested
from llmux.core.eviction import Eviction, Process
from llmux.core.forecast import Forecast
from llmux.core.identifiers import GpuId
from llmux.core.model import Model, Transition
from llmux.core.names import Register, own_names
from llmux.core.need import Need
from llmux.core.scheduler import Scheduler
from llmux.core.states import ON_GPU, Asleep, Failed, Mode, State, Stuck, Waking
from llmux.core.waiting import WaitReason
from llmux.errors import EvictionRefused, ModelNotFound
from llmux.observability.metrics import Stalls, Streams
from llmux.runtime.controller import Controller
from llmux.runtime.forecasts import Forecasts

_NO_STALLS = Stalls()


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """The state of one model."""

    name: str
    in_flight: int
    queue_depth: int
    state: State
    eviction: Eviction
    pid: int | None
    """The engine's root process."""
    oldest_wait_seconds: float
    """Age of the oldest waiting request; 0 if none waits."""
    frozen: int = 0
    distrusted_evictions: tuple[Eviction, ...] = ()
    """Evictions after which its output differed from its output after the start; they are not used any more."""
    address: str | None = None
    """Where the engine listens; None if none runs."""
    waking_seconds: float | None = None
    """How long it has been on its way onto the GPU; None if it is not."""
    leaves_in_seconds: float | None = None
    """When it leaves the GPU if no request comes; None if it stays, is in use, or is not there."""
    stalls: int = 0
    """How often its engine hung and was killed."""
    streams_on_time: int = 0
    streams_late: int = 0
    """Of its streamed answers that have ended, of either class: how many were on time throughout, and the others."""
    last_stall: str | None = None
    """What was seen of the engine that hung last."""
    is_kept: bool = False
    """Whether it stays on the GPU while it is there, others beside it: by its pin."""
    uses_gpu: bool = True
    gpu_mib: Mapping[str, int] = field(default_factory=dict)
    """What it holds of each GPU, by its name; empty where models are not placed by memory."""
    host_mib: int | None = None
    """What it holds of host memory asleep, or will when it has left; None if none, or not known."""
    need: Need | None = None
    """What it needs of that of its GPUs of which it needs most; None where models are not placed by memory."""
    images: Mapping[str, object] | None = None
    """Its images here and in the object store, for people; None without images."""

    @property
    def on_gpu(self) -> bool:
        """Whether it holds GPU memory as an awake model does, which it also does while it drains or wakes."""
        return self.uses_gpu and isinstance(self.state, ON_GPU)

    @property
    def failure(self) -> str | None:
        """Why its engine failed, or could not be brought off the GPU; None if neither."""
        return str(self.state.reason) if isinstance(self.state, Failed | Stuck) else None


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """One GPU: its memory, and what no model holds of it."""

    name: str
    total_mib: int
    free_mib: int


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the server and of all models."""

    active_model: str | None
    """The model that is being switched to, else the one that was woken last."""
    switching: tuple[str, str] | None
    """The models that leave and come in the switch under way. The first is empty if none has to leave."""
    mode: Mode
    models: tuple[ModelStatus, ...]
    gpus: tuple[GpuStatus, ...] = ()
    """Empty where models are not placed by memory."""
    waits: Mapping[str, WaitReason] = field(default_factory=dict)
    """By model with waiting requests: what they wait for."""
    prefetch: Mapping[str, object] | None = None
    """What is being read ahead."""
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)
    """By model with waiting requests, when the next one will probably be admitted, where anybody can tell."""
    overload_seconds: float | None = None
    """For how long more has been asked of the GPUs than they can do; None if it is not."""
    offered_load: float | None = None
    """What is asked of the GPUs, as a multiple of what they can do; None before enough was seen."""

    @property
    def resident(self) -> tuple[str, ...]:
        """The models that are on the GPU."""
        return tuple(model.name for model in self.models if model.on_gpu)


class Engine(Protocol):
    """What operations need of an engine."""

    @property
    def pid(self) -> int | None:
        """Its root process."""

    @property
    def address(self) -> str | None:
        """Where it listens, for people; None if none runs."""

    @property
    def output_tail(self) -> tuple[str, ...]:
        """Its last lines of output, oldest first."""

    def why_not(self, eviction: Eviction) -> str | None:
        """Why it cannot leave the GPU by an eviction; None if it can."""

    async def delete_images(self) -> None:
        """Delete the images that it could be restored from, if there are any."""


class Operations:
    """Commands return when they have ended. Cancelling the caller does not cancel the command: it is the server's."""

    def __init__(
        self,
        scheduler: Scheduler,
        controller: Controller,
        engines: Mapping[str, Engine],
        *,
        has_images: bool = False,
        names: Register | None = None,
        stalls: Mapping[str, Stalls] | None = None,
        streams: Mapping[str, Streams] | None = None,
        describe_images: Callable[[str], Mapping[str, object] | None] = lambda model: None,
        describe_prefetch: Callable[[], Mapping[str, object] | None] = lambda: None,
        need_of: Callable[[str, GpuId], Need] | None = None,
        overload_seconds: Callable[[], float | None] = lambda: None,
    ) -> None:
        """``has_images`` says whether engines can be dumped into images. Models can be called by any of ``names``.

        ``stalls`` are the watch's and ``streams`` the metrics', by model. ``describe_images`` tells about a model's
        images, ``describe_prefetch`` about what is being read ahead. ``need_of``: what a model needs of a GPU, where
        models are placed by memory. ``overload_seconds``: for how long more has been asked than can be done.
        """
        self.names = own_names(engines) if names is None else names
        self._stalls = stalls or {}
        self._streams = streams or {}
        self._describe_images = describe_images
        self._describe_prefetch = describe_prefetch
        self._need_of = need_of
        self._overload_seconds = overload_seconds
        self._has_images = has_images
        self._scheduler = scheduler
        self._forecasts = Forecasts(scheduler)
        self._controller = controller
        self._engines = engines

    def now(self) -> float:
        """The time now, on the clock of a history's times."""
        return self._controller.now()

    def status(self) -> Status:
        """The state now."""
        return Status(
            self._scheduler.active_model(),
            self._scheduler.switching(),
            self._scheduler.mode,
            tuple(self.model_status(name) for name in self._engines),
            self._gpus(),
            self._scheduler.wait_reasons(self.now()),
            self._describe_prefetch(),
            self._forecasts.of_heads(self.now()),
            self._overload_seconds(),
            self._forecasts.offered_load(self.now()),
        )

    def _gpus(self) -> tuple[GpuStatus, ...]:
        if not self._scheduler.places_by_memory:
            return ()
        return tuple(GpuStatus(gpu.uuid, *sizes) for gpu, sizes in self._scheduler.gpu_memory().items())

    def model_status(self, name: str) -> ModelStatus:
        """The state of one model. Raises ModelNotFound."""
        name = self._model(name)
        record = self._scheduler.model(name)
        engine = self._engines[name]
        stalls = self._stalls.get(name, _NO_STALLS)
        leaves_at = self._scheduler.leaves_at(name)
        streams = self._streams.get(name)
        return ModelStatus(
            name,
            in_flight=len(record.in_flight),
            queue_depth=len(record.queue),
            state=record.state,
            eviction=record.eviction,
            pid=engine.pid,
            oldest_wait_seconds=self.now() - record.head_since if record.head_since is not None else 0.0,
            frozen=len(record.frozen),
            distrusted_evictions=tuple(sorted(record.distrusted_evictions, key=str)),
            address=engine.address,
            waking_seconds=self.now() - record.state.since if isinstance(record.state, Waking) else None,
            leaves_in_seconds=None if leaves_at == math.inf else max(leaves_at - self.now(), 0.0),
            stalls=stalls.count,
            last_stall=stalls.last,
            streams_on_time=0 if streams is None else streams.on_time.total(),
            streams_late=0 if streams is None else streams.late.total(),
            is_kept=record.kept,
            uses_gpu=record.spec.uses_gpu,
            gpu_mib={gpu.uuid: mib for gpu, mib in record.held.items()} if self._scheduler.places_by_memory else {},
            host_mib=record.sleep.held_mib or None,
            need=self._need(record),
            images=self._describe_images(name),
        )

    def _need(self, record: Model) -> Need | None:
        if self._need_of is None:
            return None
        needs = [self._need_of(record.name, gpu) for gpu in record.awake]
        return max(needs, key=lambda need: need.mib, default=None)

    def history(self, name: str) -> Sequence[Transition]:
        """A model's latest transitions, oldest first. Raises ModelNotFound."""
        name = self._model(name)
        return self._scheduler.history(name)

    def output_tail(self, name: str) -> tuple[str, ...]:
        """The last lines of output of a model's engine, oldest first. Raises ModelNotFound."""
        name = self._model(name)
        return self._engines[name].output_tail

    async def switch(self, name: str) -> None:
        """Bring a model onto the GPU. In manual mode the pin moves to it. Raises ModelNotFound, CommandFailed."""
        name = self._model(name)
        await self._controller.command(lambda number: SwitchRequested(number, name))

    async def pin(self, name: str) -> None:
        """Bring a model onto the GPU and serve only it. A failure leaves the mode as it was. Raises as ``switch``."""
        name = self._model(name)
        await self._controller.command(lambda number: SwitchRequested(number, name, pin=True))

    async def keep(self, name: str) -> None:
        """Bring a model onto the GPU and have it stay there, others beside it. Raises as ``switch``."""
        name = self._model(name)
        await self._controller.command(lambda number: WakeRequested(number, name, keep=True))

    def unpin(self) -> None:
        """Remove every pin, those of the configuration too until llmux ends, and let requests switch models."""
        self._controller.feed(Unpinned())

    async def wake(self, name: str) -> None:
        """Bring a model onto the GPU. Raises as ``switch``."""
        name = self._model(name)
        await self._controller.command(lambda number: WakeRequested(number, name))

    async def sleep(self, name: str, eviction: Eviction | None = None) -> None:
        """Take a model off the GPU once its requests have ended. Raises as ``switch``, and EvictionRefused.

        Stopping a model that is in an image deletes its images, so that its next start is a cold one.
        """
        name = self._model(name)
        if eviction is not None:
            self._check_eviction(name, eviction)
        state = self._scheduler.state(name)
        is_in_image = isinstance(state, Asleep) and state.eviction.process is Process.CHECKPOINT
        await self._controller.command(lambda number: SleepRequested(number, name, eviction))
        if is_in_image and (eviction or self._scheduler.model(name).eviction).process is Process.STOP:
            await self._engines[name].delete_images()

    def set_mode(self, *, manual: bool) -> None:
        """Choose whether only the operator switches models. A pin is removed."""
        self._controller.feed(ModeChanged(manual))

    def set_eviction(self, name: str, eviction: Eviction) -> None:
        """Override how a model leaves the GPU, from its next eviction until llmux ends.

        Raises ModelNotFound, EvictionRefused.
        """
        name = self._model(name)
        self._check_eviction(name, eviction)
        self._controller.feed(EvictionChanged(name, eviction))

    def _check_eviction(self, name: str, eviction: Eviction) -> None:
        if reason := self._engines[name].why_not(eviction):
            raise EvictionRefused(reason)
        if eviction.process is Process.CHECKPOINT and not self._has_images:
            raise EvictionRefused(
                f"the eviction '{eviction}' needs the section 'checkpoint' in the configuration, which says where "
                "images are kept; add 'checkpoint: {}' for its defaults and restart llmux"
            )
        users = {model.name: model.spec for model in self._scheduler.models if model.spec.uses_gpu}
        if name in users and len(users) > 1 and not users[name].frees_memory(eviction):
            raise EvictionRefused(
                f"a model with the eviction '{eviction}' never leaves the GPU, and the other models need it; "
                "use offload or discard with keep_running, or any with stop"
            )

    def _model(self, name: str) -> str:
        """The key of the model that has this name."""
        found = self.names.get(name)
        if found is None:
            raise ModelNotFound(name, list(self._engines))
        return found.model
