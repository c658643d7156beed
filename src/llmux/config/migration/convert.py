"""The whole way: tell what kind of file it is, make a draft of it, and write that."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from llmux.config.migration import llama_swap, presets, words
from llmux.config.migration.draft import FileDraft, Note
from llmux.config.migration.writing import render
from llmux.errors import ConfigError, Problem

NAMES_MAX = 5
"""How many models one line of the summary names."""


class Kind(Enum):
    """The kinds of files that can be converted."""

    LLAMA_SWAP = "a configuration of llama-swap"
    PRESETS = "a presets file of llama.cpp's router"


@dataclass(frozen=True, slots=True)
class Converted:
    """llmux's file, and what to say about it."""

    kind: Kind
    text: str
    draft: FileDraft

    def remarks(self) -> Iterator[str]:
        """What the comments say and of which models, without values, which may be secret."""
        models: dict[str, list[str]] = {}
        for name, model in self.draft.models.items():
            for note in model.all_notes():
                models.setdefault(_remark(note), []).append(name)
        for remark, names in models.items():
            shown = [*dict.fromkeys(names)]
            more = f" and {len(shown) - NAMES_MAX} more" if len(shown) > NAMES_MAX else ""
            yield f"{', '.join(shown[:NAMES_MAX])}{more}: {remark}"
        yield from map(_remark, self.draft.all_notes())


def _remark(note: Note) -> str:
    return words.shown(" ".join((f"{note.about}:", note.text, *note.suggested)))


def convert(text: str, name: str) -> Converted:
    """Convert a file's text. ``name`` is the file's, for the header and messages.

    Raises ConfigError, with the line where there is one, if the file is of neither kind or malformed.
    """
    if any(character in text for character in words.RESERVED_CHARACTERS):
        raise ConfigError([Problem("", "the file contains characters of Unicode's private use area")], name)
    try:
        kind, draft = _draft(text, name)
    except RecursionError:
        raise ConfigError([Problem("", "the file is nested too deeply")], name) from None
    header = (
        f"Made by 'llmux migrate' from {name}, {kind.value}.",
        "A comment stands beside whatever was not carried over as it was. Macros and common sections are written out.",
    )
    return Converted(kind, render(draft, header), draft)


def _draft(text: str, name: str) -> tuple[Kind, FileDraft]:
    if presets.is_presets(text):
        return Kind.PRESETS, presets.convert(text, name)
    source = llama_swap.read(text, name)
    models = source.data.get("models")
    if not isinstance(models, dict):
        what = "neither llama-swap's YAML, which has a mapping 'models', nor llama.cpp's INI, which has sections"
        raise ConfigError([Problem("", what)], name)
    if any(isinstance(model, dict) and "model_path" in model and "cmd" not in model for model in models.values()):
        raise ConfigError([Problem("models", "this is a configuration of llmux already", "use it as it is")], name)
    return Kind.LLAMA_SWAP, llama_swap.convert(source)
