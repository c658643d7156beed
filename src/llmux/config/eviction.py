"""How the file writes an eviction: as a mapping, as ``weights+process``, or as a sleep level of old files."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from llmux.config.fields import Section, Substituted, as_scalar
from llmux.core.eviction import STOP, Eviction, Process, Weights

LEVELS: dict[int, Eviction] = {
    1: Eviction(Weights.OFFLOAD, Process.KEEP_RUNNING),
    2: Eviction(Weights.DISCARD, Process.KEEP_RUNNING),
    3: Eviction(Weights.RETAIN, Process.CUDA_SUSPEND),
    4: Eviction(Weights.DISCARD, Process.CHECKPOINT),
    5: Eviction(Weights.RETAIN, Process.STOP),
}
"""The sleep levels of llmux up to 0.5, which 0.7.7 still read."""


class EvictionSettings(Section):
    """An eviction: what happens to the weights × what happens to the process."""

    weights: Weights = Field(description="Where the weights are while the model is off the GPU.")
    process: Process = Field(description="What happens to the engine's process while the model is off the GPU.")

    @property
    def eviction(self) -> Eviction:
        """The core's type for it."""
        return Eviction(self.weights, self.process)

    @classmethod
    def of(cls, eviction: Eviction) -> "EvictionSettings":
        """The settings that stand for the core's eviction."""
        return cls(weights=eviction.weights, process=eviction.process)


def _read(value: object) -> object:
    """Turn the two short forms into the mapping. Everything else is left to the mapping's own validation."""
    match as_scalar(value):
        case int(level) if not isinstance(level, bool):
            eviction = LEVELS.get(level)
            if eviction is None:
                raise PydanticCustomError("sleep_level", "{level} is not a sleep level from 1 to 5", {"level": level})
        case str(written):
            try:
                eviction = Eviction.parse(written)
            except ValueError:
                text = (value.written if isinstance(value, Substituted) else written)[:60]
                raise PydanticCustomError("eviction_text", "'{text}' is not weights+process", {"text": text}) from None
        case _:
            return value
    return EvictionSettings.of(eviction)


_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["weights", "process"],
            "properties": {
                "weights": {"enum": [weights.value for weights in Weights]},
                "process": {"enum": [process.value for process in Process]},
            },
        },
        {"enum": [f"{weights}+{process}" for weights in Weights for process in Process]},
        {"type": "integer", "minimum": min(LEVELS), "maximum": max(LEVELS), "deprecated": True},
    ]
}

EvictionField = Annotated[EvictionSettings, BeforeValidator(_read), WithJsonSchema(_SCHEMA)]
DEFAULT_EVICTION = EvictionSettings.of(STOP)
