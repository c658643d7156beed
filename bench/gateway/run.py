"""CPU of llmux's data plane beside nginx: per 1 KB request, and per streamed chunk.

``python bench/gateway/run.py [--rounds N] [--check]``; README.md says what is measured and how.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.proxies import OTHER_CPU, PROXY_CPU, nginx_command, pinned, running

HERE = Path(__file__).parent
MODELS = 40
CONNECTIONS = 64
STREAMS = 200
SPACING_MS = 20
CHUNK_BYTES = 250
ENGINE = "upstream"
BARS = {"request": 1.5, "chunk": 1.2}


@dataclass(slots=True)
class Proxy:
    """A running candidate."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    microseconds: dict[str, list[float]] = field(default_factory=lambda: {"request": [], "chunk": []})

    def cpu_microseconds(self) -> float:
        """CPU time of all threads of the whole process tree so far, but for the engine that llmux has started."""
        return sum(map(_own_cpu_microseconds, _tree(self.process.pid)))


def _tree(pid: int) -> Iterator[int]:
    if Path(f"/proc/{pid}/comm").read_text().strip() == ENGINE:
        return
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _tree(int(child))


def _own_cpu_microseconds(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1000


async def _ask(port: int, model: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"model":"%b"}' % model.encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n")
    writer.write(b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    answer = b""
    try:
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            answer = await reader.readexactly(2048)
    finally:
        writer.close()
    return answer


def _check(proxy: Proxy, upstream_port: int) -> None:
    """Wait until it serves, and see that its answer is the engine's."""
    deadline = time.monotonic() + 60
    while True:
        try:
            asyncio.run(_ask(proxy.port, "model-00"))
            break
        except (OSError, asyncio.IncompleteReadError, AssertionError):
            if time.monotonic() > deadline or proxy.process.poll() is not None:
                raise SystemExit(f"{proxy.name} does not answer on port {proxy.port}") from None
            time.sleep(0.1)
    if asyncio.run(_ask(proxy.port, "model-00")) != asyncio.run(_ask(upstream_port, "any")):
        raise SystemExit(f"{proxy.name} changes the answer")


def _requests(port: int, seconds: float) -> tuple[int, int]:
    """Requests answered and errors."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "-s", str(HERE / "post.lua")]
    command += [f"http://127.0.0.1:{port}", "--", "1"]
    output = subprocess.run(pinned(OTHER_CPU, command), check=True, capture_output=True, text=True).stdout
    result = next(line for line in output.splitlines() if line.startswith("RESULT"))
    answered, errors = map(int, result.split()[1:])
    return answered, errors


def _streams(program: Path, port: int, chunks: int) -> tuple[int, int]:
    """Chunks received and errors."""
    command = [str(program), *map(str, (port, STREAMS, chunks, 1, SPACING_MS))]
    output = subprocess.run(pinned(OTHER_CPU, command), check=True, capture_output=True, text=True).stdout
    received, errors = map(int, output.split())
    return received, errors


def _measure(proxy: Proxy, kind: str, streams: Path, seconds: float) -> None:
    before = proxy.cpu_microseconds()
    if kind == "request":
        count, errors = _requests(proxy.port, seconds)
    else:
        count, errors = _streams(streams, proxy.port, round(seconds * 1000 / SPACING_MS))
    used = proxy.cpu_microseconds() - before
    if errors or not count:
        raise SystemExit(f"{proxy.name}, {kind}: {errors} errors in {count}: the benchmark has failed")
    proxy.microseconds[kind].append(used / count)


def _compile(folder: Path, name: str) -> Path:
    program = folder / name
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(program), str(HERE / f"{name}.c")], check=True)
    return program


def _write_config(folder: Path, engine: Path, port: int, engine_port: int, chunks: int) -> Path:
    """A configuration of 40 models with metrics on; the engine of the one that is asked for runs beside the clients."""
    program = folder / "engine"
    program.write_text(f'#!/bin/sh\nexec taskset -c {OTHER_CPU} {engine} "$@"\n')
    program.chmod(0o755)
    names = [f"model-{number:02d}" for number in range(MODELS)]
    models: dict[str, dict[str, object]] = {name: {"model_path": name} for name in names}
    models["model-00"] |= {"port": engine_port, "env": {"BENCH_STREAM": f"{SPACING_MS} {chunks} {CHUNK_BYTES}"}}
    config = folder / "config.json"
    config.write_text(json.dumps({"vllm_command": str(program), "port": port, "metrics_port": 0, "models": models}))
    return config


def _report(nginx: Proxy, llmux: Proxy) -> bool:
    print(f"{'':8} {'nginx':>18} {'llmux':>18} {'llmux/nginx':>22}   bar")
    passed = True
    for kind, bar in BARS.items():
        ours, theirs = llmux.microseconds[kind], nginx.microseconds[kind]
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        ratio = statistics.median(ratios)
        passed = passed and ratio <= bar
        print(
            f"{kind:8} {statistics.median(theirs):15.1f} us {statistics.median(ours):15.1f} us "
            f"{ratio:7.2f} [{min(ratios):.2f}..{max(ratios):.2f}]   {bar} {'ok' if ratio <= bar else 'MISSED'}"
        )
    return passed


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--check", action="store_true", help="exit code 1 where a bar is missed")
    parser.add_argument("--only", choices=list(BARS), action="append", help="measure only this")
    parser.add_argument("--ports", type=int, default=18600, help="the first of three free ports")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    for program in ("gcc", "wrk", "nginx", "taskset"):
        if shutil.which(program) is None and not Path(f"/usr/sbin/{program}").exists():
            raise SystemExit(f"{program} is not installed")
    upstream, nginx_port, llmux_port = range(arguments.ports, arguments.ports + 3)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmux-bench-")))
        streams = _compile(folder, "streams")
        chunks = round(arguments.seconds * 1000 / SPACING_MS)
        config = _write_config(folder, _compile(folder, ENGINE), llmux_port, upstream, chunks)
        requests_per_connection = "keepalive_requests 1000000000;"
        command = nginx_command(
            folder, nginx_port, upstream, http=requests_per_connection, upstream=requests_per_connection
        )
        nginx = Proxy("nginx", stack.enter_context(running(command, PROXY_CPU, subprocess.DEVNULL)), nginx_port)
        llmux_command = [sys.executable, "-m", "llmux", "serve", "-c", str(config)]
        llmux = Proxy("llmux", stack.enter_context(running(llmux_command, PROXY_CPU, subprocess.DEVNULL)), llmux_port)
        # llmux first: its first request starts the engine that both are measured with.
        for proxy in (llmux, nginx):
            _check(proxy, upstream)
        for kind in list(BARS):
            if arguments.only and kind not in arguments.only:
                del BARS[kind]
        for kind in BARS:
            for proxy in (nginx, llmux):
                _measure(proxy, kind, streams, arguments.seconds)
                proxy.microseconds[kind].clear()
            for _ in range(arguments.rounds):
                for proxy in (nginx, llmux):
                    _measure(proxy, kind, streams, arguments.seconds)
        passed = _report(nginx, llmux)
        return int(arguments.check and not passed)


if __name__ == "__main__":
    sys.exit(main())
