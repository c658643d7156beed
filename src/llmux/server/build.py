"""Builds parts from settings: the scheduler and its policy, then what each engine needs, then checkpoints."""

import base64
import math
import mimetypes
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import assert_never

from llmux.access import Upstream
from llmux.config import preloading
from llmux.config.groups import groups_of
from llmux.config.model import ModelSettings, Pin
from llmux.config.placement import THIS_HOST, declared_gpus, leaves_sharing_open, placements
from llmux.config.policy import PolicySettings, PolicyType
from llmux.config.settings import (
    CanaryMode,
    CheckpointSettings,
    PrefetchedModels,
    Settings,
)
from llmux.core.eviction import Drain, Eviction, Process, Weights
from llmux.core.identifiers import ALL_OF_IT, EVERY_GPU, VISIBLE_GPUS, GpuId
from llmux.core.need import SeenNeed
from llmux.core.policies.adaptive import Adaptive
from llmux.core.policies.base import Policy
from llmux.core.policies.cost_aware import CostAware
from llmux.core.policies.fifo import Fifo
from llmux.core.policies.time_slice import TimeSlice
from llmux.core.scheduler import Scheduler
from llmux.core.settings import Limits, ModelSpec
from llmux.engines.base import LOOPBACK, Engine
from llmux.engines.questions import CanaryExtras
from llmux.engines.urls import ServerUrl, parse_url
from llmux.errors import ConfigError, GpusUnreadable, Problem
from llmux.gpus.cuda import CudaLimits
from llmux.gpus.cuda_choice import ChosenCuda
from llmux.gpus.cuda_driver import CudaDriver
from llmux.gpus.cuda_program import CudaProgram
from llmux.gpus.foreign import ForeignUses
from llmux.gpus.hook import FindGpus, load_gpu_hook
from llmux.gpus.memory import GpuHeadroom, GpuReader, StartNeed
from llmux.gpus.nvml import NvmlReader, gpu_models, usable_memory
from llmux.gpus.remembered import NeedStore, identity_of, key_of
from llmux.hosts.local import choose_ports, find_descendants
from llmux.instances.addresses import upstream_of
from llmux.instances.engine_spec import EngineSpec
from llmux.instances.leased_program import LeasedProgram
from llmux.observability.access_log import read_demands
from llmux.redaction import Redactor, secrets_in
from llmux.runtime.controller import Spawn
from llmux.runtime.gpu_leases import GpuLeases, LeaseRequest
from llmux.runtime.prefetch import FileSource, Prefetcher, PrefetchLimits
from llmux.server.needs import Needs

CANARY_EVERY = {CanaryMode.OFF: None, CanaryMode.SAMPLED: 10, CanaryMode.ALWAYS: 1}
"""Every how many wakes the canary is checked; None: never."""
LEAST_FREE_SHARE = 0.8
"""Of a GPU that a GPU lease wants all of: drivers, desktops and sleeping engines always have some of it."""


def build_scheduler(
    settings: Settings,
    own_policy: Policy | None = None,
    gpus: Mapping[GpuId, int] | None = None,
    seen: Mapping[str, SeenNeed] | None = None,
) -> Scheduler:
    """The scheduler for the configured models. Raises ConfigError.

    ``own_policy`` replaces the configured one, for comparing policies in virtual time. ``gpus``: what ``find_gpus``
    finds, and found by it if it is not given. ``seen``: by model, what engines were seen to hold of them.
    """
    gpus, seen = find_gpus(settings) if gpus is None else gpus, seen or {}
    policy = settings.policy
    specs = [
        ModelSpec(
            name,
            settings.eviction_of(name),
            settings.max_in_flight_of(name),
            settings.drain_of(name),
            begins_asleep=_image_eviction(settings, name),
            weight=settings.models[name].weight,
            max_wait_seconds=settings.models[name].max_wait_seconds,
            refuse_after=policy.refuse_after(settings.models[name]),
            idle_seconds=settings.idle_seconds_of(name),
            ladder=settings.ladder_of(name),
            placements=placements(settings, name, gpus, seen.get(name)),
            keep=settings.models[name].pin is Pin.KEEP,
        )
        for name in settings.models
    ]
    limits = Limits(
        request_timeout_seconds=policy.request_timeout_seconds,
        request_timeout_covers_starts="request_timeout_seconds" in policy.model_fields_set,
        min_active_seconds=policy.effective_min_active_seconds,
        max_wait_seconds=policy.max_wait_seconds,
        drain_timeout_seconds=settings.drain_timeout_seconds,
        host_memory_max_mib=settings.host_memory_max_mib,
        sleep_deeper_after_seconds=policy.sleep_deeper_after_seconds or math.inf,
        queue_limit_requests=settings.queue_limit_requests,
        queue_limit_bytes=settings.queue_limit_bytes,
    )
    return Scheduler(specs, own_policy or build_policy(policy), limits, gpus, groups_of(settings))


