"""The names by which clients can ask for models: one register for the gateway, the model list and the operator."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias


class NameKind(Enum):
    """Where a name comes from."""

    MODEL = auto()
    """The model's key in the configuration."""
    ALIAS = auto()
    """llmux's own: the engine does not know it."""
    SERVED = auto()
    """A further name of the engine's for the model."""
    ADAPTER = auto()
    """Other weights, which the engine serves beside the model's (LoRA)."""
    PATH = auto()
    """The path of the weights."""


@dataclass(frozen=True, slots=True)
class ModelName:
    """A name, and the model whose engine answers to it."""

    name: str
    model: str
    """The model's key, which metrics, logs and the scheduler use."""
    served: str
    """What the engine calls it: the same name, or the model's key in place of an alias."""
    kind: NameKind = NameKind.MODEL
    root: str | None = None
    """Where the weights are, if that is known."""
    added_fields: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Fields that the engine must find in a JSON body beside the name, to answer with these weights."""


Register: TypeAlias = dict[str, ModelName]
"""Every name by which clients can ask for a model; nobody changes it.

A dict and no Mapping, because every request's model is looked up in it: compiled code then does without a method call.
"""


def register(names: Iterable[ModelName]) -> Register:
    """The register, in the order of the names. Of equal names the first counts."""
    found: Register = {}
    for name in names:
        found.setdefault(name.name, name)
    return found


def own_names(models: Iterable[str]) -> Register:
    """A register of models that have no name but their own."""
    return register(ModelName(model, model, model) for model in models)
