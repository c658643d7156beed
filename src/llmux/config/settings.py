"""The whole configuration: the file's top level, its section ``checkpoint``, and the questions that span sections."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import ByteSize, Field

from llmux.config.engines import EngineDescription, built_in
from llmux.config.fields import (
    Bytes,
    Count,
    Directory,
    Flag,
    PathText,
    Port,
    PositiveSeconds,
    Seconds,
    Secret,
    Section,
    Size,
    Text,
    Word,
)
from llmux.config.model import ModelSettings
from llmux.config.policy import PolicySettings
from llmux.config.problems import dotted
from llmux.core.eviction import STOP, Drain, Eviction, Process, Weights
from llmux.core.names import ModelName, NameKind, Register, register
from llmux.core.target import Target, Targets
from llmux.engines.arguments import KEY_FLAGS, every_value
from llmux.engines.base import Engine, EngineOptions
from llmux.engines.calls import ControlTimeouts, RankCalls
from llmux.engines.described import kind_of
from llmux.engines.registry import DEFAULT_KIND, KINDS, described_kinds
from llmux.redaction import secrets_in


class LogLevel(StrEnum):
    """How much llmux logs."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class CanaryMode(StrEnum):
    """After which wakes a model's output is compared with its output after the start."""

    OFF = "off"
    SAMPLED = "sampled"
    ALWAYS = "always"


class Compression(StrEnum):
    """Whether images are compressed in the object store."""

    AUTO = "auto"
    NONE = "none"
    ZSTD = "zstd"


class PrefetchedModels(StrEnum):
    """The models whose files are read ahead."""

    NONE = "none"
    QUEUED = "queued"
    PREDICTED = "predicted"


class ObjectStoreSettings(Section):
    """Where images are copied to: an S3 bucket by 0.7.7's keys, or the URL of any store that obstore takes."""

    url: Text | None = Field(
        default=None,
        description="URL of the store: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, or "
        "file:///DIRECTORY. Keys come from options, or from the usual variables of the environment. Instead of "
        "endpoint, bucket, access_key, secret_key and region.",
    )
    options: dict[str, Word] = Field(
        default_factory=dict,
        description="With url: obstore's options for that kind of store, as endpoint, region or access_key_id. ${NAME} "
        "takes a value from the environment.",
    )
    endpoint: Text | None = Field(
        default=None, description="URL of the S3 service, http or https; requests are in path style."
    )
    bucket: Text | None = Field(default=None, description="Name of the bucket.")
    access_key: Secret | None = Field(default=None, description="Access key. ${NAME} takes it from the environment.")
    secret_key: Secret | None = Field(default=None, description="Secret key. ${NAME} takes it from the environment.")
    region: Text = Field(default="us-east-1", description="Region that requests are signed for.")
    compression: Compression = Field(
        default=Compression.AUTO,
        description="Whether images are compressed on their way there: none, zstd, or auto, which is none for "
        "directories and zstd for all else.",
    )
    download_timeout_seconds: PositiveSeconds = Field(
        default=600.0,
        description="How long the download of an image may take; then the engine is started without it.",
    )


class CheckpointSettings(Section):
    """The section ``checkpoint``: criu, and the directory of its images."""

    criu_path: PathText = Field(default="criu", description="The criu program: a name on PATH, or a path.")
    cuda_plugin_dir: Directory = Field(default=Path("/usr/lib/criu/"), description="Directory of criu's CUDA plugin.")
    images_dir: Directory = Field(
        default=Path("/tmp/llmux-checkpoints"),
        description="Directory of the images; a model's are in images_dir/MODEL/images.",
    )
    cuda_checkpoint_path: PathText = Field(
        default="cuda-checkpoint",
        description="NVIDIA's cuda-checkpoint program: a name on PATH, or a path. Used where the driver's API cannot "
        "be, because the extra 'cuda' is not installed.",
    )
    keep_images: Flag = Field(
        default=True,
        description="Keep an image after it was restored; a later eviction then stops the engine without a new dump.",
    )
    images_budget: Bytes | None = Field(
        default=None,
        description="How much the models' images may take of this machine's disk together, as 20GiB. Above that those "
        "are deleted first that cost the least to have again and have not been used for long; one that holds its "
        "engine is deleted only if it is in the object store. Default: no limit.",
    )
    object_store: ObjectStoreSettings | None = Field(
        default=None,
        description="Object store that images are copied to after a dump and fetched from before a restore, so that "
        "they survive the machine and a fleet shares them. Needs the extra s3.",
    )