def decide_sharing(settings: Settings) -> Settings:
    """The same settings; where they leave it to the machine whether models share GPUs, with ``share_gpus`` as it is.

    Raises GpuHookUnusable.
    """
    if not leaves_sharing_open(settings):
        return settings
    try:
        can_share = bool(_read_gpus())
    except GpusUnreadable:
        can_share = False
    return settings.model_copy(update={"share_gpus": can_share})


def _read_gpus() -> Mapping[str, int]:
    """What engines can have of each GPU, in MiB, as CUDA_VISIBLE_DEVICES names it; raises GpusUnreadable."""
    gpu_hook = load_gpu_hook()
    if gpu_hook is None:
        return usable_memory()
    found = gpu_hook((), os.environ)
    sizes = [] if found is None else [gpu.total_mib for gpu in found[0].read_memory()]
    visible = os.environ.get(VISIBLE_GPUS, "")
    names = visible.split(",") if visible else map(str, range(len(sizes)))
    return dict(zip(names, sizes, strict=False))


def find_gpus(settings: Settings) -> Mapping[GpuId, int]:
    """The memory of each GPU in MiB; of all as one where models are not placed by memory.

    Raises ConfigError if they are neither declared nor readable.
    """
    if not settings.places_by_memory:
        return ALL_OF_IT
    if settings.gpus:
        return declared_gpus(settings)
    try:
        found = _read_gpus()
    except GpusUnreadable as error:
        message, remedy = f"the GPUs cannot be read: {error}", "declare them, as gpus: [{memory: 24GiB}]"
        raise ConfigError([Problem("gpus", message, remedy)]) from error
    if not found:
        raise ConfigError([Problem("gpus", "this machine has no GPU", "declare one, as gpus: [{memory: 24GiB}]")])
    return {GpuId(THIS_HOST, device): mib for device, mib in found.items()}


def preload_groups(settings: Settings, scheduler: Scheduler) -> Sequence[Sequence[str]]:
    """The models to preload, those together that are started at the same time. Raises ConfigError if they are too many.

    Only here are the GPUs known where they were read and not declared.
    """
    places = {name: scheduler.model(name).spec.placements for name in settings.preload}
    return preloading.groups(places, {gpu: total_mib for gpu, (total_mib, _) in scheduler.gpu_memory().items()})


def build_needs(
    settings: Settings, specs: Mapping[str, EngineSpec], gpus: Mapping[GpuId, int], spawn: Spawn
) -> Needs | None:
    """What the models need of the GPUs; None where they are not placed by memory. Reads the disk."""
    if not settings.places_by_memory:
        return None
    return Needs(settings, specs, gpus, _need_store(settings), gpu_models(), spawn)


def remembered_needs(settings: Settings) -> Mapping[str, SeenNeed]:
    """What engines were seen to hold on GPUs like these, by a llmux that served the same models. Reads the disk.

    Empty where models are not placed by memory. Raises ConfigError.
    """
    if not settings.places_by_memory:
        return {}
    store, gpus = _need_store(settings), identity_of(gpu_models(), find_gpus(settings))
    specs = engine_specs(settings).items()
    return {name: store.read(key_of(spec.fingerprint(), gpus)) for name, spec in specs if spec.engine.uses_gpu}


def _need_store(settings: Settings) -> NeedStore:
    return NeedStore(settings.cache_directory / "needs")


