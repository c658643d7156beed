"""One entry of the section ``models``: its weights, its engine, and how it leaves the GPU."""

from enum import StrEnum

from pydantic import Field

from llmux.config.eviction import EvictionField
from llmux.config.fields import (
    Bytes,
    CommandLine,
    Count,
    Directory,
    EnginePort,
    GpuChoice,
    PathText,
    PositiveFactor,
    PositiveSeconds,
    Seconds,
    Secret,
    Section,
    Size,
    Text,
    VariableName,
    Word,
)
from llmux.core.eviction import Drain
from llmux.core.expected_course import HORIZON_SECONDS
from llmux.engines.calls import RankCalls
from llmux.engines.registry import DEFAULT_KIND


class Pin(StrEnum):
    """What a configured pin does."""

    KEEP = "keep"


class CheckpointCallsSettings(Section):
    """The section ``checkpoint_calls`` of a model."""

    prepare: Word = Field(
        default=RankCalls().prepare, description="Called before the model is suspended or put into an image."
    )
    restore: Word = Field(default=RankCalls().restore, description="Called when it is back on its GPUs.")


class ModelSettings(Section):
    """One model that clients can ask for."""

    engine: Text = Field(
        default=DEFAULT_KIND,
        description="The kind of its engine; docs/engines.md has a table of them.",
    )
    model_path: PathText = Field(
        default="",
        description="The weights: a Hugging Face id, a directory, or a file, as the engine takes them. Required, but "
        "for engines that llmux knows only by commands or a URL.",
    )
    aliases: tuple[Text, ...] = Field(
        default=(),
        description="Further names that clients can ask for. They are llmux's own: the engine gets the model's name "
        "instead. The engine's own names, from --served-model-name and --lora-modules, need no alias.",
    )
    port: EnginePort | None = Field(
        default=None, description="The engine's port on loopback. Default: a Unix socket, or a free port."
    )
    extra_args: tuple[Word, ...] = Field(
        default=(),
        description="Further command-line arguments of the engine. Those that llmux sets itself, such as --port and "
        "--host, are refused here.",
    )
    eviction: EvictionField | None = Field(
        default=None,
        description="How the model leaves the GPU: a mapping, or WEIGHTS+PROCESS. Default: policy.eviction.",
    )
    checkpoint_path: Directory | None = Field(
        default=None, description="Directory of the images that the model's first start is restored from."
    )
    checkpoint_calls: CheckpointCallsSettings | None = Field(
        default=None,
        description="engine: vllm. Over several GPUs, with cuda_suspend or checkpoint: the methods of its workers that "
        "disconnect them and connect them again, called by /collective_rpc. Default: the engine's own. Those of the "
        "engine that 0.7.7 patched are suspend_nccl and resume_nccl.",
    )
    env: dict[VariableName, Word] = Field(
        default_factory=dict, description="Environment variables for the engine; they override inherited ones."
    )
    command: PathText | None = Field(
        default=None,
        description="The engine's program, one word that is never split at spaces. Default: that of its kind, or "
        "vllm_command.",
    )
    max_in_flight: Count | None = Field(
        default=None,
        description="How many requests the engine gets at once; more wait in llmux. Default: what its arguments say, "
        "as --max-num-seqs, or else what its kind usually takes.",
    )
    drain: Drain | None = Field(
        default=None,
        description="What a switch does with requests in flight. wait: let them finish, for at most "
        "drain_timeout_seconds. abort: end them. freeze: suspend them until the model is back, where the engine can. "
        "Default: by policy.drain_before_switch.",
    )

    idle_seconds: PositiveSeconds | None = Field(
        default=None,
        description="How long the model stays on the GPU without a request; then it leaves as its eviction says. "
        "Default: policy.idle_seconds.",
    )
    gpu_memory: Bytes | None = Field(
        default=None,
        description="GPU memory that the engine takes on each of its GPUs, as 20GiB. Models whose needs fit are on a "
        "GPU together. Default: what its arguments say, as --gpu-memory-utilization, or else all of it until its "
        "engine has been measured.",
    )
    gpus: GpuChoice | None = Field(
        default=None,
        description="The GPUs that it uses: how many, whichever they are, or a list of their positions, as [0]. "
        "Default: as many as its arguments say, as --tensor-parallel-size.",
    )

    pin: Pin | None = Field(
        default=None,
        description="keep: once the model is on the GPUs it stays there, and others are served beside it; requests for "
        "those for which there is no room then are answered with 503. Default: it leaves for others.",
    )

    weight: PositiveFactor = Field(
        default=1.0,
        description="adaptive: how much the model's waiting requests count, relative to other models' requests.",
    )
    max_wait_seconds: Seconds | None = Field(
        default=None, description="This model's own max_wait_seconds. Default: policy.max_wait_seconds."
    )
    refuse_after_seconds: PositiveSeconds | None = Field(
        default=None,
        description="This model's own refuse_after_seconds; no request is refused by one of more than "
        f"{HORIZON_SECONDS:g}, since forecasts look no further ahead. Default: policy.refuse_after_seconds.",
    )
    batch_refuse_after_seconds: PositiveSeconds | None = Field(
        default=None, description="The same for batch requests. Default: policy.batch_refuse_after_seconds."
    )

    ttft_target_seconds: PositiveSeconds | None = Field(
        default=None, description="This model's own target. Default: policy.ttft_target_seconds."
    )
    batch_ttft_target_seconds: PositiveSeconds | None = Field(
        default=None, description="The same for batch requests. Default: policy.batch_ttft_target_seconds."
    )
    reading_tokens_per_second: PositiveFactor | None = Field(
        default=None,
        description="How fast clients take this model's answers. Default: policy.reading_tokens_per_second.",
    )

    canary_adapter: Text | None = Field(
        default=None,
        description="Name of an adapter that the canary asks as well: the model alone may answer right while its "
        "adapters are lost.",
    )
    canary_image: Directory | None = Field(
        default=None,
        description="File of a small image that the canary asks about as well, for models that see images.",
    )
    canary_tokens_per_second: PositiveFactor | None = Field(
        default=None,
        description="How fast the canary's answers must come after a wake; an engine that is slower, as one that has "
        "lost the weights of its draft model, counts as one that answers differently.",
    )

    start_command: CommandLine | None = Field(
        default=None,
        description="engine: command. The whole command line that starts it, as one text or as a list of words; no "
        "shell runs it. {port}, {model} and {name} stand for its port, model_path and the model's name; all other "
        "braces stay as they are.",
    )
    stop_command: CommandLine | None = Field(
        default=None,
        description="engine: command. Ends what does not end with its process, as docker rm -f {name}: run before "
        "the process is ended, also after it died by itself, and before the first start, for at most "
        "stop_timeout_seconds. With it, {name} has only characters that the names of containers may have.",
    )
    ready_path: Text | None = Field(
        default=None,
        description="engine: command, remote. Path that answers 200 once it is ready, and as long as it lives. "
        "Default: /health.",
    )
    wake_command: Text | None = Field(
        default=None, description="engine: hooks. Shell command that brings the model onto the GPU; 0 means done."
    )
    sleep_command: Text | None = Field(
        default=None, description="engine: hooks. Shell command that takes the model off the GPU; 0 means done."
    )
    alive_command: Text | None = Field(
        default=None, description="engine: hooks. Shell command that ends with 0 while the engine lives."
    )
    url: Text | None = Field(
        default=None,
        description="engine: hooks, remote. Where it serves, as http://127.0.0.1:8080 or https://api.example.org/v1.",
    )
    api_key: Secret | None = Field(
        default=None,
        description="engine: command, hooks, remote. Key that the engine requires; ${NAME} takes it from the "
        "environment.",
    )
    adapters: dict[Text, PathText] = Field(
        default_factory=dict,
        description="engine: llama_cpp. Files of adapters (LoRA), by the names that clients ask for them by; the "
        "model's own name is answered without any. Other kinds take them from their arguments, as --lora-modules.",
    )
    saved_prompts_mib: Size = Field(
        default=2048,
        description="engine: llama_cpp. How much of cache_dir the prompts of this model's conversations may take. They "
        "are saved before it leaves and restored when it is back. 0: they are not saved.",
    )
