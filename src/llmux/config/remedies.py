"""What to write instead of a value or a key that pydantic refuses. Values may be secrets and are not shown."""

import difflib
import re
from collections.abc import Iterable, Sequence

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from llmux.config.fields import Substituted
from llmux.config.position import Path, Position, position_of
from llmux.core.eviction import Process, Weights
from llmux.engines.registry import KINDS

KEYS_LISTED_MAX = 15
"""A longer list of allowed keys helps nobody."""

_EXAMPLES = {
    "models": "write models: {NAME: {model_path: PATH}}, the name as the key",
    "policy": "write policy: {policy_type: adaptive}",
    "checkpoint": "write checkpoint: {} for its defaults",
    "eviction": "write offload+keep_running, or {weights: offload, process: keep_running}",
    "env": 'write env: {NAME: "value"}',
    "extra_args": 'write a list with one word an item: [--max-model-len, "4096"]',
    "api_keys": 'write a list: ["${NAME}"]',
    "batch_api_keys": 'write a list: ["${NAME}"]',
    "admin_key": 'write one key: "${NAME}"',
    "aliases": "write a list: [NAME]",
    "cors_origins": 'write a list: ["https://chat.example.org"]',
    "allowed_hosts": "write a list: [llm.example.org]",
    "inference_paths": "write a list: [/v1/videos]",
    "command": "write the program alone; further words go into extra_args",
    "vllm_command": "write the program alone; further words go into extra_args",
    "host": "write one address, such as 127.0.0.1, or * for all",
}
"""The right form of a key for whoever knows another tool's."""

_EVICTIONS = tuple(f"{weights}+{process}" for weights in Weights for process in Process)
_PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WITH_UNIT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]+)")
_UNITS_OF_TIME = (
    ("ms", "msec", "msecs", "millisecond", "milliseconds"),
    ("s", "sec", "secs", "second", "seconds"),
    ("m", "min", "mins", "minute", "minutes"),
    ("h", "hr", "hrs", "hour", "hours"),
    ("d", "day", "days"),
)
_SECONDS_OF = dict(zip(_UNITS_OF_TIME, (0.001, 1, 60, 3600, 86400), strict=True))
_SECONDS = {word: seconds for words, seconds in _SECONDS_OF.items() for word in words}
_BYTES = {"b": 1} | {
    f"{letter}{ending}": base**power
    for power, letter in enumerate("kmgt", 1)
    for ending, base in (("", 1024), ("b", 1000), ("ib", 1024))
}
_TRUTH = {"yes": "true", "on": "true", "no": "false", "off": "false"}


def nearest(word: object, allowed: Iterable[str], otherwise: str | None = None) -> str:
    """A remedy: the closest allowed word if one is close, else ``otherwise``, by default all allowed words."""
    words = list(allowed)
    if close := difflib.get_close_matches(str(word).lower(), words, n=1, cutoff=0.6):
        return f"did you mean '{close[0]}'?"
    if otherwise is not None:
        return otherwise
    return f"allowed: {', '.join(words)}" if len(words) <= KEYS_LISTED_MAX else "`llmux schema` lists all keys"


def remedy(details: ErrorDetails, root: type[BaseModel]) -> str:
    """What to do about one error of a validation of ``root``; empty where the sentence says it all."""
    value = details["input"]
    match details["type"]:
        case "extra_forbidden":
            return _about_unknown(details["loc"], value, root)
        case "sleep_level":
            return "1 offload+keep_running, 2 discard+keep_running, 3 retain+cuda_suspend, 4 discard+checkpoint, 5 stop"
        case "eviction_text":
            return about_eviction(details["ctx"]["text"])
        case "missing":
            return "add it"
        case "too_short" if details["loc"] == ("models",):
            return "add at least one model"
        case "model_type" | "dict_type" | "tuple_type":
            return _example(details["loc"], value)
        case _ if value is None:
            return "write one, or remove it"
        case "enum":
            expected = [word.strip("' ") for word in details["ctx"]["expected"].replace(" or ", ", ").split(", ")]
            return nearest(value, expected, otherwise="")
        case _ if isinstance(value, Substituted):
            return f"it comes from {value.written}"
        case "string_type" | "path_type":
            return _about_text(details["loc"], value)
        case "int_type" | "float_type" | "bool_type" if isinstance(value, str):
            return _about_scalar(details["type"], str(details["loc"][-1]), value)
        case _:
            return ""


