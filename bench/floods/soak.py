"""Streams through switches, without and then with hostile clients: errors, torn answers, memory, delay of chunks.

    python bench/floods/soak.py [--minutes 5] [--streams 500] [--switch-seconds 5] [--check]

One ``llmux serve`` over two simulated engines with ``drain: freeze``. So many clients each have one stream open at any
time, half of them to each model, so that a switch is due every ``--switch-seconds`` and freezes the half that is in
flight. Every answer is compared with the text that its model gives to its prompt. The first half of the time nobody is
hostile; in the second, one client of each kind of ``hostile.py`` is, again and again.

A chunk's delay is the time from the engine's making it to its arrival, so that a stream's being frozen does not count;
the first chunk after a freeze does not count either, because llmux holds it until the engine's canary has passed.
Bars: no error, nothing lost, nothing torn; memory as flat as without them; p99 delay at most twice that without.
"""

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import hostile
import psutil
import uvloop
from bystanders import HOSTILE_NICENESS, Seen, probe

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.conditions import percentile
from llmux.simulation.engine.text import expected_text
from tests.support.server import LlmuxProcess, llmux_server, simulated_config

MODELS = ("a", "b")
TOKENS = 40
DELAY_BAR = 2.0
MEMORY_BAR_MIB_PER_MINUTE = 10.0
LIMIT_SECONDS = 180.0
"""A stream that has not ended by then is lost."""
_COMMENT = b": keep-alive"
_STAMP = re.compile(rb'"stamp": (\d+)')
_CONTENT = re.compile(rb'"delta": \{"content": ("(?:[^"\\]|\\.)*")\}')


