"""From a presets file of llama.cpp's router (INI, ``--models-preset``) to a draft of llmux's configuration."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from llmux.config.migration import llama_server, words
from llmux.config.migration.draft import FileDraft, ModelDraft, Note
from llmux.config.migration.engines import model_path, pass_on, set_idle_seconds
from llmux.engines import llama_flags
from llmux.engines.llama_flags import Flag, Given
from llmux.errors import ConfigError, Problem

GLOBAL, DEFAULT = "*", "default"
"""The section whose keys count for all others; the one of keys that stand above any section."""

_LINE_END = re.compile(r"\r\n|\n|\r")
_HEADER = re.compile(r"\s*\[\s*([^\]]*?)\s*\]\s*(?:[;#].*)?")
_ENTRY = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*([^;#]*)(?:[;#].*)?")
_NOTHING = re.compile(r"\s*(?:[;#].*)?")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?", re.ASCII)

_FALSE = ("false", "off", "disabled", "0")
_KEYS = "the router does not pass it to its models; llmux's own keys are api_keys"
_OF_THE_ROUTER = ("load-on-startup", "sleep-idle-seconds", "stop-timeout", "api-key", "api-key-file", "LLAMA_API_KEY")
_UNKNOWN = "llmux does not know this flag of llama-server's; it is passed on"
_UNKNOWN_OFF = "llmux does not know this flag of llama-server's, nor how it is switched off; it is left out"
_STARTS = "llmux can start every model once and put it to sleep:"
_STOPS = "llmux has one stop_timeout_seconds for all models; it is taken from [*] only"
_PLACE = "where the router listens is on its command line; llmux listens on 127.0.0.1, port 3000. To take its place:"
_NO_WEIGHTS = (
    "the section names neither a file (model) nor a repository (hf): the router finds it in --models-dir or in its "
    "cache. Set model_path to the file and remove the #"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of a section, its value, and its line."""

    key: str
    value: str
    line: int


@dataclass(slots=True)
class Section:
    """A section, its line, and its entries by the flag that each stands for."""

    name: str
    line: int
    entries: dict[str, Entry] = field(default_factory=dict)
    repeated: list[tuple[Entry, Entry]] = field(default_factory=list)
    """Entries without effect, each with the one that counts instead."""


def is_presets(text: str) -> bool:
    """Whether the first line that says something is a section's header or ``key = value``."""
    first = next((line for line in _LINE_END.split(text) if not _NOTHING.fullmatch(line)), "")
    return _HEADER.fullmatch(first) is not None or re.match(r"\s*[A-Za-z_][A-Za-z0-9_.-]*\s*=", first) is not None


def convert(text: str, name: str) -> FileDraft:
    """The draft of a file's text. Raises ConfigError with the line of what is neither a section nor a key."""
    sections = _read(text, name)
    common = sections.pop(GLOBAL, Section(GLOBAL, 0))
    draft = FileDraft()
    draft.note("port", Note("--port", _PLACE, suggested=("port: 8080",)))
    if (stop := common.entries.pop("stop-timeout", None)) is not None:
        if not re.fullmatch("[0-9]{1,9}", stop.value, re.ASCII):
            raise _wrong(name, stop.line, "stop-timeout must be a whole number")
        draft.keys["stop_timeout_seconds"] = int(stop.value)
    for section in sections.values():
        draft.models[section.name] = _model(section, common)
    for section in (common, *sections.values()):
        for lost, kept in section.repeated:
            text = f"line {lost.line} has no effect: of the names of one flag in a section, line {kept.line} counts"
            draft.note("", Note(lost.key, text))
    if not draft.models:
        raise _wrong(name, common.line, "there is no section for a model", "add one, as [name]")
    return draft


def _read(text: str, name: str) -> dict[str, Section]:
    sections: dict[str, Section] = {}
    current = Section(DEFAULT, 1)
    for number, line in enumerate(_LINE_END.split(text), 1):
        if _NOTHING.fullmatch(line):
            continue
        if match := _HEADER.fullmatch(line):
            current = Section(match[1], number)
            if not match[1]:
                raise _wrong(name, number, "the section has no name", "write one between [ and ]")
            if match[1] in sections:
                first = sections[match[1]].line
                raise _wrong(name, number, f"the section [{match[1]}] is there since line {first}", "unite them")
            sections[match[1]] = current
        elif match := _ENTRY.fullmatch(line):
            if match[1] != "version":  # llama.cpp reserves it.
                _add(sections.setdefault(current.name, current), Entry(match[1], match[2].strip(), number))
        else:
            raise _wrong(name, number, "neither [section] nor key = value", "correct the line, or begin it with ;")
    return sections


