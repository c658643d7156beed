"""One model of the section ``models``: which weights, which engine, and how it leaves the GPU."""

from pydantic import Field

from llmux.config import arguments
from llmux.config.eviction import EvictionField
from llmux.config.fields import Count, Directory, EnginePort, PositiveFactor, Seconds, Section, Text, VariableName, Word
from llmux.core.eviction import Drain

DEFAULT_GPU_SHARE = 0.92
"""vLLM's own."""


class ModelSettings(Section):
    """One model that clients may ask for."""

    model_path: Text = Field(description="Hugging Face id or directory of the weights.")
    port: EnginePort | None = Field(default=None, description="The engine's port on loopback; absent: a free one.")
    extra_args: tuple[Word, ...] = Field(
        default=(), description="Arguments for the engine, after llmux's own. --port, --host and --uds are llmux's."
    )
    eviction: EvictionField | None = Field(
        default=None, description="How the model leaves the GPU; absent: policy.eviction. Also as weights+process."
    )
    checkpoint_path: Directory | None = Field(
        default=None, description="Directory of images that the model's first start is restored from."
    )
    env: dict[VariableName, Word] = Field(
        default_factory=dict, description="Environment variables for the engine, over the inherited ones."
    )
    command: Text | None = Field(
        default=None, description="The engine's program, one word that is never split; absent: vllm_command."
    )
    max_in_flight: Count | None = Field(
        default=None, description="How many requests the engine gets at a time; absent: its --max-num-seqs, else 256."
    )
    drain: Drain | None = Field(
        default=None,
        description="What a switch does about requests in flight. wait: lets them end, for at most "
        "drain_timeout_seconds. abort: ends them. freeze: suspends them. Absent: wait.",
    )

    weight: PositiveFactor = Field(
        default=1.0, description="policy adaptive: how much the model's waiting requests count against those of others."
    )
    max_wait_seconds: Seconds | None = Field(
        default=None, description="As policy.max_wait_seconds, for this model; absent: that."
    )

    def served_names(self, name: str) -> tuple[str, ...]:
        """What to pass to ``--served-model-name``: the configured name first, then the path, then the file's own."""
        return tuple(dict.fromkeys((name, self.model_path, *arguments.served_names(self.extra_args))))

    @property
    def engine_arguments(self) -> tuple[str, ...]:
        """``extra_args`` without ``--served-model-name``, which ``served_names`` carries."""
        return arguments.without(self.extra_args, arguments.SERVED_NAMES)

    @property
    def engine_api_key(self) -> str | None:
        """The key that the engine itself was told to ask for, by ``--api-key`` or ``VLLM_API_KEY`` in ``env``."""
        return arguments.value(self.extra_args, arguments.API_KEY) or self.env.get("VLLM_API_KEY") or None

    @property
    def tensor_parallel_size(self) -> int:
        """Over how many GPUs the engine spreads the model; raises ``ValueError`` where extra_args are unreadable."""
        return arguments.number(self.extra_args, arguments.TENSOR_PARALLEL_SIZE) or 1

    @property
    def start_share(self) -> float | None:
        """Which share of a GPU vLLM wants to find free when it starts; None where its arguments do not say."""
        if arguments.present(self.extra_args, arguments.KV_CACHE_BYTES):
            return None
        text = arguments.value(self.extra_args, arguments.GPU_SHARE)
        try:
            return DEFAULT_GPU_SHARE if text is None else float(text)
        except ValueError:
            return None

    def in_flight_limit(self, default: int) -> int:
        """``max_in_flight``, else the engine's own limit, else the default; ``ValueError`` as above."""
        return self.max_in_flight or arguments.number(self.extra_args, arguments.MAX_IN_FLIGHT) or default
