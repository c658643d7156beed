"""What one hostile client costs the others, in llmux and in nginx.

``python bench/floods/run.py [--seconds S] [--check]``; README.md says what is measured and how.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import hostile
import uvloop
from bystanders import HOSTILE_NICENESS, Seen, Streaming, probe
from engine import SPACING_SECONDS

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.conditions import percentile
from bench.proxies import OTHER_CPU, PROXY_CPU, nginx_command, pinned, running

HERE = Path(__file__).parent

STREAMS = 200
SETTLE_SECONDS = 1.0
START_SECONDS = 30.0
FLOOD_LIMIT_SECONDS = 180.0
BAR_MS = 50.0
CHECK_BAR_MS = 500.0
CHECK_TRIES = 3
MEMORY_BAR = 2.0
"""Peak memory by which a body's receipt may raise llmux's, against the body."""
MEMORY_SLACK_MIB = 16.0


@dataclass(slots=True)
class Proxy:
    """A running candidate."""

    name: str
    pid: int
    port: int

    def pids(self) -> list[int]:
        """The processes that serve clients: nginx's worker, llmux itself."""
        if self.name == "llmux":
            return [self.pid]
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def memory_mib(self, what: str) -> float:
        """``VmRSS`` or its peak, ``VmHWM``."""
        lines = [line for pid in self.pids() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024

    def forget_peak(self) -> None:
        """Let the peak begin anew."""
        for pid in self.pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")


@asynccontextmanager
async def _innocent(port: int, streams: int) -> AsyncIterator[Seen]:
    """Streams and a prober beside whatever runs in the block."""
    seen, loop = Seen(), asyncio.get_running_loop()
    running = [(await loop.create_connection(lambda: Streaming(seen), "127.0.0.1", port))[1] for _ in range(streams)]
    await asyncio.sleep(SETTLE_SECONDS)
    seen.chunks.clear()
    probing = loop.create_task(probe(port, seen))
    try:
        yield seen
    finally:
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
        for stream in running:
            stream.leave()
        await asyncio.sleep(0.1)


async def _flood(kind: str, port: int, size: float, seconds: float) -> tuple[int, int]:
    """Run one hostile client to its end; returns how often it flooded, and the bytes of one body."""
    command = [
        sys.executable,
        str(HERE / "hostile.py"),
        kind,
        str(port),
        "--size",
        str(size),
        "--seconds",
        str(seconds),
    ]
    command = ["nice", "-n", HOSTILE_NICENESS, *pinned(OTHER_CPU, command)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(FLOOD_LIMIT_SECONDS + seconds):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return 0, 0
    count, body_bytes = map(int, output.split())
    return count, body_bytes


@dataclass(slots=True)
class Row:
    """One flood against one proxy."""

    kind: str
    proxy: str
    seen: Seen
    times: int
    body_bytes: int
    grown_mib: float

    @property
    def memory_ratio(self) -> float | None:
        """The growth of the peak against the body; None for a flood without a large body."""
        body_mib = self.body_bytes / 2**20
        return self.grown_mib / body_mib if body_mib >= 1 else None

    def misses(self, bar_ms: float) -> list[str]:
        """What is worse than it may be."""
        missed = []
        if not self.times:
            missed.append("the flood did not end")
        if max(self.seen.health, default=1e9) > bar_ms:
            missed.append("health")
        if self.seen.lost:
            missed.append("lost")
        ratio = self.memory_ratio
        if ratio is not None and self.grown_mib > MEMORY_SLACK_MIB + MEMORY_BAR * self.body_bytes / 2**20:
            missed.append("memory")
        return missed


def _print(row: Row, bar_ms: float) -> None:
    health, chunks, ratio = row.seen.health, row.seen.chunks, row.memory_ratio
    memory = f"{row.grown_mib:6.0f}" + (f" ({ratio:4.1f}x)" if ratio is not None else " " * 8)
    verdict = ", ".join(row.misses(bar_ms)) if row.proxy == "llmux" else ""
    print(
        f"{row.kind:20} {row.proxy:6} {row.times:5} {max(health, default=0):9.1f} {percentile(health, 0.99):8.1f} "
        f"{percentile(chunks, 0.99):9.1f} {max(chunks, default=0):9.1f} {row.seen.lost:5} {memory}  {verdict}",
        flush=True,
    )


async def _measure(kind: str, proxy: Proxy, arguments: argparse.Namespace) -> Row:
    async with _innocent(proxy.port, arguments.streams) as seen:
        proxy.forget_peak()
        before = proxy.memory_mib("VmRSS")
        if kind == "none":
            await asyncio.sleep(arguments.seconds)
            times, body_bytes = 1, 0
        else:
            times, body_bytes = await _flood(kind, proxy.port, arguments.size, arguments.seconds)
        # What stood still in the flood is seen only when it moves again.
        await asyncio.sleep(2 * SPACING_SECONDS)
        return Row(kind, proxy.name, seen, times, body_bytes, proxy.memory_mib("VmHWM") - before)


@contextmanager
def _logged(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a proxy; where the block waits for it in vain, the end of its log is shown."""
    with log.open("wb") as output, running(command, PROXY_CPU, output, output) as process:
        try:
            yield process
        except TimeoutError:
            output.flush()
            print(log.read_text()[-2000:], file=sys.stderr)
            raise


async def _until_answers(port: int) -> None:
    """Wait until a request is answered; llmux's first one starts the engine."""
    body = b'{"model":"m"}'
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    answer = b"nothing"
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
                    answer = await reader.readline()
                    writer.close()
                    if b" 200 " in answer:
                        return
                except OSError:
                    pass
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise TimeoutError(f"port {port} answered {answer!r} for {START_SECONDS:.0f} s") from None


def _write_config(folder: Path, port: int, engine_port: int) -> Path:
    program = folder / "engine"
    program.write_text(f'#!/bin/sh\nexec taskset -c {OTHER_CPU} {sys.executable} {HERE / "engine.py"} "$@"\n')
    program.chmod(0o755)
    model = {"model_path": "m", "port": engine_port, "eviction": "retain+stop"}
    config = folder / "config.json"
    settings = {"vllm_command": str(program), "port": port, "metrics_port": 0, "canary": "off", "models": {"m": model}}
    config.write_text(json.dumps(settings))
    return config


async def _run(arguments: argparse.Namespace, kinds: Sequence[str]) -> list[Row]:
    engine_port, nginx_port, llmux_port = range(arguments.ports, arguments.ports + 3)
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmux-floods-")))
        config = _write_config(folder, llmux_port, engine_port)
        llmux_command = [sys.executable, "-m", "llmux", "serve", "-c", str(config)]
        llmux = stack.enter_context(_logged(llmux_command, folder / "llmux.log"))
        await _until_answers(llmux_port)
        proxies = [Proxy("llmux", llmux.pid, llmux_port)]
        if arguments.nginx:
            server = 'location = /health { return 200 "{}"; }'
            command = nginx_command(folder, nginx_port, engine_port, http="client_max_body_size 0;", server=server)
            nginx = stack.enter_context(_logged(command, folder / "nginx.log"))
            await _until_answers(nginx_port)
            proxies.insert(0, Proxy("nginx", nginx.pid, nginx_port))
        for kind in kinds:
            for proxy in proxies:
                row = await _measure(kind, proxy, arguments)
                if kind == "none" and arguments.check:
                    # What the machine does to llmux without any flood is no fault of llmux's.
                    arguments.bar_ms = max(arguments.bar_ms, 2 * max(row.seen.health, default=0.0))
                tries = CHECK_TRIES if arguments.check else 1
                while (tries := tries - 1) and row.misses(arguments.bar_ms):
                    # A pause of a busy machine does not recur; what llmux itself does, does.
                    _print(row, arguments.bar_ms)
                    row = await _measure(kind, proxy, arguments)
                _print(row, arguments.bar_ms)
                rows.append(row)
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="each flood is repeated so long (10)")
    parser.add_argument("--size", type=float, default=1.0, help="share of each flood's full size (1)")
    parser.add_argument("--streams", type=int, default=STREAMS, help=f"innocent streams ({STREAMS})")
    parser.add_argument("--only", choices=["none", *hostile.FLOODS], action="append", help="only this flood")
    parser.add_argument("--bar-ms", type=float, default=BAR_MS, help="the worst answer of /health may take (50)")
    parser.add_argument("--no-nginx", dest="nginx", action="store_false")
    check = "small, short, with a bar for busy machines; exit code 1 where one is missed"
    parser.add_argument("--check", action="store_true", help=check)
    parser.add_argument("--ports", type=int, default=18700, help="the first of three free ports")
    arguments = parser.parse_args()
    if arguments.check:
        arguments.seconds, arguments.size, arguments.bar_ms, arguments.nginx = 1.0, 0.15, CHECK_BAR_MS, False
    return arguments


def main() -> int:
    arguments = _arguments()
    kinds = arguments.only or ["none", *hostile.FLOODS]
    print(f"{'':27} {'times':>5} {'/health, ms':>18} {'chunk delay, ms':>19} {'lost':>5} {'memory':>6} MiB")
    print(f"{'flood':20} {'proxy':6} {'':5} {'worst':>9} {'p99':>8} {'p99':>9} {'worst':>9}")
    rows = uvloop.run(_run(arguments, kinds))
    missed = [row for row in rows if row.proxy == "llmux" and row.misses(arguments.bar_ms)]
    quiet = [percentile(row.seen.chunks, 0.99) for row in rows if row.kind == "none" and row.proxy == "llmux"]
    loud = [percentile(row.seen.chunks, 0.99) for row in rows if row.kind != "none" and row.proxy == "llmux"]
    if quiet and loud:
        ratio = statistics.median(loud) / max(quiet[0], 0.1)
        print(f"p99 chunk delay with a hostile client: {ratio:.1f} times that without, in the median")
    return int(bool(missed) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
