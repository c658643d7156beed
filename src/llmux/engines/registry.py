"""The kinds of engines, by the name that the configuration gives them."""

from collections.abc import Mapping

from llmux.engines.base import Engine, EngineOptions
from llmux.engines.command import Command
from llmux.engines.hooks import Hooks
from llmux.engines.llama_cpp import LlamaCpp
from llmux.engines.remote import Remote
from llmux.engines.sglang import Sglang
from llmux.engines.vllm import Vllm

DEFAULT_KIND = Vllm.kind

KINDS: Mapping[str, type[Engine]] = {kind.kind: kind for kind in (Vllm, LlamaCpp, Sglang, Command, Hooks, Remote)}

NEVER_FORWARDED = frozenset(name for kind in KINDS.values() for name in kind.rules.never_forwarded)
"""Of all kinds together: what is never forwarded to one engine is not forwarded to another either."""
NEVER_FORWARDED_PREFIXES = tuple(prefix for kind in KINDS.values() for prefix in kind.rules.never_forwarded_prefixes)


def engine_of(kind: str, options: EngineOptions) -> Engine:
    """The engine of one model; ``kind`` must be one of ``KINDS``."""
    return KINDS[kind](options)
