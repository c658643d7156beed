"""What is compared, and how each is started: llmux, nginx and routers of the package index, each before an engine."""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.proxies import OTHER_CPU, PROXY_CPU, nginx_command, own_cpu_microseconds, running

ENGINE = "upstream"
MODELS = 40
STREAMS_MAX = 2000
START_SECONDS = 240.0
INSTALL_SECONDS = 900.0
ANSWER_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Peer:
    """A router that installs from the package index. ``{port}``, ``{engine}`` and ``{folder}`` are filled in."""

    requirement: str
    program: str
    arguments: Sequence[str]
    environment: Sequence[str] = ()
    rewrites: bool = False
    """It composes the answer anew, so that this is not the engine's, byte for byte."""


_ROUTER = ("--worker-urls", "http://127.0.0.1:{engine}", "--host", "127.0.0.1", "--port", "{port}")
_ROUTER += ("--policy", "round_robin", "--log-level", "error")
PEERS = {
    "vllm-router": Peer("vllm-router", "vllm-router", _ROUTER),
    "smg": Peer("smg", "smg", ("launch", *_ROUTER, "--prometheus-port", "{metrics}")),
    "litellm": Peer(
        "litellm[proxy]",
        "litellm",
        ("--config", "{folder}/litellm.yaml", "--host", "127.0.0.1", "--port", "{port}", "--num_workers", "1"),
        environment=(
            "LITELLM_LOCAL_MODEL_COST_MAP=True",
            "LITELLM_LOG=ERROR",
            "DISABLE_ADMIN_UI=True",
            # Like the others it is to run without keys, and refuses to unless it is told so.
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY=true",
        ),
        rewrites=True,
    ),
}


@dataclass(slots=True)
class Candidate:
    """A running one, or the engine itself, without any between."""

    name: str
    port: int
    process: subprocess.Popen[bytes] | None
    rewrites: bool = False
    failures: dict[str, str] = field(default_factory=dict)
    """By workload, why there are no figures."""

    @property
    def is_peer(self) -> bool:
        """Whether its failure leaves the others' figures as they are."""
        return self.name.partition(" ")[0] in PEERS

    def cpu_microseconds(self) -> float:
        """CPU time of all threads of the whole process tree so far, but for an engine that it has started."""
        return 0.0 if self.process is None else sum(map(own_cpu_microseconds, _tree(self.process.pid)))

    def memory_kib(self) -> float:
        """Memory of the same processes (Pss: what several share is divided among them)."""
        assert self.process is not None
        files = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in _tree(self.process.pid)]
        return sum(int(line.split()[1]) for text in files for line in text.splitlines() if line.startswith("Pss:"))


def _tree(pid: int) -> Iterator[int]:
    if Path(f"/proc/{pid}/comm").read_text().strip() == ENGINE:
        return
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _tree(int(child))


