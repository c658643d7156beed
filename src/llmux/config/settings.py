"""The whole configuration: the top level of the file, and what the runtime asks of it."""

from enum import StrEnum

from pydantic import Field

from llmux.config.checkpoint import CheckpointSettings
from llmux.config.fields import Count, Directory, Flag, Port, PositiveSeconds, Seconds, Secret, Section, Size, Text
from llmux.config.model import ModelSettings
from llmux.config.policy import ABORTING, PolicySettings
from llmux.core.eviction import Drain, Eviction

DEFAULT_MAX_IN_FLIGHT = 256


class LogLevel(StrEnum):
    """How much llmux logs."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class CanaryMode(StrEnum):
    """When a woken model is asked whether it still says what it said when it had been started."""

    OFF = "off"
    SAMPLED = "sampled"
    ALWAYS = "always"


class Settings(Section):
    """Everything that the configuration file says, with defaults for what it does not say."""

    models: dict[str, ModelSettings] = Field(
        min_length=1, description="The models, by the name that clients ask for, in the order of preference."
    )
    policy: PolicySettings = Field(default=PolicySettings(), description="When to switch.")
    host: Text = Field(default="127.0.0.1", description="Address that all of llmux's own ports listen on.")
    port: Port = Field(default=3000, description="The main port; 0: any.")
    metrics_port: Port = Field(default=9090, description="A second port with only /metrics; 0: none.")
    admin_port: Port | None = Field(default=None, description="A third port with only /control; absent: none.")
    admin_key: Secret | None = Field(
        default=None,
        description="Key for the control API; ${NAME} takes it from the environment. Absent: only local clients "
        "may use it.",
    )
    api_keys: tuple[Secret, ...] = Field(
        default=(), description="Keys of which clients must show one; ${NAME} is taken from the environment."
    )
    batch_api_keys: tuple[Secret, ...] = Field(
        default=(),
        description="Further such keys, whose requests are of the class batch: they go behind the model's interactive "
        "ones, but not behind those that come max_wait_seconds later.",
    )
    vllm_command: Text = Field(
        default="vllm", description="The engine's program: a name on PATH or a path, one word that is never split."
    )
    checkpoint: CheckpointSettings | None = Field(
        default=None, description="CRIU and its images; needed by the processes cuda_suspend and checkpoint."
    )
    warmup: Flag = Field(
        default=False, description="Start every model once before listening, so that first requests find them asleep."
    )
    start_timeout_seconds: PositiveSeconds = Field(
        default=1800.0, description="From an engine's start to its readiness."
    )
    drain_timeout_seconds: Seconds = Field(
        default=120.0, description="How long a switch waits for requests in flight before it ends them."
    )
    shutdown_timeout_seconds: Seconds = Field(
        default=20.0, description="How long llmux waits for requests in flight when it is told to stop."
    )
    stop_timeout_seconds: Seconds = Field(default=10.0, description="From an engine's SIGTERM to its SIGKILL.")
    sleep_timeout_seconds: PositiveSeconds = Field(default=120.0, description="For the engine's /sleep.")
    wake_timeout_seconds: PositiveSeconds = Field(default=120.0, description="For the engine's /wake_up.")
    reload_timeout_seconds: PositiveSeconds = Field(default=600.0, description="For reading discarded weights again.")
    reset_timeout_seconds: PositiveSeconds = Field(default=30.0, description="For the engine's /reset_prefix_cache.")
    memory_wait_seconds: Seconds = Field(
        default=10.0,
        description="How long a start or a wake waits for the GPU memory that it needs to be really free; then it is "
        "tried all the same, and a warning names who holds it. 0: it is not looked at.",
    )
    max_body_bytes: Count = Field(default=128 << 20, description="The largest accepted request body, in bytes.")
    queue_limit_requests: Count = Field(default=10_000, description="How many requests may wait, over all models.")
    queue_limit_bytes: Count = Field(default=1 << 30, description="How many bytes of bodies may wait, over all models.")
    log_level: LogLevel = Field(
        default=LogLevel.INFO,
        description="The least severe messages that are logged; debug includes the engines' output.",
    )

    canary: CanaryMode = Field(
        default=CanaryMode.ALWAYS,
        description="After which wakes a model's answer to one small question is compared with its first one, before "
        "anybody else is answered: always, sampled (each tenth), off.",
    )
    keepalive_seconds: PositiveSeconds = Field(
        default=15.0, description="How often the client of a frozen event stream gets a comment line."
    )

    host_memory_reserve_mib: Size = Field(
        default=1024,
        description="Weights that would leave less of the host's memory than this are discarded instead of offloaded; "
        "of models that are no directory here only what is free now counts.",
    )
    access_log: Directory | None = Field(
        default=None,
        description="File that gets one line of JSON for each request; llmux simulate reads it. Absent: none.",
    )

    def eviction_of(self, name: str) -> Eviction:
        """How the model leaves the GPU: its own way, else the policy's, which is retain+stop by default."""
        return (self.models[name].eviction or self.policy.eviction).eviction

    def drain_of(self, name: str) -> Drain:
        """What a switch away from the model does about its requests in flight."""
        own = self.models[name].drain
        if own is not None:
            return own
        aborts = not self.policy.drain_before_switch and self.policy.policy_type in ABORTING
        return Drain.ABORT if aborts else Drain.WAIT

    def max_in_flight_of(self, name: str) -> int:
        """How many requests the model's engine gets at a time."""
        return self.models[name].in_flight_limit(DEFAULT_MAX_IN_FLIGHT)

    def tensor_parallel_size_of(self, name: str) -> int:
        """Over how many GPUs the engine spreads the model."""
        return self.models[name].tensor_parallel_size

    def command_of(self, name: str) -> str:
        """The program that runs the model's engine."""
        return self.models[name].command or self.vllm_command
