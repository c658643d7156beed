"""Wires all parts of a server together and runs it from its start to the end of its shutdown."""

import asyncio
import gc
import math
import signal
from collections import ChainMap
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog

from llmux.access import Upstream
from llmux.config.draining import drained
from llmux.config.settings import Settings
from llmux.control.model_list import ModelList
from llmux.control.server import ControlServer
from llmux.core.events import DefaultChanged, ShutdownRequested
from llmux.core.eviction import Process
from llmux.core.identifiers import GpuId
from llmux.core.names import Register
from llmux.engines.remote import Remote
from llmux.errors import FailureReason, ListenFailed, LlmuxError
from llmux.gateway.engine_paths import EngineRules
from llmux.gateway.options import GatewayOptions, LocalRoutes
from llmux.gateway.pages import PagePolicy
from llmux.gateway.server import Gateway
from llmux.hosts.local import available_mib, connections_that_fit, total_mib, url_of
from llmux.instances.control_calls import ControlSession, EngineEndpoints
from llmux.instances.engine_spec import EngineSpec
from llmux.instances.hooked import HookedInstance
from llmux.instances.instance import Instance
from llmux.instances.late_imports import until_imported
from llmux.instances.remote import RemoteInstance
from llmux.instances.socketless import SocketlessPrograms
from llmux.observability.access_log import AccessLog
from llmux.observability.background import log_lines_dropped
from llmux.observability.image_metrics import ImageMetrics
from llmux.observability.metrics import LogMetrics, RuntimeMetrics
from llmux.observability.prefetch_metrics import PrefetchMetrics
from llmux.runtime.controller import Controller, GpuUser, ManagedInstance
from llmux.runtime.dispatcher import Dispatcher
from llmux.runtime.gpu_leases import GpuLeases
from llmux.runtime.host_memory_watch import HostMemoryWatch
from llmux.runtime.memory_pressure_watch import MemoryPressureWatch
from llmux.runtime.operations import Operations
from llmux.runtime.prefetch import Prefetcher
from llmux.runtime.stall_watch import StallWatch
from llmux.server.build import (
    build_cuda,
    build_foreign_uses,
    build_headroom,
    build_leased_program,
    build_needs,
    build_prefetcher,
    build_scheduler,
    build_upstream,
    decide_sharing,
    engine_specs,
    find_gpus,
    preload_groups,
)
from llmux.server.preload import Preload
from llmux.server.signals import SignalReceiver
from llmux.server.warmup import WarmUp

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from llmux.checkpoints.checkpointer import Checkpointer
    from llmux.checkpoints.image_transfers import ImageTransfers
    from llmux.instances.checkpoint_store import CheckpointStore
    from llmux.instances.image_budget import ImageBudget

log = structlog.get_logger("llmux")

AnyInstance: TypeAlias = Instance | HookedInstance | RemoteInstance

CLOSE_SECONDS = 5.0
"""How long responses may take to be written after the engines have stopped, when nothing new can be sent."""

GARBAGE_THRESHOLD = 20_000
"""Allocations between two collections of young objects. With Python's default of 700 they take some per cent of the CPU
time of a request, and requests create no reference cycles."""


