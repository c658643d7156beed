"""Writes a draft as YAML with comments. Every value reads back as the same in YAML 1.1, YAML 1.2 and llmux's loader."""

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from llmux.config.migration import words
from llmux.config.migration.draft import MODEL_KEYS, TOP_KEYS, Draft, FileDraft, ModelDraft, Value

WIDTH = 110
COMMENT_WIDTH = 100
FOLD_WIDTH = 90

_PLAIN = re.compile(r"[A-Za-z/$](?:[\w./+@~=$,{}'\"()&|;%-]| (?=[^\s#])|:(?=[\w/{$]))*", re.ASCII)
_PLAIN_IN_LIST = re.compile(r"(?:--?)?[A-Za-z/][\w./+@~-]*", re.ASCII)
_NO_TEXT = re.compile(r"y|n|yes|no|on|off|true|false|null|~|\.nan|[-+]?\.inf", re.IGNORECASE)


def render(draft: FileDraft, header: Sequence[str]) -> str:
    """The file's text; ``header`` are paragraphs that become its first comment."""
    blocks = ["\n".join(line for paragraph in header for line in _comment(paragraph))]
    for key in (*TOP_KEYS, ""):
        lines = [*_notes(draft, key, TOP_KEYS)]
        if key == "models":
            lines += _models(draft)
        elif key in draft.keys:
            lines += _entry(key, draft.keys[key])
        if lines:
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _models(draft: FileDraft) -> Iterator[str]:
    yield "models:" if any(model.is_usable for model in draft.models.values()) else "models: {}"
    for index, (name, model) in enumerate(draft.models.items()):
        if index:
            yield ""
        yield from _indented(_model(name, model))


def _model(name: str, model: ModelDraft) -> Iterator[str]:
    lines = [f"{_text(name, _PLAIN)}:"]
    for key in (*MODEL_KEYS, ""):
        body = [*_notes(model, key, MODEL_KEYS)]
        if key in model.keys:
            body += _entry(key, model.keys[key])
        lines += _indented(body)
    yield from lines if model.is_usable else (f"# {line}" for line in lines)


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" if line else line for line in lines)


def _notes(draft: Draft, key: str, known: Sequence[str]) -> Iterator[str]:
    """The comments above a key. Notes that say the same of several subjects are one."""
    notes = [note for at in draft.notes if at == key or (not key and at not in known) for note in draft.notes[at]]
    subjects: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for note in notes:
        value = " ".join(note.value.split())
        subjects.setdefault((note.text, note.suggested), []).append(f"{note.about} ({value})" if value else note.about)
    for (text, suggested), names in subjects.items():
        yield from _comment(words.shown(f"{', '.join(names)}: {text}"))
        yield from (f"# {line}" for line in suggested)


def _comment(paragraph: str) -> Iterator[str]:
    printable = "".join(character if character.isprintable() else " " for character in paragraph)
    lines = textwrap.wrap(printable, COMMENT_WIDTH, break_long_words=False, break_on_hyphens=False)
    return (f"# {line}" for line in lines)


def _entry(key: str, value: Value) -> Iterator[str]:
    match value:
        case bool():
            yield f"{key}: {str(value).lower()}"
        case int():
            yield f"{key}: {value}"
        case str():
            yield from _text_entry(key, words.written(value))
        case list():
            yield from _list_entry(key, value)
        case dict():
            yield f"{key}:"
            for name, item in value.items():
                yield f"  {_text(name, _PLAIN)}: {_text(words.written(item), _PLAIN)}"


def _text_entry(key: str, text: str) -> Iterator[str]:
    """A command that is long, or has quotes of both kinds, becomes a folded block, which needs no backslashes."""
    line = f"{key}: {_text(text, _PLAIN)}"
    can_fold = text.isprintable() and "  " not in text and text == text.strip() and text != ""
    if can_fold and (len(line) > WIDTH or ("'" in text and '"' in text and "\\" in line)):
        yield f"{key}: >-"
        yield from _indented(_filled(re.split(r" (?=-)", text)))
    else:
        yield line


def flow_text(text: str) -> str:
    """A text as it stands in a list or mapping on one line."""
    return _text(words.written(text), _PLAIN_IN_LIST)


def flow_list(items: Sequence[str]) -> str:
    """A list of texts on one line, as ``[a, b]``."""
    return f"[{', '.join(map(flow_text, items))}]"


def _list_entry(key: str, items: Sequence[str]) -> Iterator[str]:
    written = list(map(flow_text, items))
    line = f"{key}: {flow_list(items)}"
    if len(line) <= WIDTH:
        yield line
        return
    groups: list[str] = []
    for item, text in zip(items, written, strict=True):
        if (item.startswith("-") and not item[1:2].isdigit()) or not groups:
            groups.append(f"{text},")
        else:
            groups[-1] += f" {text},"
    yield f"{key}: ["
    yield from _indented([*_filled(groups), "]"])


def _filled(pieces: Iterable[str]) -> Iterator[str]:
    """Lines of whole pieces, no longer than they must be."""
    line = ""
    for piece in pieces:
        if line and len(line) + 1 + len(piece) > FOLD_WIDTH:
            yield line
            line = piece
        else:
            line = f"{line} {piece}" if line else piece
    yield line


def _text(text: str, plain: re.Pattern[str]) -> str:
    if plain.fullmatch(text) and not _NO_TEXT.fullmatch(text):
        return text
    return _quoted(text)


def _quoted(text: str) -> str:
    """In single quotes if that avoids backslashes. In double quotes as in JSON; what is not printable is escaped."""
    if '"' in text and "'" not in text and text.isprintable():
        return f"'{text}'"
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(one if one.isprintable() else _escaped(one) for one in quoted)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
