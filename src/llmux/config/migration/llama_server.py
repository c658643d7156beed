"""Which flags of llama-server a converted file does not have, because llmux sets or refuses them."""

from llmux.engines.llama_flags import Flag

MODEL, HF_REPO, ALIAS = "model", "hf-repo", "alias"
SET_BY_LLMUX = "llmux sets it itself"
_OWN = ("host", "port", ALIAS)
_TOOLS = "it would let clients run tools, and reach files, on this machine"
_ROUTER = "it belongs to llama.cpp's router, whose work llmux does"
_TLS = "engines listen on loopback, without TLS"
_REFUSED = {
    "agent": _TOOLS,
    "tools": _TOOLS,
    "tools-runtime": _TOOLS,
    "mcp-servers-config": _TOOLS,
    "mcp-servers-json": _TOOLS,
    "ui-mcp-proxy": _TOOLS,
    "models-autoload": _ROUTER,
    "models-dir": _ROUTER,
    "models-max": _ROUTER,
    "models-preset": _ROUTER,
    "ssl-cert-file": _TLS,
    "ssl-key-file": _TLS,
    "api-prefix": "llmux asks for the engine's paths as they are",
    "reuse-port": "two engines would share a port",
    "slot-save-path": "llmux saves prompts itself, below cache_dir",
}


def why_dropped(flag: Flag) -> str:
    """Why llmux does not pass the flag on; empty if it does."""
    return SET_BY_LLMUX if flag.name in _OWN else _REFUSED.get(flag.name, "")