class Server:
    """All parts of a server, on one event loop. It can be started once; ``close`` must follow."""

    def __init__(
        self,
        settings: Settings,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        session: ControlSession,
    ) -> None:
        """``session`` is for calls to engines, and is to be closed after the server. Raises LlmuxError."""
        self.settings = settings = decide_sharing(settings)
        self._spawn = spawn
        self._session = session
        self._background: list[asyncio.Task[None]] = []
        """Tasks that go on until the server is closed."""
        specs, gpus = engine_specs(settings), find_gpus(settings)
        self._needs = build_needs(settings, specs, gpus, spawn)
        self._scheduler = build_scheduler(settings, gpus=gpus, seen=None if self._needs is None else self._needs.seen)
        self.metrics = RuntimeMetrics({name: settings.targets_of(name) for name in settings.models}, self._scheduler)
        self.controller = Controller(self._scheduler, spawn, self.metrics, needs=self._needs)
        self._endpoints: dict[str, EngineEndpoints] = {}
        self._instances: dict[str, AnyInstance] = {}
        self._checkpointer: Checkpointer | None = None
        self._transfers: ImageTransfers | None = None
        self._images: Mapping[str, CheckpointStore] = {}
        self._budget: ImageBudget | None = None
        if settings.checkpoint is not None:
            self._add_images(gpus)
        self._cuda = build_cuda(settings)
        self._add_instances(specs)
        self.metrics.watch_canaries({name: instance.canary for name, instance in self._instances.items()})
        instances: dict[str, ManagedInstance] = dict(self._instances)
        names = settings.names()
        self._dispatcher = Dispatcher(self._scheduler, self.controller, instances, self.metrics, names)
        self._leases = GpuLeases(self._scheduler, self.controller, partial(build_leased_program, settings))
        gpu_users: ChainMap[str, GpuUser] = ChainMap(dict(self._instances), self._leases.programs)
        self.controller.attach(gpu_users, self._dispatcher, self._leases)
        self._stall_watch = StallWatch(
            self._scheduler,
            self.controller,
            self._instances,
            self._dispatcher.progress_of,
            settings.engine_stall_seconds,
        )
        self.metrics.watch_stalls(self._stall_watch.stalls)
        self._prefetcher = self._build_prefetcher()
        self.operations = self._build_operations(names)
        self._preparation: WarmUp | Preload | None = None
        self._is_started = False
        self._model_list = ModelList(self.operations, self._max_model_length, self._unready_reason)
        self._control = self._build_control()
        self._access_log = None if settings.access_log is None else AccessLog(settings.access_log)
        self.gateway = Gateway(self._dispatcher, self._gateway_options(), spawn)
        self.port = 0

    def _add_images(self, gpus: Mapping[GpuId, int]) -> None:
        # Imported only where images are configured: it takes a thirtieth of a start.
        from llmux.server import images

        changed = asyncio.Event()
        self._checkpointer = images.build_checkpointer(self.settings)
        self._transfers = images.build_transfers(self.settings, self._checkpointer, changed.set)
        self._images = images.build_checkpoint_stores(
            self.settings, self._checkpointer, gpus, self._transfers, changed.set
        )
        self._budget = images.build_image_budget(self.settings, self._images, changed)

    def _build_control(self) -> ControlServer:
        settings = self.settings
        return ControlServer(
            self.operations,
            self._leases,
            self._new_registry,
            settings.admin_key.get_secret_value() if settings.admin_key else None,
            [key.get_secret_value() for key in (*settings.api_keys, *settings.batch_api_keys)],
            PagePolicy(settings.cors_origins, self._own_names()),
        )

    def _build_prefetcher(self) -> Prefetcher | None:
        sources = {name: instance for name, instance in self._instances.items() if isinstance(instance, Instance)}
        prefetcher = build_prefetcher(self.settings, self._scheduler, sources, self.controller.now)
        if prefetcher is not None:
            self.controller.watch(prefetcher)
        return prefetcher

    def _build_operations(self, names: Register) -> Operations:
        return Operations(
            self._scheduler,
            self.controller,
            self._instances,
            has_images=self._checkpointer is not None,
            names=names,
            stalls=self._stall_watch.stalls,
            streams=self.metrics.streams,
            describe_images=self._describe_images,
            describe_prefetch=self._describe_prefetch,
            need_of=None if self._needs is None else self._needs.need_of,
            overload_seconds=lambda: self._dispatcher.overload.seconds,
        )

    def _new_registry(self) -> "CollectorRegistry":
        # Imported when llmux listens, as the control server is.
        from prometheus_client import CollectorRegistry

        from llmux.gateway.metrics import HttpMetrics

        registry = CollectorRegistry()
        registry.register(self.metrics)
        registry.register(LogMetrics(self._dropped_lines()))
        registry.register(HttpMetrics(self.gateway.statistics))
        if (transfers := self._transfers) is not None:
            registry.register(ImageMetrics(lambda: transfers.models))
        if self._prefetcher is not None:
            registry.register(PrefetchMetrics(self._prefetcher.counts))
        return registry

    def _add_instances(self, specs: Mapping[str, EngineSpec]) -> None:
        socketless = SocketlessPrograms()
        for name, spec in specs.items():
            if spec.engine.runs_as_process:
                self._endpoints[name] = EngineEndpoints(
                    self._session,
                    spec.port,
                    spec.api_key,
                    redact=spec.redactor.redact,
                    keep_alive_seconds=spec.engine.keep_alive_seconds,
                    removed_headers=spec.engine.rules.removed_headers,
                )
                self._instances[name] = Instance(
                    spec,
                    self._endpoints[name],
                    self._exit_callback(name),
                    store=self._images.get(name),
                    headroom=build_headroom(self.settings, name),
                    on_leaving=self._close_connections,
                    socketless=socketless,
                    cuda=self._cuda,
                    measures_memory=self.settings.places_by_memory,
                )
            else:
                upstream = build_upstream(self.settings, spec)
                self._endpoints[name] = EngineEndpoints.of(self._session, upstream, redact=spec.redactor.redact)
                self._instances[name] = self._without_process(spec, self._endpoints[name])

    def _without_process(self, spec: EngineSpec, endpoints: EngineEndpoints) -> AnyInstance:
        if isinstance(spec.engine, Remote):
            return RemoteInstance(spec, spec.engine, endpoints, on_leaving=self._forget_upstream)
        headroom = build_headroom(self.settings, spec.model)
        return HookedInstance(spec, endpoints, headroom=headroom, on_leaving=self._forget_upstream)

    async def start(self) -> None:
        """Listen, and then do with the models what is configured. Raises LlmuxError."""
        settings = self.settings
        preload = Preload(self.operations, preload_groups(settings, self._scheduler))
        if self._checkpointer is not None and settings.needs_criu:
            await self._checkpointer.check()
            for images in self._images.values():
                await images.delete_frozen_leftover()
        if settings.needs_cuda_suspend:
            await self._cuda.check()
        # Before any engine is started: what is left of one model may hold the memory that another is given.
        own = [instance for instance in self._instances.values() if isinstance(instance, Instance)]
        await asyncio.gather(*(instance.clear_leftovers() for instance in own))
        hooked = [instance for instance in self._instances.values() if isinstance(instance, HookedInstance)]
        await asyncio.gather(*(instance.begin() for instance in hooked))
        if settings.engine_stall_seconds:
            self._background.append(self._spawn(self._stall_watch.run()))
        self._watch_memory()
        # Before any engine is started, so that a port that is taken is found at once, and probes are answered.
        if settings.metrics_port:
            await self._control.listen_metrics(settings.host, settings.metrics_port)
        if settings.admin_port is not None:
            await self._control.listen_admin(settings.host, settings.admin_port)
        self.port = await self._listen(settings.host, settings.port)
        if self._scheduler.is_stopping:
            # SIGTERM came meanwhile.
            self.gateway.stop_accepting()
            return
        loading = self._spawn(self._load_libraries())
        self._background.append(loading)
        if self._budget is not None:
            self._background.append(self._spawn(self._budget.run()))
        if self._prefetcher is not None:
            self._background.append(self._spawn(self._prefetcher.run()))
        if self._transfers is not None:
            self._background += [self._spawn(self._transfers.run()), self._spawn(self._fetch_images(own))]
        for one in drained(settings):
            log.info(
                "requests are waited for at a switch", models=one.models, why=one.why, cost=one.cost, remedy=one.remedy
            )
        log.info("listening", url=url_of(settings.host, self.port), host=settings.host, models=len(settings.models))
        await self._prepare_models(preload)
        await loading
        self._is_started = True

    async def _load_libraries(self) -> None:
        """Import what neither listening nor a request to a model needs, so that nobody waits for it later."""
        await until_imported(self._control.load)
        await until_imported(self._session.load)
        _collect_garbage_rarely()

    async def _prepare_models(self, preload: Preload) -> None:
        """Whatever is to be done with them before the server is ready. Raises WarmupFailed, PreloadFailed."""
        if self.settings.warmup:
            await self._warm_up()
        if self.settings.preload:
            self._preparation = preload
            await preload.run()
        if self.settings.default_model is not None:
            # Not before: it would come between two models that are warmed up.
            self.controller.feed(DefaultChanged(self.settings.default_model))

    async def _warm_up(self) -> None:
        # A model with an image does not need it: its first start is a restore anyway.
        # A remote server needs none: it is not ours to warm. Nor does one that is about to stay.
        cold = [
            name
            for name, model in self.settings.models.items()
            if model.checkpoint_path is None
            and self._instances[name].spec.engine.uses_gpu
            and name not in self.settings.preload
        ]
        asked = {name: self._endpoints[name] for name in cold if self._instances[name].spec.engine.canary is not None}
        served = {name: self._instances[name].spec.engine.served_names[0] for name in cold}
        warm_up = WarmUp(self.operations, self._dispatcher, asked, served, cold)
        if cold:
            self._preparation = warm_up
            await warm_up.run()
        log.info("warm-up is over", models=len(cold))

    def _watch_memory(self) -> None:
        settings = self.settings
        if 0 < settings.host_memory_reserve_mib < total_mib():
            # What the machine could never have is no reason to stop engines.
            reserve_mib = settings.host_memory_reserve_mib
            watch = HostMemoryWatch(self._scheduler, self.controller, reserve_mib, available_mib)
            self._background.append(self._spawn(watch.run()))
        if settings.gpu_memory_reserve is not None:
            foreign = build_foreign_uses(self._leases, self._scheduler.gpu_memory())
            reserve_mib = settings.gpu_memory_reserve >> 20
            on_begin = self.metrics.memory_pressure_began
            pressure = MemoryPressureWatch(self._scheduler, self.controller, reserve_mib, foreign.read, on_begin)
            self._background.append(self._spawn(pressure.run()))

    def _describe_images(self, model: str) -> Mapping[str, object] | None:
        return self._images[model].describe() if model in self._images else None

    def _describe_prefetch(self) -> Mapping[str, object] | None:
        return None if self._prefetcher is None else self._prefetcher.describe()

    async def _fetch_images(self, instances: Sequence[Instance]) -> None:
        """One after the other: a wake that needs its own at once fetches it itself."""
        for instance in instances:
            await instance.fetch_image()

    async def _listen(self, host: str, port: int) -> int:
        try:
            return await self.gateway.listen(host, port)
        except OSError as error:
            raise ListenFailed("port", host, port, error) from error

    def begin_shutdown(self, drain_seconds: float) -> None:
        """Stop accepting requests, give those in flight ``drain_seconds``, then stop all engines.

        A second call shortens the first one's time.
        """
        self.gateway.stop_accepting()
        self.controller.feed(ShutdownRequested(drain_seconds))

    async def close(self) -> None:
        """Close all listeners and connections. The engines must have been stopped."""
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        if self._transfers is not None:
            self._transfers.close()
        await self.gateway.close(CLOSE_SECONDS)
        if self._access_log is not None:
            await asyncio.to_thread(self._access_log.close)
        await self._control.close()
        for instance in self._instances.values():
            if isinstance(instance, HookedInstance):
                instance.close()
        await self._cuda.close()

    def _forget_upstream(self, upstream: Upstream) -> None:
        self.gateway.forget_upstream(upstream)

    def _close_connections(self, upstream: Upstream, process: Process) -> None:
        """Before an engine is stopped, or dumped."""
        if process is Process.STOP:
            self.gateway.sever_upstream(upstream)
        else:
            self.gateway.forget_upstream(upstream)

    def _unready_reason(self) -> str | None:
        if self._scheduler.is_stopping:
            return "shutting down"
        if self._is_started:
            return None
        return "starting" if self._preparation is None else self._preparation.progress

    def _max_model_length(self, model: str) -> int | None:
        # The engine's word counts: it may take less than its arguments say, and without them what its weights allow.
        instance = self._instances[model]
        told = instance.abilities.max_model_length if isinstance(instance, Instance) else None
        return told or instance.spec.engine.max_model_length

    def _exit_callback(self, model: str) -> Callable[[FailureReason], None]:
        return lambda reason: self.controller.engine_exited(model, reason)

    def _own_names(self) -> tuple[str, ...]:
        return (self.settings.host, *self.settings.allowed_hosts)

    def _dropped_lines(self) -> dict[str, Callable[[], int]]:
        dropped: dict[str, Callable[[], int]] = {"stderr": log_lines_dropped}
        if (access_log := self._access_log) is not None:
            dropped["access_log"] = lambda: access_log.lines_dropped
        return dropped

    def _gateway_options(self) -> GatewayOptions:
        return GatewayOptions(
            local_routes=LocalRoutes(
                ready=self._model_list.ready, models=self._model_list.models, model=self._model_list.model
            ),
            control_protocol_factory=self._control.protocol_factory,
            engines={
                name: EngineRules(instance.spec.engine.kind, instance.spec.engine.rules)
                for name, instance in self._instances.items()
            },
            inference_paths=self.settings.inference_paths,
            api_keys=frozenset(key.get_secret_value() for key in self.settings.api_keys),
            batch_api_keys=frozenset(key.get_secret_value() for key in self.settings.batch_api_keys),
            cors_origins=self.settings.cors_origins,
            allowed_hosts=self._own_names(),
            max_body_bytes=self.settings.max_body_bytes,
            max_receiving_bytes=self.settings.max_receiving_bytes,
            spool_bytes=self.settings.spool_bytes,
            max_connections=connections_that_fit(),
            keepalive_seconds=self.settings.keepalive_seconds,
            wait_comments_after_seconds=self.settings.wait_comments_after_seconds or math.inf,
            access_log=self._access_log,
        )


