"""The kinds of engines that the suite runs over: how models of each kind are configured, and what they can do.

A kind is entered here once, and every test of the suite runs over it. Where a kind cannot show something (a remote
engine has no process to kill), the test says so by the kind's traits and asserts what holds instead.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import real_llama
from tests.support.real_criu import CRIU
from tests.support.server import NO_CERTIFICATES, SIMULATED_ENGINE

Models = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of engine, as the suite drives it."""

    name: str
    models: Callable[[Path], Models]
    """The section ``models`` with two of them, ``a`` and ``b``, both quick to start; may write into the directory."""
    broken: Callable[[Path], Mapping[str, Any]]
    """A model's section whose engine cannot start."""
    broken_cause: str
    """What a client is told of that, a regular expression."""
    evictions: tuple[str, ...] = ("retain+stop",)
    """The ways to leave that are tried one after the other."""
    token_delay: Mapping[str, Any] = field(default_factory=dict)
    """Changes to a model's section that make each token of an answer take about 20 ms."""
    has_canary: bool = True
    owns_processes: bool = True
    """Whether llmux has the engine's processes, and sees and reports their end."""
    streams: bool = True
    top_level: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[pytest.MarkDecorator, ...] = ()

    def __str__(self) -> str:
        return self.name

    def config(self, directory: Path, *, slow: bool = False, eviction: str | None = None) -> dict[str, Any]:
        """The whole configuration; with ``slow``, ``a`` answers slowly."""
        models = {name: dict(section) for name, section in self.models(directory).items()}
        if slow:
            models["a"] = merged(models["a"], self.token_delay)
        if eviction is not None:
            models = {name: {**section, "eviction": eviction} for name, section in models.items()}
        return {
            "port": 0,
            "metrics_port": 0,
            "policy": {"policy_type": "fifo", "min_active_seconds": 0.0},
            "models": models,
            "cache_dir": str(directory / "cache"),
            **self.top_level,
        }


def merged(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The section with the changes; lists are appended to, mappings merged."""
    result = dict(section)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, list):
            result[key] = [*old, *value]
        elif isinstance(old, Mapping):
            result[key] = {**old, **value}
        else:
            result[key] = value
    return result


def _vllm(_: Path) -> Models:
    return {
        name: {
            "model_path": f"models/{name}",
            "command": SIMULATED_ENGINE,
            "extra_args": ["--latency-ms", "1", "--token-ms", "0"],
            "env": dict(NO_CERTIFICATES),
        }
        for name in "ab"
    }


def _sglang(_: Path) -> Models:
    return {
        name: {
            "engine": "sglang",
            "model_path": f"models/{name}",
            "command": SIMULATED_ENGINE,
            "extra_args": ["--latency-ms", "1", "--token-ms", "0", "--sim-health-poll-ms", "10", "--sim-free-ms", "10"],
            "env": {**NO_CERTIFICATES, "LLMUX_SIM_KIND": "sglang"},
        }
        for name in "ab"
    }


SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.answer({"status": "ok"})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        message = {"role": "assistant", "content": "I am " + sys.argv[2]}
        self.answer({"model": body["model"], "choices": [{"index": 0, "message": message, "text": message["content"]}]})
    def answer(self, document):
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
"""A plain Python server with no more of OpenAI's API than an answer."""


def _command(directory: Path) -> Models:
    script = directory / "server.py"
    script.write_text(SERVER)
    start = [sys.executable, "-S", str(script), "{port}", "{name}"]
    return {name: {"engine": "command", "start_command": start} for name in "ab"}


def _llama(_: Path) -> Models:
    return {name: _llama_section(name) for name in "ab"}


def _llama_section(name: str) -> Mapping[str, Any]:
    if real_llama.MISSING:
        return {}
    return {
        "engine": "llama_cpp",
        "model_path": str(real_llama.model_path(name)),
        "command": real_llama.program(),
        "extra_args": [*real_llama.ONE_THREAD, "-dev", "none", "-np", "2", "-c", "8192"],
    }


KINDS = (
    Kind(
        name="llama_cpp",
        models=_llama,
        broken=lambda directory: {**_llama(directory)["a"], "extra_args": ["-dev", "none", "--no-such-flag"]},
        broken_cause="wrong extra_args",
        evictions=("retain+stop", *(["retain+checkpoint"] if CRIU else [])),
        token_delay={"model_path": str(real_llama.model_path("slow")) if not real_llama.MISSING else ""},
        top_level={"checkpoint": {"criu_path": CRIU}} if CRIU else {},
        marks=(pytest.mark.llama, pytest.mark.skipif(bool(real_llama.MISSING), reason=real_llama.SKIP_REASON)),
    ),
    Kind(
        name="vllm",
        models=_vllm,
        broken=lambda directory: {**_vllm(directory)["a"], "extra_args": ["--no-such-flag"]},
        broken_cause="wrong extra_args",
        evictions=("offload+keep_running", "discard+keep_running", "retain+stop"),
        token_delay={"extra_args": ["--token-ms", "20"]},
    ),
    Kind(
        name="sglang",
        models=_sglang,
        broken=lambda directory: {**_sglang(directory)["a"], "extra_args": ["--no-such-flag"]},
        broken_cause="wrong extra_args",
        evictions=("offload+keep_running", "discard+keep_running", "retain+stop"),
        token_delay={"extra_args": ["--token-ms", "20"]},
    ),
    Kind(
        name="command",
        models=_command,
        broken=lambda directory: {"engine": "command", "start_command": [sys.executable, "-c", "1/0 # {port}"]},
        broken_cause="ended with exit code 1",
        streams=False,
    ),
)


def each(condition: Callable[[Kind], bool] = lambda kind: True) -> pytest.MarkDecorator:
    """Run a test over every kind for which the condition holds."""
    chosen = [pytest.param(kind, id=kind.name, marks=kind.marks) for kind in KINDS if condition(kind)]
    return pytest.mark.parametrize("kind", chosen)