def _add(section: Section, entry: Entry) -> None:
    flag = llama_flags.find(llama_flags.dashed(entry.key))
    identity = flag.name if flag else entry.key
    kept = entry
    if earlier := section.entries.pop(identity, None):
        # llama.cpp sorts a section's keys: of two names of one flag the alphabetically last counts.
        kept, lost = (entry, earlier) if entry.key >= earlier.key else (earlier, entry)
        section.repeated.append((lost, kept))
    section.entries[identity] = kept


def _wrong(name: str, line: int, message: str, remedy: str = "") -> ConfigError:
    return ConfigError([Problem("", f"line {line}: {message}" if line else message, remedy)], name)


def _model(section: Section, common: Section) -> ModelDraft:
    entries = common.entries | section.entries
    draft = ModelDraft()
    given = [one for entry in entries.values() for one in _arguments(entry, draft)]
    named = {one.flag.name: one.value for one in given if one.flag}
    path = model_path(named)
    if not path and _REPOSITORY.fullmatch(section.name):
        path = f"hf:{section.name}"
    extra: list[str] = []
    for one in given:
        if one.flag is None or one.flag.name not in (llama_server.MODEL, llama_server.HF_REPO, llama_server.ALIAS):
            pass_on(one, extra, draft)
    if aliases := [alias.strip() for alias in named.get(llama_server.ALIAS, "").split(",") if alias.strip()]:
        draft.keys["aliases"] = aliases
    if path:
        draft.keys |= {"engine": "llama_cpp", "model_path": path}
        if extra:
            draft.keys["extra_args"] = extra
    elif {"model-url", "docker-repo"} & named.keys():
        command = ("llama-server", "--host", "127.0.0.1", "--port", words.PORT, *extra)
        draft.keys |= {"engine": "command", "start_command": words.joined(command)}
        draft.note("engine", Note(f"[{section.name}]", "llmux's engine llama_cpp takes files and repositories only"))
    else:
        draft.is_usable = False
        draft.keys |= {"engine": "llama_cpp", "model_path": f"{section.name}.gguf", "extra_args": extra}
        draft.note("engine", Note(f"[{section.name}]", _NO_WEIGHTS))
    return draft


def _arguments(entry: Entry, draft: ModelDraft) -> Iterator[Given]:
    """The flag that a key stands for. Of a key that is none, a note."""
    written = llama_flags.dashed(entry.key)
    flag = llama_flags.find(written)
    value = entry.value.lower()
    if entry.key in _OF_THE_ROUTER:
        if entry.key == "sleep-idle-seconds":
            set_idle_seconds(draft, entry.value)
        elif note := _of_the_router(entry):
            draft.note("", note)
    elif flag is None:
        is_off = value in ("false", "off", "disabled")
        is_switch = is_off or value in ("true", "on", "enabled")
        draft.note("extra_args", Note(entry.key, _UNKNOWN_OFF if is_off else _UNKNOWN, entry.value))
        if not is_off:
            yield Given(None, (written,) if is_switch else (written, entry.value))
    elif flag.takes_value:
        yield Given(flag, (written, entry.value), entry.value, entry.key)
    elif word := _switch(written, flag, value not in _FALSE):
        yield Given(flag, (word,), entry.value, entry.key)


def _of_the_router(entry: Entry) -> Note | None:
    """The note about a key that is none of the engine's; None if its value asks for nothing."""
    match entry.key:
        case "load-on-startup":
            return Note(entry.key, _STARTS, suggested=("warmup: true",)) if entry.value.lower() not in _FALSE else None
        case "stop-timeout":
            return Note(entry.key, _STOPS, entry.value)
        case _:
            return Note(entry.key, _KEYS, entry.value)


def _switch(written: str, flag: Flag, is_set: bool) -> str:
    """The word for a flag without a value; empty if there is none that switches it off, which then is its default."""
    if is_set:
        return written
    return f"--{flag.name}" if written in flag.negatives else "".join(flag.negatives[-1:])