@dataclass(slots=True)
class Phase:
    """What was seen in one half of the run."""

    seen: Seen = field(default_factory=Seen)
    endings: Counter[str] = field(default_factory=Counter)
    memory_mib: list[tuple[float, float]] = field(default_factory=list)
    """Seconds and llmux's resident memory."""

    @property
    def slope_mib_per_minute(self) -> float:
        """Of the last two thirds of the samples, by least squares."""
        samples = self.memory_mib[len(self.memory_mib) // 3 :]
        if len(samples) < 2:
            return 0.0
        mean_x = sum(x for x, _ in samples) / len(samples)
        mean_y = sum(y for _, y in samples) / len(samples)
        spread = sum((x - mean_x) ** 2 for x, _ in samples)
        return 60 * sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread

    @property
    def faults(self) -> int:
        """Answers that were anything but whole and right."""
        return sum(count for ending, count in self.endings.items() if ending != "whole")


class Stream(asyncio.Protocol):
    """One streamed chat, judged at its end."""

    def __init__(self, phase: Phase, request: bytes) -> None:
        self._phase = phase
        self._request = request
        self._pieces: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._was_frozen = False
        """Whether a comment, as frozen streams get, has come since the last chunk."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._pieces.append(data)
        stamps = _STAMP.findall(data)
        self._was_frozen = self._was_frozen or _COMMENT in data
        if self._was_frozen:
            # Held back until its engine was back and had passed its canary.
            self._was_frozen = not stamps
        else:
            self._phase.seen.chunks.extend((now - int(stamp)) / 1e6 for stamp in stamps)
        if data.endswith(b"\r\n0\r\n\r\n") and not self.ended.done():
            self.ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def ending(self, expected: str) -> str:
        """``whole``, or what else the answer is."""
        answer = b"".join(self._pieces)
        if not answer.startswith(b"HTTP/1.1 200 "):
            return answer[:80].split(b"\r\n")[0].decode(errors="replace") or "no answer"
        if b'"error"' in answer:
            return "an error in the stream"
        if not answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            return "cut off"
        said = "".join(json.loads(text) for text in _CONTENT.findall(answer))
        return "whole" if said == expected else "torn: another text than the model's"


class Soak:
    """The innocent clients; ``phase`` is what they are counted in at present."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        self._host, self.port = address.hostname, address.port
        self.phase = Phase()
        self.stopping = False

    async def client(self, number: int) -> None:
        """One stream after the other, each with another prompt."""
        model, count, loop = MODELS[number % 2], 0, asyncio.get_running_loop()
        while not self.stopping:
            count += 1
            prompt = f"client {number} asks {count}"
            messages = [{"role": "user", "content": prompt}]
            body = json.dumps({"model": model, "stream": True, "max_tokens": TOKENS, "messages": messages}).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
            phase = self.phase
            try:
                _, stream = await loop.create_connection(partial(Stream, phase, request), self._host, self.port)
            except OSError as error:
                phase.endings[f"not connected: {error}"] += 1
                await asyncio.sleep(0.1)
                continue
            try:
                async with asyncio.timeout(LIMIT_SECONDS):
                    await stream.ended
                phase.endings[stream.ending(expected_text(model, prompt, TOKENS))] += 1
            except TimeoutError:
                phase.endings["lost: no end"] += 1
            finally:
                stream.leave()

    async def watch_memory(self, server: LlmuxProcess) -> None:
        """A sample each second."""
        process = psutil.Process(server.process.pid)
        began = time.monotonic()
        while True:
            self.phase.memory_mib.append((time.monotonic() - began, process.memory_info().rss / 2**20))
            await asyncio.sleep(1.0)


@contextmanager
def _engine_program(folder: Path) -> Iterator[str]:
    program = folder / "engine"
    script = Path(__file__).with_name("stamping_engine.py")
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    program.chmod(0o755)
    yield str(program)


async def _hostile(kind: str, port: int, size: float, seconds: float) -> str:
    command = ["nice", "-n", HOSTILE_NICENESS, sys.executable, str(Path(__file__).with_name("hostile.py"))]
    command += [kind, str(port), "--size", str(size), "--seconds", str(seconds)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return f"{kind} {output.split()[0].decode() if output else '0'}x"


async def _run(arguments: argparse.Namespace) -> tuple[Phase, Phase, list[str], int]:
    models = {name: {"eviction": "offload+keep_running", "drain": "freeze"} for name in MODELS}
    flags = ["--token-ms", str(arguments.token_ms), "--max-num-seqs", str(arguments.streams)]
    described = {name: {**settings, "extra_args": flags} for name, settings in models.items()}
    policy = {"policy_type": "fifo", "min_active_seconds": arguments.switch_seconds}
    seconds = arguments.minutes * 30
    with tempfile.TemporaryDirectory(prefix="llmux-soak-") as temporary:
        folder = Path(temporary)
        with _engine_program(folder) as program:
            config = simulated_config(
                described, ledger=folder / "gpu.json", policy=policy, vllm_command=program, keepalive_seconds=1.0
            )
            async with llmux_server(config, folder) as server:
                soak = Soak(server.url)
                loop = asyncio.get_running_loop()
                clients = [loop.create_task(soak.client(number)) for number in range(arguments.streams)]
                watching = loop.create_task(soak.watch_memory(server))
                await asyncio.sleep(arguments.warm_up_seconds)
                quiet = soak.phase = Phase()
                floods: list[str] = []
                for phase in (quiet, Phase()):
                    soak.phase = phase
                    probing = loop.create_task(probe(soak.port, phase.seen))
                    if phase is quiet:
                        await asyncio.sleep(seconds)
                    else:
                        running = [_hostile(kind, soak.port, arguments.size, seconds) for kind in arguments.kinds]
                        floods = await asyncio.gather(*running)
                    probing.cancel()
                loud = soak.phase
                soak.stopping = True
                await asyncio.gather(*clients)
                watching.cancel()
                return quiet, loud, floods, len(server.find_in_log("switched"))


def _report(quiet: Phase, loud: Phase, floods: list[str], switches: int) -> list[str]:
    """Print both halves; returns what is missed."""
    print(f"{switches} switches; hostile: {', '.join(floods)}")
    print(f"{'':14} {'whole':>7} {'other':>6} {'chunk delay, ms':>22} {'/health, ms':>18} {'memory, MiB':>20}")
    print(
        f"{'':14} {'':7} {'':6} {'p50':>6} {'p99':>7} {'worst':>7} {'p99':>8} {'worst':>9} {'peak':>9} {'a minute':>9}"
    )
    for name, phase in (("quiet", quiet), ("with hostile", loud)):
        chunks, health = phase.seen.chunks, phase.seen.health
        print(
            f"{name:14} {phase.endings['whole']:7} {phase.faults:6} {percentile(chunks, 0.5):6.1f} "
            f"{percentile(chunks, 0.99):7.1f} {max(chunks, default=0):7.0f} {percentile(health, 0.99):8.1f} "
            f"{max(health, default=0):9.1f} {max((mib for _, mib in phase.memory_mib), default=0):9.0f} "
            f"{phase.slope_mib_per_minute:9.1f}"
        )
        for ending, count in phase.endings.items():
            if ending != "whole":
                print(f"  {count} x {ending}")
    missed = [f"{phase.faults} answers" for phase in (quiet, loud) if phase.faults]
    ratio = percentile(loud.seen.chunks, 0.99) / max(percentile(quiet.seen.chunks, 0.99), 0.1)
    print(f"p99 chunk delay: {ratio:.2f} times that without hostile clients (bar {DELAY_BAR:g})")
    if ratio > DELAY_BAR:
        missed.append("delay")
    if loud.slope_mib_per_minute > MEMORY_BAR_MIB_PER_MINUTE:
        missed.append("memory")
    if not loud.endings["whole"] or not switches:
        missed.append("nothing was measured")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="both halves together (5)")
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--switch-seconds", type=float, default=5.0)
    parser.add_argument("--warm-up-seconds", type=float, default=15.0)
    parser.add_argument("--token-ms", type=float, default=250.0)
    parser.add_argument("--size", type=float, default=1.0, help="share of each flood's full size (1)")
    parser.add_argument("--kinds", nargs="*", choices=list(hostile.FLOODS), default=list(hostile.FLOODS))
    parser.add_argument("--check", action="store_true", help="exit code 1 where a bar is missed")
    arguments = parser.parse_args()
    missed = _report(*uvloop.run(_run(arguments)))
    print("missed: " + ", ".join(missed) if missed else "all bars held")
    return int(bool(missed) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