async def serve(
    settings: Settings,
    *,
    on_ready: Callable[[Server], None] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or SIGQUIT, then stop everything. Raises LlmuxError if the start fails.

    An unexpected error in the scheduler stops everything too, and is raised as an exception group.
    """
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        session = await stack.enter_async_context(ControlSession())
        server = Server(settings, tasks.create_task, session)
        stack.push_async_callback(server.close)
        stopper = _Stopper(server)
        stack.callback(SignalReceiver(stopper.on_signal).close)
        await _run(server, stopper, on_ready)


async def _run(server: Server, stopper: "_Stopper", on_ready: Callable[[Server], None] | None) -> None:
    try:
        await server.start()
        if on_ready is not None:
            on_ready(server)
    except LlmuxError:
        if not stopper.was_signalled:
            stopper.stop(0.0)
        await server.controller.wait_stopped()
        if stopper.was_signalled:
            return
        raise
    await server.controller.wait_stopped()


def _collect_garbage_rarely() -> None:
    # Objects made until now live as long as the server; frozen, they are not traversed by every collection. The garbage
    # among them stays: to look for it takes a tenth of the time of a start, and finds some hundred KiB.
    gc.freeze()
    gc.enable()
    gc.set_threshold(GARBAGE_THRESHOLD)


class _Stopper:
    """Turns signals into a shutdown: the first one drains, further ones end the drain."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.was_signalled = False

    def on_signal(self, received: signal.Signals) -> None:
        if self.was_signalled:
            log.warning("stopping at once", signal=received.name)
            self.stop(0.0)
            return
        self.was_signalled = True
        seconds = self._server.settings.shutdown_timeout_seconds
        log.info("stopping", signal=received.name, drain_seconds=seconds)
        self.stop(seconds)

    def stop(self, drain_seconds: float) -> None:
        self._server.begin_shutdown(drain_seconds)