def _image_eviction(settings: Settings, name: str) -> Eviction | None:
    """The eviction to assume for a model with a ``checkpoint_path``; None for others, which begin cold.

    Only an estimate for the scheduler: when the image is restored, its manifest says how the engine really left.
    """
    if settings.models[name].checkpoint_path is None:
        return None
    configured = settings.eviction_of(name)
    return configured if configured.process is Process.CHECKPOINT else Eviction(Weights.DISCARD, Process.CHECKPOINT)


def build_policy(settings: PolicySettings) -> Policy:
    """The configured switch policy."""
    match settings.policy_type:
        case PolicyType.FIFO:
            return Fifo()
        case PolicyType.COST_AWARE:
            return CostAware(settings.coalesce_window_seconds, settings.amortization_factor)
        case PolicyType.TIME_SLICE:
            return TimeSlice(settings.tick_interval_seconds)
        case PolicyType.ADAPTIVE:
            return Adaptive()
        case _:
            assert_never(settings.policy_type)


def engine_specs(settings: Settings) -> dict[str, EngineSpec]:
    """What each engine is started with.

    A model without a port gets a free one, and keeps it until llmux ends: for engines that cannot use a Unix socket.
    """
    fixed = {model.port for model in settings.models.values() if model.port is not None}
    own = {settings.port, settings.metrics_port, settings.admin_port or 0}
    portless = [name for name, model in settings.models.items() if model.port is None]
    chosen = dict(zip(portless, choose_ports(len(portless), fixed | own), strict=True))
    redactor = build_redactor(settings)
    engines = {name: settings.engine_of(name) for name in settings.models}
    return {
        name: EngineSpec(
            engine=engines[name],
            port=model.port or chosen[name],
            # An engine that may be dumped must be found again where its image says.
            prefers_socket=engines[name].takes_socket and model.port is None and settings.checkpoint is None,
            start_timeout_seconds=settings.start_timeout_seconds,
            stop_timeout_seconds=settings.stop_timeout_seconds,
            checkpointable=settings.checkpoint is not None,
            freezes=settings.drain_of(name) is Drain.FREEZE,
            canary_every=CANARY_EVERY[settings.canary],
            canary_extras=canary_extras(model, engines[name]),
            host_memory_reserve_mib=settings.host_memory_reserve_mib,
            declared_gpu_mib=min((gpu.memory >> 20 for gpu in settings.gpus), default=None),
            cuda_limits=CudaLimits(settings.cuda_lock_timeout_seconds, settings.cuda_suspend_timeout_seconds),
            redactor=redactor,
        )
        for name, model in settings.models.items()
    }


def canary_extras(model: ModelSettings, engine: Engine) -> CanaryExtras:
    """What the model's canary asks beside text. Raises ConfigError if its image cannot be read."""
    image = None
    if model.canary_image is not None:
        try:
            data = model.canary_image.read_bytes()
        except OSError as error:
            problem = Problem("canary_image", f"{model.canary_image} cannot be read: {error.strerror}", "correct it")
            raise ConfigError([problem]) from error
        kind = mimetypes.guess_type(model.canary_image)[0] or "application/octet-stream"
        image = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    adapter = None if model.canary_adapter is None else engine.adapter_in_requests(model.canary_adapter)
    fields = {} if model.canary_adapter is None else engine.added_fields(model.canary_adapter)
    return CanaryExtras(adapter, fields, image, model.canary_tokens_per_second)


def build_upstream(settings: Settings, spec: EngineSpec) -> Upstream:
    """Where the engine of a model is that llmux does not start."""
    url = settings.models[spec.model].url
    parsed = ServerUrl(is_https=False, host=LOOPBACK, port=spec.port) if url is None else parse_url(url)
    return upstream_of(parsed, spec.api_key, is_ours=spec.engine.uses_gpu)


def build_redactor(settings: Settings) -> Redactor:
    """Knows every secret of the configuration and of the environment: an engine inherits all of llmux's variables."""
    secrets = set(secrets_in(os.environ)) | set(settings.secrets())
    return Redactor(secrets)


