"""What vLLM's arguments say of a model: its names, its adapters, its longest request."""

import json
import re
from collections.abc import Sequence

from llmux.engines import arguments

# Flags that llmux reads, with their synonyms.
GPU_FACTORS = (("--tensor-parallel-size", "-tp"), ("--pipeline-parallel-size", "-pp"), ("--data-parallel-size", "-dp"))
MAX_IN_FLIGHT = ("--max-num-seqs",)
GPU_SHARE = ("--gpu-memory-utilization",)
KV_CACHE_BYTES = ("--kv-cache-memory-bytes", "--kv-cache-memory")
SERVED_NAMES = ("--served-model-name",)
LORA_MODULES = ("--lora-modules",)
MAX_MODEL_LENGTH = ("--max-model-len",)
API_KEY = ("--api-key",)
KV_OFFLOADING_SIZE = ("--kv-offloading-size",)
KV_OFFLOADING_BACKEND = ("--kv-offloading-backend",)
KV_CONNECTOR = ("--kv-transfer-config",)

_LENGTH = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)([kmgtKMGT])?")
_UNITS = {unit: 1000**power for power, unit in enumerate("kmgt", 1)}
_UNITS |= {unit: 1024**power for power, unit in enumerate("KMGT", 1)}


def served_names(words: Sequence[str]) -> tuple[str, ...]:
    """The names after ``--served-model-name``."""
    return arguments.last_values(words, SERVED_NAMES)


def lora_modules(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Name and path of each adapter after ``--lora-modules``, written as ``name=path`` or as a JSON object.

    What vLLM does not read either is left out.
    """
    words = arguments.last_values(words, LORA_MODULES)
    return tuple(module for word in words if (module := _lora_module(word)) is not None)


def unreadable_lora_modules(words: Sequence[str]) -> tuple[str, ...]:
    """The words after any ``--lora-modules`` that stand for no adapter."""
    return tuple(word for word in arguments.every_value(words, LORA_MODULES) if word and _lora_module(word) is None)


def _lora_module(word: str) -> tuple[str, str] | None:
    if "=" in word and "," not in word:
        name, _, path = word.partition("=")
        return (name, path) if name else None
    try:
        module = json.loads(word)
    except (ValueError, RecursionError):
        return None
    match module:
        case {"name": str(name), "path": str(path)} if name:
            return name, path
        case _:
            return None


def max_model_length(words: Sequence[str]) -> int | None:
    """The value of ``--max-model-len`` in tokens, read as vLLM does: 8k is 8000, 8K is 8192, 25.6k is 25600.

    None if it is absent, left to the engine (-1, auto), or no such number.
    """
    match = _LENGTH.fullmatch((arguments.value(words, MAX_MODEL_LENGTH) or "").strip())
    if match is None:
        return None
    number, unit = match[1], match[2]
    if "." not in number:
        return int(number) * (_UNITS[unit] if unit else 1)
    return int(float(number) * _UNITS[unit]) if unit and unit.islower() else None
