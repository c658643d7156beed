"""The kinds of engines that the suite runs over: how models of each kind are configured, and what they can do.

A kind is entered here once, and every test of the suite runs over it. Where a kind cannot show something (a remote
engine has no process to kill), the test says so by the kind's traits and asserts what holds instead.
"""

import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from llmux.hosts.local import choose_ports
from tests.support import real_llama
from tests.support.real_criu import CRIU
from tests.support.server import NO_CERTIFICATES, SIMULATED_ENGINE

LISTEN_SECONDS = 30.0
Models = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where a test's models live: a directory of its own, and what is to be ended with the test."""

    directory: Path
    cleanup: ExitStack


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of engine, as the suite drives it."""

    name: str
    models: Callable[[Place], Models]
    """The section ``models`` with two of them, ``a`` and ``b``, quick to start; may write and start things there."""
    broken: Callable[[Place], Mapping[str, Any]]
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

    def config(self, place: Place, *, slow: bool = False, eviction: str | None = None) -> dict[str, Any]:
        """The whole configuration; with ``slow``, ``a`` answers slowly."""
        models = {name: dict(section) for name, section in self.models(place).items()}
        if slow:
            models["a"] = merged(models["a"], self.token_delay)
        if eviction is not None:
            models = {name: {**section, "eviction": eviction} for name, section in models.items()}
        return {
            "port": 0,
            "metrics_port": 0,
            "policy": {"policy_type": "fifo", "min_active_seconds": 0.0},
            "models": models,
            "cache_dir": str(place.directory / "cache"),
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


def _vllm(_: Place) -> Models:
    return {
        name: {
            "model_path": f"models/{name}",
            "command": SIMULATED_ENGINE,
            "extra_args": ["--latency-ms", "1", "--token-ms", "0"],
            "env": dict(NO_CERTIFICATES),
        }
        for name in "ab"
    }


def _sglang(_: Place) -> Models:
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


def _command(place: Place) -> Models:
    script = place.directory / "server.py"
    script.write_text(SERVER)
    start = [sys.executable, "-S", str(script), "{port}", "{name}"]
    return {name: {"engine": "command", "start_command": start} for name in "ab"}


def _llama(_: Place) -> Models:
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


def _hooks(place: Place) -> Models:
    return {name: _hooked(place, name) for name in "ab"}


def _hooked(place: Place, name: str) -> dict[str, Any]:
    (port,) = choose_ports(1)
    pid = place.directory / f"{name}.pid"
    start = f"{SIMULATED_ENGINE} serve {name} --port {port} --latency-ms 1 --token-ms 0"
    return {
        "engine": "hooks",
        "model_path": name,
        "url": f"http://127.0.0.1:{port}",
        "wake_command": f"{start} >/dev/null 2>&1 & echo $! >{pid}",
        "sleep_command": f"test ! -e {pid} || kill $(cat {pid}); rm -f {pid}",
    }


def _remote(place: Place) -> Models:
    return {name: _running(place, name) for name in "ab"}


def _running(place: Place, name: str) -> dict[str, Any]:
    (port,) = choose_ports(1)
    command = (SIMULATED_ENGINE, "serve", name, "--port", str(port), "--latency-ms", "1", "--token-ms", "5")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    place.cleanup.callback(process.wait)
    place.cleanup.callback(process.kill)
    wait_until_listening(port)
    return {"engine": "remote", "url": f"http://127.0.0.1:{port}", "model_path": name}


def wait_until_listening(port: int) -> None:
    """Wait until something accepts connections there."""
    deadline = monotonic() + LISTEN_SECONDS
    while monotonic() < deadline:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        sleep(0.05)
    raise AssertionError(f"nothing listens on port {port}")


KINDS = (
    Kind(
        name="llama_cpp",
        models=_llama,
        broken=lambda place: {**_llama(place)["a"], "extra_args": ["-dev", "none", "--no-such-flag"]},
        broken_cause="wrong extra_args",
        evictions=("retain+stop", *(["retain+checkpoint"] if CRIU else [])),
        token_delay={"model_path": str(real_llama.model_path("slow")) if not real_llama.MISSING else ""},
        top_level={"checkpoint": {"criu_path": CRIU}} if CRIU else {},
        marks=(pytest.mark.llama, pytest.mark.skipif(bool(real_llama.MISSING), reason=real_llama.SKIP_REASON)),
    ),
    Kind(
        name="vllm",
        models=_vllm,
        broken=lambda place: {**_vllm(place)["a"], "extra_args": ["--no-such-flag"]},
        broken_cause="wrong extra_args",
        evictions=("retain+keep_running", "offload+keep_running", "discard+keep_running", "retain+stop"),
        token_delay={"extra_args": ["--token-ms", "20"]},
    ),
    Kind(
        name="sglang",
        models=_sglang,
        broken=lambda place: {**_sglang(place)["a"], "extra_args": ["--no-such-flag"]},
        broken_cause="wrong extra_args",
        evictions=("retain+keep_running", "offload+keep_running", "discard+keep_running", "retain+stop"),
        token_delay={"extra_args": ["--token-ms", "20"]},
    ),
    Kind(
        name="command",
        models=_command,
        broken=lambda place: {"engine": "command", "start_command": [sys.executable, "-c", "1/0 # {port}"]},
        broken_cause="ended with exit code 1",
        streams=False,
    ),
    Kind(
        name="hooks",
        models=_hooks,
        broken=lambda place: {**_hooked(place, "broken"), "wake_command": "echo no way; exit 3"},
        broken_cause="the wake_command ended with exit code 3",
        evictions=("offload+keep_running", "retain+stop"),
        has_canary=False,
        owns_processes=False,
    ),
    Kind(
        name="remote",
        models=_remote,
        broken=lambda place: {"engine": "remote", "url": f"http://127.0.0.1:{choose_ports(1)[0]}"},
        broken_cause="could not be started",
        evictions=("retain+keep_running",),
        has_canary=False,
        owns_processes=False,
    ),
)


def each(condition: Callable[[Kind], bool] = lambda kind: True) -> pytest.MarkDecorator:
    """Run a test over every kind for which the condition holds."""
    chosen = [pytest.param(kind, id=kind.name, marks=kind.marks) for kind in KINDS if condition(kind)]
    return pytest.mark.parametrize("kind", chosen)