class GroupSettings(Section):
    """One entry of ``groups``."""

    models: tuple[Text, ...] = Field(min_length=1, description="The keys of its models; each may be in several groups.")
    exclusive: Flag = Field(default=False, description="At most one of them is on the GPUs at a time.")
    persistent: Flag = Field(
        default=False,
        description="They leave the GPUs for each other, but for no model outside the group; requests for those for "
        "which there is no room beside them are answered with 503.",
    )
    together: Flag = Field(
        default=False,
        description="While one of them serves requests, the others are brought onto the GPUs too, where there is room "
        "beside what is there; they leave for being idle only when all of them are.",
    )


class GpuSettings(Section):
    """One entry of ``gpus``."""

    memory: Bytes = Field(description="How much of its memory the models may hold together, as 24GiB.")
    device: Word | None = Field(
        default=None,
        description="Its number or UUID, as CUDA_VISIBLE_DEVICES has it. Default: its position in the list.",
    )


class PrefetchSettings(Section):
    """The section ``prefetch``: what is read into the page cache before it is needed."""

    models: PrefetchedModels = Field(
        default=PrefetchedModels.QUEUED,
        description="Whose files (weights, images, saved prompts) are read into the page cache before the wake that "
        "needs them: queued, of models for which requests wait; predicted, also of those that will probably be asked "
        "for next, by what followed what and by the time of day; none.",
    )
    rate_max: Bytes = Field(
        default=ByteSize(1 << 30),
        description="How much is read ahead in a second, as 500MB; for predicted models it is a quarter.",
    )
    memory_max: Bytes | None = Field(
        default=None,
        description="How much of the page cache may be taken by what was read ahead and has not been needed yet, as "
        "20GiB. Default: half of the memory that is available. host_memory_reserve_mib stays available in any case.",
    )


