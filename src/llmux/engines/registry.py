"""The kinds of engines, by the name that the configuration gives them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from llmux.engines.base import Engine
from llmux.engines.command import Command
from llmux.engines.hooks import Hooks
from llmux.engines.llama_cpp import LlamaCpp
from llmux.engines.remote import Remote
from llmux.engines.sglang import Sglang
from llmux.engines.vllm import Vllm

DEFAULT_KIND = Vllm.kind

KINDS: Mapping[str, type[Engine]] = {kind.kind: kind for kind in (Vllm, LlamaCpp, Sglang, Command, Hooks, Remote)}

KEYS_OF_SOME_KINDS = frozenset(key for kind in KINDS.values() for key in kind.own_keys)
"""Keys of a model's section that mean nothing for a kind that does not list them among its own."""

NEVER_FORWARDED = frozenset(name for kind in KINDS.values() for name in kind.rules.never_forwarded)
"""Of all kinds together: what is never forwarded to one engine is not forwarded to another either."""
NEVER_FORWARDED_PREFIXES = tuple(prefix for kind in KINDS.values() for prefix in kind.rules.never_forwarded_prefixes)

_DESCRIPTIONS = Path(__file__).with_name("descriptions")


@cache
def described_kinds() -> tuple[str, ...]:
    """The kinds that llmux comes with as descriptions. Reads the disk."""
    return tuple(sorted(file.stem for file in _DESCRIPTIONS.glob("*.yaml")))


def description_file(kind: str) -> Path:
    """Where the description of one of ``described_kinds`` is, in the form that the configuration has for it."""
    return _DESCRIPTIONS / f"{kind}.yaml"
