"""One entry of the section ``models``: its weights, its engine, and how it leaves the GPU."""

from collections.abc import Iterator

from pydantic import Field

from llmux.config import arguments
from llmux.config.eviction import EvictionField
from llmux.config.fields import (
    Count,
    Directory,
    EnginePort,
    PathText,
    PositiveFactor,
    Seconds,
    Section,
    Text,
    VariableName,
    Word,
)
from llmux.core.eviction import Drain
from llmux.core.names import ModelName, NameKind

DEFAULT_GPU_SHARE = 0.92
"""vLLM's default of ``--gpu-memory-utilization``."""


class ModelSettings(Section):
    """One model that clients can ask for."""

    model_path: PathText = Field(description="Hugging Face id, or directory, of the weights.")
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
        description="Further command-line arguments of the engine. --port, --host and --uds are set by llmux "
        "and refused here.",
    )
    eviction: EvictionField | None = Field(
        default=None,
        description="How the model leaves the GPU: a mapping, or WEIGHTS+PROCESS. Default: policy.eviction.",
    )
    checkpoint_path: Directory | None = Field(
        default=None, description="Directory of the images that the model's first start is restored from."
    )
    env: dict[VariableName, Word] = Field(
        default_factory=dict, description="Environment variables for the engine; they override inherited ones."
    )
    command: PathText | None = Field(
        default=None, description="The engine's program, one word that is never split at spaces. Default: vllm_command."
    )
    max_in_flight: Count | None = Field(
        default=None,
        description="How many requests the engine gets at once; more wait in llmux. Default: its --max-num-seqs, or "
        "else 256.",
    )
    drain: Drain | None = Field(
        default=None,
        description="What a switch does with requests in flight. wait: let them finish, for at most "
        "drain_timeout_seconds. abort: end them. freeze: suspend them until the model is back. Default: wait.",
    )

    weight: PositiveFactor = Field(
        default=1.0,
        description="adaptive: how much the model's waiting requests count, relative to other models' requests.",
    )
    max_wait_seconds: Seconds | None = Field(
        default=None, description="This model's own max_wait_seconds. Default: policy.max_wait_seconds."
    )

    def served_names(self, name: str) -> tuple[str, ...]:
        """The values of ``--served-model-name``: the configured name, the path, then names from ``extra_args``.

        The configured name goes first because vLLM puts the first one into its answers.
        """
        return tuple(dict.fromkeys((name, self.model_path, *arguments.served_names(self.extra_args))))

    def names(self, name: str) -> Iterator[ModelName]:
        """All names that stand for the model ``name`` or for an adapter of it, but for the path of its weights.

        An engine's own come before aliases: they need not be replaced.
        """
        path = self.model_path
        yield ModelName(name, name, name, root=path)
        for served in arguments.served_names(self.extra_args):
            yield ModelName(served, name, served, NameKind.SERVED, path)
        for adapter, adapter_path in arguments.lora_modules(self.extra_args):
            yield ModelName(adapter, name, adapter, NameKind.ADAPTER, adapter_path)
        for alias in self.aliases:
            yield ModelName(alias, name, name, NameKind.ALIAS, path)

    @property
    def max_model_length(self) -> int | None:
        """How many tokens a request may have, from ``--max-model-len``; None if the arguments do not tell."""
        return arguments.max_model_length(self.extra_args)

    @property
    def engine_arguments(self) -> tuple[str, ...]:
        """``extra_args`` without ``--served-model-name``, whose values are part of ``served_names``."""
        return arguments.without(self.extra_args, arguments.SERVED_NAMES)

    @property
    def engine_api_key(self) -> str | None:
        """The API key that the engine requires, from ``--api-key`` or from ``VLLM_API_KEY`` in ``env``."""
        return arguments.value(self.extra_args, arguments.API_KEY) or self.env.get("VLLM_API_KEY") or None

    @property
    def tensor_parallel_size(self) -> int:
        """How many GPUs the engine spreads the model over. Raises ValueError if ``extra_args`` names no number."""
        return arguments.number(self.extra_args, arguments.TENSOR_PARALLEL_SIZE) or 1

    @property
    def start_share(self) -> float | None:
        """The share of a GPU's memory that vLLM requires to be free at its start; None if its arguments do not tell."""
        if arguments.present(self.extra_args, arguments.KV_CACHE_BYTES):
            return None
        text = arguments.value(self.extra_args, arguments.GPU_SHARE)
        try:
            return DEFAULT_GPU_SHARE if text is None else float(text)
        except ValueError:
            return None

    def in_flight_limit(self, default: int) -> int:
        """``max_in_flight``, else the engine's own limit, else ``default``. Raises ValueError as above."""
        return self.max_in_flight or arguments.number(self.extra_args, arguments.MAX_IN_FLIGHT) or default