class Candidates:
    """Starts them, each before an engine of its own, and stops them all at the end of the block."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._engine = compiled(folder, ENGINE)
        self.running: list[Candidate] = []
        self.absent: dict[str, str] = {}
        """Those that could not be started, and why."""

    def add_engine(self) -> Candidate:
        """The engine alone: what comes on top of it is the price of a candidate."""
        return self._add(Candidate("none", self._start_engine(), None))

    def add_nginx(self) -> Candidate:
        """One worker, no access log, keep-alive to the engine; neither answers nor bodies are buffered."""
        unlimited = "keepalive_requests 1000000000;"
        http = f"{unlimited} client_max_body_size 0; proxy_request_buffering off;"
        port, engine = _free_port(), self._start_engine()
        command = nginx_command(self._own_folder("nginx"), port, engine, http=http, upstream=unlimited)
        return self._start("nginx", command, port)

    def add_llmux(self, python: str, name: str) -> Candidate:
        """40 models are configured, metrics on; it starts the engine of the one that is asked for."""
        folder, port = self._own_folder(name), _free_port()
        program = folder / "engine"
        program.write_text(f'#!/bin/sh\nexec taskset -c {OTHER_CPU} {self._engine} "$@"\n')
        program.chmod(0o755)
        names = [f"model-{number:02d}" for number in range(MODELS)]
        models = {name: {"model_path": name, "max_in_flight": STREAMS_MAX} for name in names}
        content = {"vllm_command": str(program), "port": port, "metrics_port": 0, "models": models}
        config = folder / "config.json"
        config.write_text(json.dumps(content | {"cache_dir": str(folder / "cache")}))
        return self._start(name, [python, "-m", "llmux", "serve", "-c", str(config)], port)

    def add_peer(self, name: str, cache: Path) -> None:
        """A router in an environment of its own, which is made at the first use; ``absent`` says why there is none."""
        peer, port, engine = PEERS[name], _free_port(), self._start_engine()
        try:
            program, version = _install(peer, cache / name)
        except (OSError, subprocess.SubprocessError) as error:
            self.absent[name] = f"cannot be installed: {_last_line(error)}"
            return
        folder = self._own_folder(name)
        litellm = {"model": "openai/model-00", "api_base": f"http://127.0.0.1:{engine}/v1", "api_key": "none"}
        models = [{"model_name": "model-00", "litellm_params": litellm}]
        (folder / "litellm.yaml").write_text(json.dumps({"model_list": models}))
        known = {"port": port, "engine": engine, "folder": folder, "metrics": _free_port()}
        command = ["env", *peer.environment, str(program), *(argument.format(**known) for argument in peer.arguments)]
        try:
            self._start(f"{name} {version}", command, port, rewrites=peer.rewrites)
        except SystemExit as error:
            self.absent[name] = str(error)

    def _start(self, name: str, command: Sequence[str], port: int, *, rewrites: bool = False) -> Candidate:
        output = self._stack.enter_context((self._own_folder(name) / "output").open("wb"))
        process = self._stack.enter_context(running(command, PROXY_CPU, output, subprocess.STDOUT))
        candidate = Candidate(name, port, process, rewrites)
        _await_answer(candidate)
        return self._add(candidate)

    def _add(self, candidate: Candidate) -> Candidate:
        self.running.append(candidate)
        return candidate

    def _start_engine(self) -> int:
        port = _free_port()
        self._stack.enter_context(running([str(self._engine), "--port", str(port)], OTHER_CPU, subprocess.DEVNULL))
        return port

    def _own_folder(self, name: str) -> Path:
        folder = self._folder / name.replace(" ", "-").replace("/", "-")
        folder.mkdir(exist_ok=True)
        return folder


def compiled(folder: Path, name: str) -> Path:
    """Compile one of this bench's C programs."""
    program = folder / name
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(program), str(Path(__file__).parent / f"{name}.c")], check=True)
    return program


def _install(peer: Peer, folder: Path) -> tuple[Path, str]:
    """The program and its version."""
    python = folder / "bin" / "python"
    program = folder / "bin" / peer.program
    if not program.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", peer.requirement])
    name = peer.requirement.partition("[")[0]
    question = f"from importlib.metadata import version; print(version({name!r}))"
    return program, _run([str(python), "-c", question]).strip()


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS).stdout


def _last_line(error: Exception) -> str:
    told = getattr(error, "stderr", None) or str(error)
    return str(told).strip().splitlines()[-1]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _await_answer(candidate: Candidate) -> None:
    """Wait until it serves, and see that its answer is the engine's. SystemExit if not."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            answer = asyncio.run(_ask(candidate.port))
            break
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            assert candidate.process is not None
            if (code := candidate.process.poll()) is not None:
                raise SystemExit(f"{candidate.name} has ended with code {code}") from None
            if time.monotonic() > deadline:
                raise SystemExit(f"{candidate.name} does not answer: {error!r}") from None
            time.sleep(0.1)
    if not candidate.rewrites and len(answer) != ANSWER_BYTES:
        raise SystemExit(f"{candidate.name} changes the answer")


async def _ask(port: int) -> bytes:
    """The body of an answer. ValueError unless its status is 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"model":"model-00","messages":[{"role":"user","content":"hello"}]}'
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n")
    writer.write(b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    try:
        async with asyncio.timeout(10):
            head, _, begin = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if not head.startswith(b"HTTP/1.1 200"):
        raise ValueError(head[:100])
    return begin
