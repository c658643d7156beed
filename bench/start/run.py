"""What the start of a server takes: processor time and wall time until it accepts, answers, and says that it is ready.

    python bench/start/run.py [--rounds 20] [--models 100] [--python OTHER/bin/python]

README.md says what is measured.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.conditions import describe_machine, describe_python

LIMIT_SECONDS = 60.0
POLL_SECONDS = 0.002
ASKED = ("/v1/models", "/metrics", "/control/status")
"""After /health, in this order, each on a connection of its own, to a server that has just begun to listen."""
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Moment:
    """What a server has taken up to there."""

    cpu_ms: float
    """User and system time of all of its threads, also of those that have ended."""
    wall_ms: float


@dataclass
class Candidate:
    """An interpreter whose llmux is started, and what its starts took so far."""

    python: str
    moments: dict[str, list[Moment]]


def configuration(folder: Path, models: int, notation: str) -> Path:
    """A file with so many models, as people write them."""
    entries = {
        f"model-{number}": {
            "model_path": f"organisation/Model-{number}-8B-Instruct",
            "aliases": [f"alias-{number}"],
            "extra_args": ["--max-model-len", 16384, "--gpu-memory-utilization", 0.9],
            "eviction": "offload+keep_running",
            "env": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
        }
        for number in range(models)
    }
    top = {"vllm_command": sys.executable, "metrics_port": free_port(), "policy": {"policy_type": "adaptive"}}
    if notation == "json":
        file = folder / "llmux.json"
        file.write_text(json.dumps({**top, "models": entries}, indent=2))
        return file
    lines = [f"{key}: {json.dumps(value)}" for key, value in top.items()]
    lines.append("models:")
    for name, entry in entries.items():
        lines.append(f"  {name}:")
        for key, value in entry.items():
            is_text = isinstance(value, str)
            lines.append(f"    {key}: {value if is_text else json.dumps(value)}")
    file = folder / "llmux.yaml"
    file.write_text("\n".join(lines) + "\n")
    return file


def free_port() -> int:
    """One that nothing listens on at the moment."""
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def cpu_ms(pid: int) -> float:
    """Processor time of a process so far: the clock of another process, as clock_getcpuclockid(3) names it."""
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e6


def start(python: str, config: Path) -> dict[str, Moment]:
    """Start a server once and kill it; what it had taken up to each moment, and what each first answer took alone."""
    port = free_port()
    began = time.perf_counter()
    command = [python, "-m", "llmux", "serve", "-c", str(config), "-p", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        moments = {}

        def now() -> Moment:
            return Moment(cpu_ms(process.pid), (time.perf_counter() - began) * 1000)

        connection = connect(port, process)
        moments["accepts"] = now()
        ask(connection, "/health")
        moments["answers /health"] = now()
        for path in ASKED:
            before = now()
            ask(connect(port, process), path)
            after = now()
            moments[f"first {path}"] = Moment(after.cpu_ms - before.cpu_ms, after.wall_ms - before.wall_ms)
        while not is_ready(connect(port, process)):
            time.sleep(POLL_SECONDS)
        moments["is ready"] = now()
        return moments
    finally:
        process.kill()
        process.wait()


def connect(port: int, process: "subprocess.Popen[str]") -> socket.socket:
    """Connect as soon as the server accepts."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return socket.create_connection((HOST, port), LIMIT_SECONDS)
        except ConnectionRefusedError:
            time.sleep(POLL_SECONDS)
    process.kill()
    assert process.stderr is not None
    raise SystemExit(f"the server did not start:\n{process.stderr.read()}")


def ask(connection: socket.socket, path: str) -> None:
    """Send one request and read its whole answer, which must be 200."""
    answer = answer_to(connection, path)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"{path} was answered with {answer[:200]!r}")


def is_ready(connection: socket.socket) -> bool:
    """Whether the server says that its start is over."""
    return answer_to(connection, "/ready").startswith(b"HTTP/1.1 200")


def answer_to(connection: socket.socket, path: str) -> bytes:
    """Send one request, the last on its connection, and read all of the answer."""
    with connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def report(candidate: Candidate) -> None:
    """Print the least and the median of every moment."""
    print(candidate.python)
    for name, moments in candidate.moments.items():
        cpu, wall = [moment.cpu_ms for moment in moments], [moment.wall_ms for moment in moments]
        print(
            f"  {name:<22} cpu min {min(cpu):6.0f} median {median(cpu):6.0f}   "
            f"wall min {min(wall):6.0f} median {median(wall):6.0f} ms"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Start each candidate once in each round, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--notation", choices=("yaml", "json"), default="yaml", help="how the file is written")
    parser.add_argument("--python", action="append", default=[], help="start also the llmux of this interpreter")
    options = parser.parse_args(arguments)
    candidates = [Candidate(python, {}) for python in (sys.executable, *options.python)]
    print(describe_machine(), *(describe_python(one.python) for one in candidates), sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder), options.models, options.notation)
        for number in range(options.rounds + 1):
            for candidate in candidates:
                for name, moment in start(candidate.python, config).items():
                    if number:  # The first round writes the modules' bytecode and fills the page cache.
                        candidate.moments.setdefault(name, []).append(moment)
    print(f"{options.models} models, {options.notation}, {options.rounds} rounds")
    for candidate in candidates:
        report(candidate)


if __name__ == "__main__":
    main()
