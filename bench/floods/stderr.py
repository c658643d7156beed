"""llmux whose standard error nobody reads, under load: does it go on serving, and does it stop when asked?

    python bench/floods/stderr.py [--minutes 10] [--clients 8] [--check]

One ``llmux serve -v`` over two simulated engines that write 40 KB a second each, which goes into the log. Its standard
error is a pipe of 4 KiB, full at once. Nobody reads it but for a moment at the end, when llmux can say what it dropped,
and then it fills again. Clients ask for the two models in turn.
Bars: no request unanswered, none slower than 5 s, SIGTERM obeyed within 30 s, and the log says what was dropped.
"""

import argparse
import asyncio
import fcntl
import json
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from bystanders import Seen, probe

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.conditions import percentile
from tests.support.server import VIRTUAL_GPUS, chat, simulated_config

PIPE_BYTES = 4096
SLOWEST_SECONDS = 5.0
REQUEST_LIMIT_SECONDS = 30.0
STOP_SECONDS = 30.0
START_SECONDS = 30.0
REFILL_SECONDS = 5.0
"""Long enough to fill the pipe again, so that SIGTERM finds it full."""
SAY_SECONDS = 10.0
_DROPPED = re.compile(rb"\bdropped\b")


async def _client(session: aiohttp.ClientSession, url: str, model: str, seen: Seen, until: float) -> int:
    """One request after the other; returns how many were not answered."""
    failed = 0
    while time.monotonic() < until:
        began = time.perf_counter()
        try:
            async with session.post(f"{url}/v1/chat/completions", json=chat(model, "hello")) as response:
                failed += response.status != 200
                await response.read()
        except (aiohttp.ClientError, TimeoutError):
            failed += 1
        seen.chunks.append((time.perf_counter() - began) * 1000)
    return failed


async def _load(session: aiohttp.ClientSession, url: str, seen: Seen, clients: int, seconds: float) -> int:
    """Ask for both models; returns how many requests were not answered."""
    until = time.monotonic() + seconds
    return sum(await asyncio.gather(*(_client(session, url, "ab"[n % 2], seen, until) for n in range(clients))))


async def _read_until_said(descriptor: int) -> bool:
    """Read the log for a while; whether it says that something was dropped."""
    written, give_up_at = b"", time.monotonic() + SAY_SECONDS
    while time.monotonic() < give_up_at:
        written += _read(descriptor)
        if _DROPPED.search(written):
            return True
        await asyncio.sleep(0.01)
    return False


async def _until_listening(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


async def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="llmux-stderr-") as temporary:
        folder = Path(temporary)
        models = {name: {"eviction": "offload+keep_running"} for name in "ab"}
        program = folder / "engine"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("chatty_engine.py")} "$@"\n')
        program.chmod(0o755)
        config = simulated_config(models, ledger=folder / "gpu.json", port=arguments.port, vllm_command=str(program))
        (folder / "config.json").write_text(json.dumps(config))
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        command = [sys.executable, "-m", "llmux", "serve", "-v", "-c", str(folder / "config.json")]
        process = await asyncio.create_subprocess_exec(
            *command, stderr=writing, stdin=asyncio.subprocess.DEVNULL, cwd=folder, env={**os.environ, **VIRTUAL_GPUS}
        )
        os.close(writing)
        os.set_blocking(reading, False)
        url, seen = f"http://127.0.0.1:{arguments.port}", Seen()
        try:
            timeout = aiohttp.ClientTimeout(total=REQUEST_LIMIT_SECONDS)
            async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
                await _until_listening(session, url)
                probing = asyncio.get_running_loop().create_task(probe(arguments.port, seen))
                unanswered = await _load(session, url, seen, arguments.clients, arguments.minutes * 60)
                # For a moment somebody reads: what was dropped can be said only now.
                dropped_said = await _read_until_said(reading)
                unanswered += await _load(session, url, seen, arguments.clients, REFILL_SECONDS)
                probing.cancel()
            asked = time.monotonic()
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
                stopped_seconds = round(time.monotonic() - asked, 1)
            except TimeoutError:
                stopped_seconds = None
        finally:
            # Reading lets a process go on that waits for it; without that it could only be killed.
            _read(reading)
            if process.returncode is None:
                process.kill()
                await process.wait()
            os.close(reading)
        return {
            "minutes": arguments.minutes,
            "requests": len(seen.chunks),
            "unanswered": unanswered,
            "request_ms_p99": round(percentile(seen.chunks, 0.99), 1),
            "request_ms_worst": round(max(seen.chunks, default=0.0), 1),
            "health_ms_worst": round(max(seen.health, default=0.0), 1),
            "health_unanswered": seen.lost,
            "stopped_seconds": stopped_seconds,
            "exit_code": process.returncode,
            "says_what_was_dropped": dropped_said,
        }


def _read(descriptor: int) -> bytes:
    pieces = []
    try:
        while piece := os.read(descriptor, 1 << 16):
            pieces.append(piece)
    except BlockingIOError:
        pass
    return b"".join(pieces)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--port", type=int, default=18720)
    parser.add_argument("--check", action="store_true", help="exit code 1 where a bar is missed")
    arguments = parser.parse_args()
    figures = asyncio.run(_run(arguments))
    print(json.dumps(figures, indent=1))
    held = (
        figures["requests"]
        and not figures["unanswered"]
        and figures["request_ms_worst"] <= SLOWEST_SECONDS * 1000
        and figures["stopped_seconds"] is not None
        and figures["says_what_was_dropped"]
    )
    print("all bars held" if held else "MISSED")
    return int(arguments.check and not held)


if __name__ == "__main__":
    sys.exit(main())
