"""llmux's configuration while it is being made from another program's: keys, and notes about what is left out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

Value: TypeAlias = str | int | bool | list[str] | dict[str, str]

MODEL_KEYS = (
    "engine",
    "model_path",
    "url",
    "api_key",
    "command",
    "start_command",
    "stop_command",
    "ready_path",
    "port",
    "extra_args",
    "env",
    "aliases",
    "max_in_flight",
    "idle_seconds",
)
"""The keys of a model in the order in which they are written."""

TOP_KEYS = ("models", "port", "api_keys", "start_timeout_seconds", "stop_timeout_seconds", "log_level")
"""The keys of the file in the order in which they are written."""


@dataclass(frozen=True, slots=True)
class Note:
    """A comment about something of the source: what became of it, and what to do instead.

    ``about`` is its key or flag there. ``value`` is shown in the file alone: it may be a secret, which a summary must
    not print. ``suggested`` are lines of YAML to be uncommented.
    """

    about: str
    text: str
    value: str = ""
    suggested: tuple[str, ...] = ()


@dataclass(slots=True)
class Draft:
    """Keys and values of a section. A note stands above the key that it is filed under, whether that is set or not."""

    keys: dict[str, Value] = field(default_factory=dict)
    notes: dict[str, list[Note]] = field(default_factory=dict)

    def note(self, at: str, note: Note) -> None:
        """Add a note; an ``at`` that is no key of the section puts it at the end."""
        self.notes.setdefault(at, []).append(note)

    def all_notes(self) -> Iterator[Note]:
        """Every note, in no order that matters."""
        for notes in self.notes.values():
            yield from notes


@dataclass(slots=True)
class ModelDraft(Draft):
    """One model. Without ``is_usable`` it is written as a comment: something that llmux needs is missing."""

    is_usable: bool = True

    @property
    def engine(self) -> str:
        """Its kind of engine."""
        return str(self.keys.get("engine", ""))


@dataclass(slots=True)
class FileDraft(Draft):
    """The whole file: its own keys and notes, and the models by name."""

    models: dict[str, ModelDraft] = field(default_factory=dict)
