"""How fast a model's files are read at its wake: cold, read ahead while it was queued, and warm; side by side.

A model serves a stream for some seconds, while another one, with real files of random bytes, waits for it. In each
round the same is done three times: with the files not in the page cache and no prefetch (cold), not in it and with
prefetch (ahead), and in it (warm). The engine, a simulated one, says how long it took to read its files; the stream's
client says what reading ahead cost the model that served: the gaps between its tokens.

With ``--touch`` the same is done a fourth time (touched): ahead, and once the files are in the page cache another
process reads them there. That shows what is left of the difference between ahead and warm where a virtual machine's
host gives it memory only when its processor touches that, as it does not where a GPU is passed through.

    python bench/prefetch/run.py [--mib 4096] [--seconds 10] [--rounds 3] [--touch] [--directory DIRECTORY] [--check]
"""

import argparse
import asyncio
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from llmux.hosts.page_cache import cached_bytes_of
from tests.support.bench import STOP, Bench, serving, with_flags
from tests.support.cold_files import MIB, drop
from tests.support.server import chat

KINDS = ("cold", "ahead", "warm")
TOUCHED = "touched"
SHARDS = 4
WITHOUT_LIMIT = aiohttp.ClientTimeout(total=None)
TOKEN_MS = 10
LEAST_OF_WARM = 0.8
"""At what part of the page cache's own rate the files must be read that were read ahead."""
P99_GROWTH_MS_MAX = 5.0


@dataclass(slots=True)
class Figures:
    """What was seen of one kind, an entry for each round, and the gaps of all streams."""

    load_seconds: list[float] = field(default_factory=list)
    wake_seconds: list[float] = field(default_factory=list)
    cached_share: list[float] = field(default_factory=list)
    """Of the files, what was in the page cache when the stream ended."""
    gaps_ms: list[float] = field(default_factory=list)

    @property
    def load(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.load_seconds)

    def gap_ms(self, share: float) -> float:
        """The gap that so many of them do not exceed."""
        return sorted(self.gaps_ms)[min(len(self.gaps_ms) - 1, int(share * len(self.gaps_ms)))]