def about_eviction(text: str) -> str:
    """What to write for an eviction that is not one: the nearest, or all words."""
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text).replace(" ", "").lower()
    last = {Process.STOP: "retain+stop", Process.CHECKPOINT: "discard+checkpoint", "sleep": "offload+keep_running"}
    last |= {weights: f"{weights}+keep_running" for weights in (Weights.OFFLOAD, Weights.DISCARD)}
    words = "retain, offload or discard + keep_running, cuda_suspend, checkpoint or stop"
    return nearest(last.get(plain, plain), _EVICTIONS, otherwise=words)


def _about_unknown(path: Path, value: object, root: type[BaseModel]) -> str:
    key, section = str(path[-1]), position_of(root)
    if not key.isascii() and not key.strip().isascii():
        return "it contains characters that are not ASCII, perhaps blanks from a web page: type the line anew"
    if key != key.strip():
        return "there are blanks of another kind before it: indent with plain ones"
    position = _position_at(root, path[:-1])
    flag = f"--{key.lstrip('-').replace('_', '-')}"
    if path[:1] == ("models",) and any(flag in kind.read_flags for kind in KINDS.values()):
        return f"{flag} is a flag of the engine's, and goes into extra_args"
    if close := nearest(key, _keys_for(value, position), otherwise=""):
        return close
    for where, other in (("policy", "policy"), ("models", "each model")):
        place = section.below(where) if where == "policy" else section.below(where).below("NAME")
        if place is not position and key in place.keys:
            return f"it belongs below {other}"
    if position is not section and key in section.keys:
        return "it belongs to the top level"
    if path[:1] == ("models",) and len(path) == 3:
        return f"{nearest(key, position.keys)}; the engine's flags go into extra_args"
    if position is section and isinstance(value, dict | list):
        return f"`llmux schema` lists all keys; for YAML's anchors, name it x-{key}"
    return nearest(key, position.keys)


def _keys_for(value: object, position: Position) -> Sequence[str]:
    """The keys that an unknown one with this value may have been meant to be."""
    if not isinstance(value, dict):
        return position.keys
    places = {key: position.below(key) for key in position.keys}
    return [key for key, place in places.items() if place.keys or place.has_free_keys]


def _about_text(path: Path, value: object) -> str:
    match value:
        case bool() | int() | float():
            return "put it into quotes"
        case dict() if len(value) == 1 and next(iter(value)).startswith("-"):
            return "write the flag and its value as two items"
        case dict() if "extra_args" in path:
            return "put it into single quotes, as '{\"name\": …}'"
        case dict() | list():
            return _EXAMPLES.get(str(path[-1]), "write a single text")
        case _:
            return ""


def _about_scalar(kind: str, key: str, text: str) -> str:
    """About a text where a number, or true or false, belongs."""
    text = text.strip()
    if kind == "bool_type":
        if word := _TRUTH.get(text.lower()):
            return f"write {word}"
        return "write it without quotes" if text in ("true", "false") else ""
    if _PLAIN_NUMBER.fullmatch(text):
        return "write it without quotes"
    if re.fullmatch(r"[0-9]+([_,' ][0-9]{3})+", text):
        return f"write {re.sub('[^0-9]', '', text)}"
    if re.fullmatch(r"\+?0*[0-9]{1,15}", text):
        return f"write {int(text)}"
    return _about_unit(key, text)


def _about_unit(key: str, text: str) -> str:
    match = _WITH_UNIT.fullmatch(text)
    number, unit = (float(match[1]), match[2]) if match else (0.0, "")
    if key.endswith("_seconds"):
        factor = _SECONDS.get(unit.lower())
        return "times are numbers of seconds" + (f": write {number * factor:.10g}" if factor else "")
    if key.endswith(("_bytes", "_mib")):
        divisor, name = (2**20, "MiB") if key.endswith("_mib") else (1, "bytes")
        factor = _BYTES.get(unit.lower())
        return f"it is a number of {name}" + (f": write {round(number * factor / divisor)}" if factor else "")
    return ""


def _example(path: Path, value: object) -> str:
    if (
        isinstance(value, str)
        and (match := re.match(r"([a-z_]+):[^\s/]", value))
        and not isinstance(value, Substituted)
    ):
        return f"write a blank after {match[1]}:"
    if len(path) == 2 and path[0] == "models":
        return f"write {shown(path[1])}: {{model_path: PATH}}"
    return _EXAMPLES.get(str(path[-1]), "")


def shown(part: str | int) -> str:
    """A part of a path in a message."""
    text = str(part)
    return text if text and text.isprintable() else ascii(text)


def _position_at(root: type[BaseModel], path: Path) -> Position:
    position = position_of(root)
    for part in path:
        position = position.below(part)
    return position