def default_cache_directory() -> Path:
    """As the XDG Base Directory Specification says."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llmux"


class Settings(Section):
    """The configuration file, with a default for every key that is optional."""

    models: dict[str, ModelSettings] = Field(
        min_length=1,
        description="The models, by the name that clients ask for. Warm-up and lists keep their order.",
    )
    engines: dict[str, EngineDescription] = Field(
        default_factory=dict,
        description="Own kinds of engines, by the name that models give as engine. One with the name of a description "
        "that llmux comes with takes its place.",
    )
    policy: PolicySettings = Field(default=PolicySettings(), description="When to switch between models.")
    gpus: tuple[GpuSettings, ...] = Field(
        default=(),
        description="The GPUs on which models are placed by their memory, where they cannot be read or not all "
        "should be used. Default: those that the driver names.",
    )
    share_gpus: Flag | None = Field(
        default=None,
        description="Whether models are placed on GPUs by their memory, so that those that fit are there together. "
        "false: each model takes all of every GPU. Default: true where GPUs can be read, or a key says something of "
        "their memory; false for files with keys of 0.7.7, and where a model leaves by retain+keep_running or sets "
        "CUDA_VISIBLE_DEVICES itself.",
    )
    groups: dict[str, GroupSettings] = Field(
        default_factory=dict,
        description="Rules for who may be on the GPUs together, by any name. Without any, memory alone decides.",
    )
    host: Text = Field(
        default="127.0.0.1",
        description="Address, or name of a host, that all of llmux's ports listen on. 0.0.0.0 means all IPv4 "
        "addresses, :: all IPv6 ones, and * both.",
    )
    port: Port = Field(default=3000, description="The main port; 0 picks a free one.")
    metrics_port: Port = Field(default=9090, description="An additional port that serves only /metrics; 0: none.")
    admin_port: Port | None = Field(
        default=None, description="An additional port that serves only /control. Default: none."
    )
    admin_key: Secret | None = Field(
        default=None,
        description="Key for the control API; ${NAME} takes it from the environment. Without one, only clients on this "
        "machine may use the control API.",
    )
    api_keys: tuple[Secret, ...] = Field(
        default=(),
        description="API keys. If any are set, every inference request must carry one. ${NAME} takes a key from the "
        "environment.",
    )
    batch_api_keys: tuple[Secret, ...] = Field(
        default=(),
        description="API keys whose requests have the priority batch: they are served after the model's interactive "
        "requests, except those that arrive max_wait_seconds later.",
    )
    cors_origins: tuple[Text, ...] = Field(
        default=(),
        description='Origins of web pages that may use the data plane, as https://chat.example.org; ["*"]: all. '
        "Browsers are answered accordingly (CORS), their preflights without a key.",
    )
    allowed_hosts: tuple[Text, ...] = Field(
        default=(),
        description="Names of this machine beside localhost, its addresses and host. Without api_keys, requests to a "
        "loopback address that call it otherwise in their Host header are refused, as are those of foreign web pages.",
    )
    inference_paths: tuple[Text, ...] = Field(
        default=(),
        description="Paths of the engines' own beside the usual ones, as /v1/videos, for which a POST wakes its model. "
        "Others that llmux does not know are forwarded only to a model that is on the GPU.",
    )
    vllm_command: PathText = Field(
        default=KINDS[DEFAULT_KIND].default_program,
        description="The engine's program: a name on PATH, or a path. It is one word and never split at spaces.",
    )
    checkpoint: CheckpointSettings | None = Field(
        default=None,
        description="criu and its images. Required by the process checkpoint, and by checkpoint_path.",
    )
    warmup: Flag = Field(
        default=False,
        description="At the start, start every model once and put it to sleep, so that first requests need a wake and "
        "not a cold start; those of preload are left out. Meanwhile /ready answers 503, and requests are served as "
        "their models come up.",
    )
    preload: tuple[Text, ...] = Field(
        default=(),
        description="Models that are brought onto the GPUs at the start and left there, in this order; those on "
        "different GPUs are started at the same time. Meanwhile /ready answers 503. With warmup, the others are warmed "
        "up first.",
    )
    default_model: Text | None = Field(
        default=None,
        description="The model that comes back by itself when what is in its way has been idle: for its idle_seconds, "
        "or else for five minutes. It is brought at the start, and does not leave for being idle.",
    )
    start_timeout_seconds: PositiveSeconds = Field(
        default=1800.0, description="How long an engine may take from its start until it is ready."
    )
    engine_stall_seconds: Seconds = Field(
        default=60.0,
        description="How long an engine on the GPU may make no progress before it is asked whether it lives. If "
        "/health then fails three times in a row, or answers though one token takes five times this long, the engine "
        "is killed and started again. 0: never.",
    )
    drain_timeout_seconds: Seconds = Field(
        default=120.0, description="How long a switch waits for requests in flight before it ends them."
    )
    shutdown_timeout_seconds: Seconds = Field(
        default=20.0, description="How long llmux waits for requests in flight when it shuts down."
    )
    stop_timeout_seconds: Seconds = Field(
        default=10.0, description="How long an engine may take to stop on SIGTERM before it gets SIGKILL."
    )
    sleep_timeout_seconds: PositiveSeconds = Field(default=120.0, description="Timeout of the engine's /sleep.")
    wake_timeout_seconds: PositiveSeconds = Field(default=120.0, description="Timeout of the engine's /wake_up.")
    reload_timeout_seconds: PositiveSeconds = Field(
        default=600.0, description="Timeout of the engine's reload of discarded weights."
    )
    reset_timeout_seconds: PositiveSeconds = Field(
        default=30.0, description="Timeout of the engine's /reset_prefix_cache."
    )
    cuda_lock_timeout_seconds: PositiveSeconds = Field(
        default=10.0,
        description="cuda_suspend: how long the driver waits for an engine's running kernels before it gives up, and "
        "the engine goes on.",
    )
    cuda_suspend_timeout_seconds: PositiveSeconds = Field(
        default=120.0,
        description="cuda_suspend: how long the driver may take to copy an engine's GPU memory to host memory or back. "
        "After that the engine is stopped.",
    )
    memory_wait_seconds: Seconds = Field(
        default=10.0,
        description="How long a start or a wake waits until the GPU memory that it needs is really free. After that it "
        "is attempted anyway, and a warning names the processes that hold the memory. 0: do not check.",
    )
    max_body_bytes: Count = Field(default=128 << 20, description="The largest request body that is accepted, in bytes.")
    max_receiving_bytes: Count = Field(
        default=1 << 30,
        description="How many bytes of request bodies may be under way in total, received and not complete; a client "
        "that sends more is answered with 429. Complete ones count against queue_limit_bytes.",
    )
    spool_bytes: Count = Field(
        default=8 << 20,
        description="Request bodies from this size on wait in a file in the directory for temporary files (TMPDIR) "
        "instead of in memory. Without room there, they wait in memory.",
    )
    queue_limit_requests: Count = Field(
        default=10_000, description="How many requests may wait in total; one more is answered with 429."
    )
    queue_limit_bytes: Count = Field(
        default=1 << 30,
        description="How many bytes of request bodies may wait in total; a request above that is answered with 429.",
    )
    log_level: LogLevel = Field(
        default=LogLevel.INFO,
        description="The least severe level that is logged. debug includes the engines' output.",
    )

    gpu_memory_reserve: Bytes | None = Field(
        default=None,
        description="GPU memory that other programs shall find free on each GPU. When it is not, and they hold some, "
        "idle models leave as configured and sleeping ones are stopped, until it is; busy ones stay. Default: none.",
    )
    canary: CanaryMode = Field(
        default=CanaryMode.ALWAYS,
        description="After which wakes the model must answer one short prompt as it did after its start, before it "
        "serves clients: always, sampled (every tenth wake), or off.",
    )
    keepalive_seconds: PositiveSeconds = Field(
        default=15.0,
        description="How often the client of an event stream that waits or is frozen is sent a comment line.",
    )
    wait_comments_after_seconds: Seconds = Field(
        default=1.0,
        description="How long the client of an event stream waits until it is sent a head with status 200 and comment "
        "lines, so that no proxy takes the silence for a dead connection. From then on errors are events. 0: never.",
    )

    host_memory_reserve_mib: Size = Field(
        default=1024,
        description="Host memory, in MiB, that offloaded weights must leave free; otherwise they are discarded. The "
        "size of the weights is known only where model_path is a local directory: elsewhere, what is free now decides. "
        "When less is available later, sleeping models go on to evictions that keep less.",
    )
    host_memory_max: Bytes | None = Field(
        default=None,
        description="Host memory that sleeping models may hold together. Above that, those that are missed least "
        "go on to evictions that keep less: weights are discarded, processes put into images (with checkpoint) or "
        "stopped. Default: as much as host_memory_reserve_mib leaves.",
    )
    cache_dir: Directory | None = Field(
        default=None,
        description="Directory of what makes a later start quicker: compiled kernels, saved prompts, and what models "
        "need of the GPUs. It may be deleted while llmux does not run. Default: llmux in $XDG_CACHE_HOME, or else "
        "~/.cache/llmux.",
    )
    access_log: Directory | None = Field(
        default=None,
        description="File to which one JSON line is appended for each inference request; llmux simulate and replay "
        "read it. Default: none.",
    )
    prefetch: PrefetchSettings = Field(
        default=PrefetchSettings(), description="Reading files ahead of the wakes that need them."
    )

    def engine_of(self, name: str) -> Engine:
        """What is known of the model's engine before it runs. Its kind must be known: see ``checks.problems``."""
        engine = self._engines.get(name)
        if engine is None:
            engine = self._engines[name] = self._make_engine(name)
        return engine

    def _make_engine(self, name: str) -> Engine:
        model = self.models[name]
        options = EngineOptions(
            name=name,
            model_path=model.model_path,
            program=self.command_of(name),
            extra_args=model.extra_args,
            environment=model.env,
            timeouts=ControlTimeouts(
                self.sleep_timeout_seconds,
                self.wake_timeout_seconds,
                self.reload_timeout_seconds,
                self.reset_timeout_seconds,
            ),
            may_offload=(model.eviction or self.policy.eviction).weights is Weights.OFFLOAD,
            has_port=model.port is not None,
            start_command=model.start_command or (),
            stop_command=model.stop_command or (),
            ready_path=model.ready_path or "",
            wake_command=model.wake_command or "",
            sleep_command=model.sleep_command or "",
            alive_command=model.alive_command or "",
            url=model.url or "",
            api_key=None if model.api_key is None else model.api_key.get_secret_value(),
            cache_directory=self.cache_directory,
            rank_calls=RankCalls()
            if model.checkpoint_calls is None
            else RankCalls(model.checkpoint_calls.prepare, model.checkpoint_calls.restore),
            gpu_memory_mib=-(-(model.gpu_memory or 0) // (1 << 20)),
            adapters=model.adapters,
            saved_prompts_bytes=model.saved_prompts_mib << 20,
        )
        return self.kinds[model.engine](options)

    @cached_property
    def _engines(self) -> dict[str, Engine]:
        """Those that were asked for: what is made at a start asks a dozen times for each."""
        return {}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, but nothing that was derived from the old values comes with the copy."""
        copy = super().model_copy(update=update, deep=deep)
        for name in copy.__dict__.keys() - type(self).model_fields.keys():
            del copy.__dict__[name]
        return copy

    @cached_property
    def cache_directory(self) -> Path:
        """``cache_dir`` or its default."""
        return self.cache_dir or default_cache_directory()

    @cached_property
    def kinds(self) -> Mapping[str, type[Engine]]:
        """The kinds of engines that models may have, but for descriptions of llmux's that no model needs."""
        own = {name: described.description(name) for name, described in self.engines.items()}
        needed = {model.engine for model in self.models.values()} & set(described_kinds())
        found = {name: built_in(name) for name in sorted(needed)} | own
        return {**{name: kind_of(description) for name, description in found.items()}, **KINDS}

    def names(self) -> Register:
        """Every name by which clients can ask for a model: those in the file, then each path that one model has."""
        found = [name for key in self.models for name in self.names_of(key)]
        # A model's own name goes before anything that another model is called.
        found.sort(key=lambda name: name.kind is not NameKind.MODEL)
        paths = Counter(model.model_path for model in self.models.values())
        for key, model in self.models.items():
            path = model.model_path
            if path and paths[path] == 1:
                engine = self.engine_of(key)
                served = path if path in engine.served_names else engine.served_names[0]
                found.append(ModelName(path, key, served, NameKind.PATH, path, engine.added_fields()))
        return register(found)

    def names_of(self, key: str) -> Iterator[ModelName]:
        """All names that stand for the model or for an adapter of it, but for the path of its weights.

        An engine's own come before aliases: they need not be replaced.
        """
        engine = self.engine_of(key)
        yield from engine.names()
        served, path, fields = engine.served_names[0], self.models[key].model_path or None, engine.added_fields()
        for alias in self.models[key].aliases:
            yield ModelName(alias, key, served, NameKind.ALIAS, path, fields)

    def eviction_of(self, name: str) -> Eviction:
        """How the model leaves the GPU: its own eviction, else its kind's, else the policy's, if its engine can."""
        own = self.models[name].eviction
        if own is not None:
            return own.eviction
        engine, shared = self.engine_of(name), self.policy.eviction.eviction
        if engine.default_eviction is not None:
            return engine.default_eviction
        return engine.nearest(shared)

    def drain_of(self, name: str) -> Drain:
        """What a switch away from the model does with its requests in flight."""
        own, eviction = self.models[name].drain, self.eviction_of(name)
        return own or self.policy.drain(can_keep_requests=self.engine_of(name).can_keep_requests(eviction))

    def targets_of(self, name: str) -> Targets:
        """When streamed answers of the model are on time."""
        own, shared = self.models[name], self.policy
        speed = own.reading_tokens_per_second or shared.reading_tokens_per_second
        return Targets(
            Target(own.ttft_target_seconds or shared.ttft_target_seconds, speed),
            Target(own.batch_ttft_target_seconds or shared.batch_ttft_target_seconds, speed),
        )

    def idle_seconds_of(self, name: str) -> float:
        """How long the model stays on the GPU without a request."""
        own = self.models[name].idle_seconds
        idle_seconds = self.policy.idle_seconds if own is None else own
        return math.inf if idle_seconds is None else idle_seconds

    def max_in_flight_of(self, name: str) -> int:
        """How many requests the model's engine gets at once."""
        return self.models[name].max_in_flight or self.engine_of(name).max_in_flight

    @property
    def places_by_memory(self) -> bool:
        """Whether models are placed on GPUs by their memory; otherwise each takes all of every GPU."""
        return self._tells_of_memory if self.share_gpus is None else self.share_gpus

    @cached_property
    def _tells_of_memory(self) -> bool:
        return bool(self.gpus) or any(
            model.gpu_memory is not None or model.gpus is not None for model in self.models.values()
        )

    @property
    def host_memory_max_mib(self) -> int | None:
        """What sleeping models may hold of host memory together; None for no limit of its own."""
        return None if self.host_memory_max is None else self.host_memory_max >> 20

    def ladder_of(self, name: str) -> tuple[Eviction, ...]:
        """The evictions to which the model may go on when it is to keep less, those that keep most first.

        From one sleep of an engine's own to another there is no way: discarding is for a model that is about to leave.
        """
        images = [] if self.checkpoint is None else [Weights.DISCARD, Weights.RETAIN]
        engine = self.engine_of(name)
        steps = [Eviction(Weights.DISCARD, Process.KEEP_RUNNING)]
        dumps = (Eviction(weights, Process.CHECKPOINT) for weights in images)
        steps += [dump for dump in dumps if engine.why_not(dump) is None][:1]
        return (*(step for step in steps if engine.why_not(step) is None), STOP)

    @property
    def needs_criu(self) -> bool:
        """Whether any model is dumped into an image or restored from one, so that criu must work here."""
        return any(
            self.eviction_of(name).process is Process.CHECKPOINT or model.checkpoint_path is not None
            for name, model in self.models.items()
        )

    @property
    def needs_cuda_suspend(self) -> bool:
        """Whether any model's GPU memory is suspended, so that something must be able to do that here."""
        return any(self.eviction_of(name).process is Process.CUDA_SUSPEND for name in self.models)

    def secrets(self) -> Iterator[str]:
        """All keys, and what of the models' environment and arguments is secret."""
        keys = [*self.api_keys, *self.batch_api_keys]
        keys += [self.admin_key] if self.admin_key is not None else []
        store = self.checkpoint.object_store if self.checkpoint is not None else None
        if store is not None:
            keys += [key for key in (store.access_key, store.secret_key) if key is not None]
            yield from secrets_in(store.options)
        yield from (key.get_secret_value() for key in keys)
        for model in self.models.values():
            yield from secrets_in(model.env)
            yield from every_value((*(model.start_command or ()), *model.extra_args), KEY_FLAGS)
            if model.api_key is not None:
                yield model.api_key.get_secret_value()

    def command_of(self, name: str) -> str:
        """The program that runs the model's engine."""
        model = self.models[name]
        if self._is_command(name):
            first = model.start_command[0] if model.start_command else ""
            return model.command or first.replace("{model}", model.model_path)
        program = self.vllm_command if model.engine == DEFAULT_KIND else self.kinds[model.engine].default_program
        return model.command or program

    def command_path_of(self, name: str) -> str:
        """The key that says which program it is, or would say it."""
        model = self.models[name]
        if self._is_command(name):
            return dotted(("models", name, "start_command"))
        is_shared = model.command is None and model.engine == DEFAULT_KIND
        return "vllm_command" if is_shared else dotted(("models", name, "command"))

    def _is_command(self, name: str) -> bool:
        return "start_command" in self.kinds[self.models[name].engine].own_keys