def write_weights(directory: Path, mib: int) -> list[Path]:
    files = [directory / f"model-{number:05}-of-{SHARDS:05}.safetensors" for number in range(1, SHARDS + 1)]
    for file in files:
        with file.open("wb") as opened:
            for _ in range(mib // SHARDS):
                opened.write(os.urandom(MIB))
            opened.flush()
            os.fsync(opened.fileno())
    return files


def cached_share(files: Iterable[Path]) -> float:
    found = cached_bytes_of(files)
    if found is None:
        sys.exit("what is in the page cache cannot be known here")
    return found.cached_bytes / found.size_bytes


def prepare(kind: str, files: Sequence[Path]) -> None:
    """Put the files into the page cache, or take them out of it."""
    for file in files:
        if kind == "warm":
            with file.open("rb") as opened:
                while opened.read(MIB):
                    pass
        else:
            drop(file)
    share = cached_share(files)
    if abs(share - (kind == "warm")) > 0.01:
        sys.exit(f"{share:.0%} of the files are in the page cache: this file system or this machine's memory cannot")


async def touch(files: Sequence[Path]) -> None:
    """Wait until the files are in the page cache, and have a process read them from there that gives way to others."""
    while cached_share(files) < 1:  # noqa: ASYNC110 - the kernel tells nobody.
        await asyncio.sleep(0.1)
    process = await asyncio.create_subprocess_exec("nice", "-n", "19", "cat", *files, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0


async def stream_gaps(bench: Bench, seconds: float, queued: asyncio.Event) -> list[float]:
    """Milliseconds between the tokens of a stream of that length, from when the other model is queued."""
    arrived = []
    async with bench.stream("serving", max_tokens=int(1000 * seconds / TOKEN_MS)) as stream:
        await stream.read(1)
        queued.set()
        while not stream.is_complete:
            await stream.read(1)
            arrived.append(1000 * time.perf_counter())
    return [later - earlier for earlier, later in pairwise(arrived)]


async def measure(kind: str, weights: Path, files: Sequence[Path], seconds: float, figures: Figures) -> None:
    prepare(kind, files)
    flags = ("--token-ms", str(TOKEN_MS))
    waiting: dict[str, Any] = {**STOP, "model_path": str(weights)}
    models = {"serving": with_flags(STOP, *flags), "waiting": with_flags(waiting, "--sim-read-weights")}
    prefetch = {"models": "queued" if kind in ("ahead", TOUCHED) else "none"}
    with tempfile.TemporaryDirectory(prefix="llmux-bench-") as name:
        async with serving(models, Path(name), prefetch=prefetch) as bench:
            queued = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                streamed = tasks.create_task(stream_gaps(bench, seconds, queued))
                await queued.wait()
                body = chat("waiting", "hello")
                answered = tasks.create_task(bench.call("POST /v1/chat/completions", body, timeout=WITHOUT_LIMIT))
                if kind == TOUCHED:
                    await touch(files)
                    assert not streamed.done(), "the stream was too short (--seconds) for the files to be touched"
                await streamed
                figures.cached_share.append(cached_share(files))
            assert answered.result().status == 200, answered.result().text
            output = (await bench.call("GET /control/models/waiting/logs")).text
            (switched,) = bench.server.find_in_log(r"switched .*model=waiting .*wake_seconds=([\d.]+)")
    loaded = re.search(r"Loading weights took ([\d.]+) seconds", output)
    assert loaded is not None, output
    figures.load_seconds.append(float(loaded[1]))
    figures.wake_seconds.append(float(switched[1]))
    figures.gaps_ms += streamed.result()


async def run(directory: Path, kinds: Sequence[str], mib: int, seconds: float, rounds: int) -> dict[str, Figures]:
    weights = Path(tempfile.mkdtemp(prefix="llmux-bench-weights-", dir=directory))
    found = {kind: Figures() for kind in kinds}
    try:
        files = await asyncio.to_thread(write_weights, weights, mib)
        for _ in range(rounds):
            for kind, figures in found.items():
                await measure(kind, weights, files, seconds, figures)
    finally:
        shutil.rmtree(weights)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the stream takes (10)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--touch", action="store_true", help="also with the files touched before the wake")
    parser.add_argument("--directory", type=Path, help="where the files are written; a real disk (TMPDIR)")
    parser.add_argument("--check", action="store_true", help="fail if a bound is not held")
    given = parser.parse_args()
    kinds = (*KINDS, TOUCHED) if given.touch else KINDS
    directory = given.directory or Path(tempfile.gettempdir())
    found = asyncio.run(run(directory, kinds, given.mib, given.seconds, given.rounds))
    print("kind, then for each round: seconds of loading, of the wake, of the files in the page cache before")
    for kind, figures in found.items():
        rounds = zip(figures.load_seconds, figures.wake_seconds, figures.cached_share, strict=True)
        print(f"{kind:7}", ", ".join(f"{load:.2f} s {wake:.2f} s {share:.0%}" for load, wake, share in rounds))
        gaps = ", ".join(f"{figures.gap_ms(share):.1f}" for share in (0.5, 0.99, 1.0))
        print(f"        {given.mib / figures.load:.0f} MiB/s; gaps of the stream: {gaps} ms (p50, p99, max)")
    cold, ahead, warm = (found[kind] for kind in KINDS)
    growth_ms = ahead.gap_ms(0.99) - cold.gap_ms(0.99)
    print(f"ratios: {cold.load / ahead.load:.1f} times as fast as cold, {warm.load / ahead.load:.2f} of warm")
    if given.touch:
        print(f"touched: {warm.load / found[TOUCHED].load:.2f} of warm")
    print(f"p99 of the stream's gaps: {growth_ms:+.1f} ms")
    if given.check and (warm.load / ahead.load < LEAST_OF_WARM or growth_ms > P99_GROWTH_MS_MAX):
        sys.exit(f"bound not held: {LEAST_OF_WARM} of warm, {P99_GROWTH_MS_MAX:g} ms more")


if __name__ == "__main__":
    main()