def build_headroom(settings: Settings, name: str) -> GpuHeadroom:
    """The GPUs that the model's engine sees, read through NVML or by the function that ``LLMUX_GPU_READER`` names.

    Raises GpuHookUnusable.
    """
    engine = settings.engine_of(name)
    environment = os.environ | engine.options.environment
    gpu_hook = load_gpu_hook()
    found = gpu_hook(engine.arguments, environment) if gpu_hook is not None else None
    wait_seconds = settings.memory_wait_seconds
    if gpu_hook is not None and found is not None:
        reader, need = found
        hook = partial(_hooked_reader, gpu_hook, engine, environment)
        return GpuHeadroom(name, reader, need, wait_seconds=wait_seconds, reader_of=hook)
    need = None if engine.start_share is None else StartNeed(share=engine.start_share)
    if engine.options.gpu_memory_mib:
        need = StartNeed(mib=engine.options.gpu_memory_mib)
    return GpuHeadroom(
        name,
        NvmlReader(environment, engine.gpu_count),
        need,
        wait_seconds=wait_seconds,
        reader_of=lambda devices: NvmlReader({VISIBLE_GPUS: ",".join(devices)}),
    )


def build_leased_program(settings: Settings, request: LeaseRequest) -> LeasedProgram:
    """What waits until a GPU lease's memory is free, read as that of an engine's GPUs. Raises GpuHookUnusable."""
    need = StartNeed(share=LEAST_FREE_SHARE) if request.memory_mib is None else StartNeed(mib=request.memory_mib)
    headroom = GpuHeadroom(
        request.command, _reader_of(()), need, wait_seconds=settings.memory_wait_seconds, reader_of=_reader_of
    )
    return LeasedProgram(headroom, settings.stop_timeout_seconds)


def _reader_of(devices: tuple[str, ...]) -> GpuReader:
    """Reads GPUs whatever uses them; without names, all that llmux sees. Raises GpuHookUnusable."""
    environment = {**os.environ, **({VISIBLE_GPUS: ",".join(devices)} if devices else {})}
    gpu_hook = load_gpu_hook()
    found = gpu_hook((), environment) if gpu_hook is not None else None
    return NvmlReader(environment) if found is None else found[0]


def build_foreign_uses(leases: GpuLeases, gpus: Iterable[GpuId]) -> ForeignUses:
    """What tells processes that are not ours from our engines', and from the programs of leases."""
    readers = {gpu: _reader_of(() if gpu == EVERY_GPU else (gpu.uuid,)) for gpu in gpus}

    def own() -> Collection[int]:
        return [process.pid for process in find_descendants(os.getpid())]

    return ForeignUses(readers, leases.is_leased, own)


def _hooked_reader(
    find_gpus: FindGpus, engine: Engine, environment: Mapping[str, str], devices: tuple[str, ...]
) -> GpuReader | None:
    found = find_gpus(engine.arguments, {**environment, VISIBLE_GPUS: ",".join(devices)})
    return None if found is None else found[0]


def build_cuda(settings: Settings) -> ChosenCuda:
    """What suspends the engines' GPU memory; it must be closed."""
    program = CheckpointSettings().cuda_checkpoint_path
    if settings.checkpoint is not None:
        program = settings.checkpoint.cuda_checkpoint_path
    return ChosenCuda(CudaDriver(), CudaProgram(program))


def build_prefetcher(
    settings: Settings, scheduler: Scheduler, sources: Mapping[str, FileSource], now: Callable[[], float]
) -> Prefetcher | None:
    """What reads the files of ``sources``, by model, ahead of their wakes; None where nothing is to be read ahead.

    ``now`` is the scheduler's clock.
    """
    prefetch, access_log = settings.prefetch, settings.access_log
    if prefetch.models is PrefetchedModels.NONE:
        return None
    limits = PrefetchLimits(
        predicts=prefetch.models is PrefetchedModels.PREDICTED,
        bytes_per_second=prefetch.rate_max,
        memory_max_bytes=prefetch.memory_max,
        memory_reserve_mib=settings.host_memory_reserve_mib,
    )
    past = partial(read_demands, access_log) if access_log is not None else tuple
    return Prefetcher(scheduler, sources, limits, now, read_past_demands=past)
