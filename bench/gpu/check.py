"""Does llmux work on this machine's GPU? Real engines, real switches, and nothing but PyTorch needed beside llmux.

    make gpu-check [ARGS="--size-gib 8"] [WHEELS=DIRECTORY]
    python bench/gpu/check.py --engine-python PYTHON_WITH_TORCH

1. llmux's reader of GPU memory against PyTorch's figures, and its wait for memory that another process holds.
2. Two engines (engine.py) that do not fit onto the GPU together, under a real ``llmux serve``: for each combination of
   weights and process that is possible here, switches to and fro. Each answer carries a checksum of all weights, which
   must be the one from before; after each leaving the memory must be free.
3. For each of them but stop, a stream that a switch freezes: the same text as without it.

The result is a table, and JSON. Exit codes: 0 passed; 1 a wrong checksum, memory that was not freed, or another
failure; 77 SKIPPED, because this machine has no GPU or no PyTorch. ``--device cpu`` plays the same without a GPU,
except for cuda_suspend, so that the check itself can be tested.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.gpu.beside import check_beside
from bench.gpu.engine import CHUNK_MIB, FAULTS
from bench.gpu.machine import Machine, NoGpu, every_eviction, inspect
from bench.gpu.programs import EngineProgram, holding, write_weights
from bench.gpu.report import Report
from bench.gpu.resident import ResidentMemory
from bench.gpu.switches import MODELS, Combination, Plan, UnexpectedAnswer, reason_of, serving, try_out, why_refused
from llmux.core.eviction import Eviction
from llmux.gpus.memory import GpuReader
from llmux.gpus.nvml import NvmlReader

SKIPPED = 77
"""The exit code by which automake and meson know a skipped test."""
KV_CACHE_SHARE = 0.2
ROOM_MIB = 2560
"""Beside one engine: two CUDA contexts, and what a checksum takes for a moment."""
CONTEXT_MIB = 700
OVERTIME_SECONDS = 90.0
"""Beyond the limit for switches: for what is under way then. After it everything is given up."""


class Progress:
    """Says what is being done, with the time, for those who watch."""

    def __init__(self) -> None:
        self.began_at = monotonic()

    def say(self, text: str) -> None:
        """One line on standard error."""
        print(f"[{monotonic() - self.began_at:6.1f} s] {text}", file=sys.stderr, flush=True)


async def check(options: argparse.Namespace, machine: Machine, directory: Path, progress: Progress) -> Report:
    """Everything, in order."""
    program = EngineProgram(options.engine_python, options.device, f"llmux-gpu-check-{uuid.uuid4().hex}")
    reader: GpuReader = NvmlReader(count=1) if machine.is_gpu else ResidentMemory(program.mark)
    size_mib = int(options.size_gib * 1024)
    weights_mib = max(1, round(size_mib * (1 - KV_CACHE_SHARE) / CHUNK_MIB)) * CHUNK_MIB
    kv_cache_mib = max(1, size_mib - weights_mib)
    rest_mib = reader.read_memory()[0].free_mib - weights_mib - kv_cache_mib - ROOM_MIB - CONTEXT_MIB
    plan = Plan(
        program=program,
        reader=reader,
        directory=directory,
        weights_mib=weights_mib,
        kv_cache_mib=kv_cache_mib,
        switches=options.switches,
        criu=options.criu,
        say=progress.say,
        filled_mib=max(0, rest_mib) if machine.is_gpu else 0,
        planted_fault=options.plant,
    )
    progress.say(f"writing the weights of two models, {weights_mib} MiB each")
    await write_weights(program, {plan.model_path(name): plan.weights_flags(name) for name in MODELS})
    progress.say(f"another process takes {size_mib // 2} MiB, and llmux waits for them")
    beside = await check_beside(program, reader, max(CHUNK_MIB, size_mib // 2))
    tested: list[Combination] = []
    try:
        async with asyncio.timeout(options.limit_seconds + OVERTIME_SECONDS), filled(plan):
            async for one in combinations(options, machine, plan, progress):
                tested.append(one)  # noqa: PERF401 - what there is when the time is up is reported
    except TimeoutError:
        missing = [one for one in wanted(options) if one not in [seen.eviction for seen in tested]]
        tested += [Combination(one, problems=["the time was up"]) for one in missing]
    date = datetime.now(UTC).date().isoformat()
    return Report(machine, plan, beside, tested, monotonic() - progress.began_at, date)


@asynccontextmanager
async def filled(plan: Plan) -> AsyncIterator[None]:
    """Fill the GPU up to what one engine needs, so that two cannot fit whatever they say."""
    if not plan.filled_mib:
        yield
        return
    plan.say(f"a process of its own takes the other {plan.filled_mib} MiB, so that two engines do not fit")
    async with holding(plan.program, plan.filled_mib):
        yield


def wanted(options: argparse.Namespace) -> list[Eviction]:
    """The combinations that the check is about."""
    return [one for one in every_eviction() if not options.only or str(one) in options.only]


async def combinations(
    options: argparse.Namespace, machine: Machine, plan: Plan, progress: Progress
) -> AsyncIterator[Combination]:
    """Try every eviction that is wanted and possible. While all goes well, those of one process share a server."""
    possible = []
    for eviction in wanted(options):
        if (reason := machine.why_not(eviction) or why_refused(plan, eviction)) is None:
            possible.append(eviction)
        else:
            progress.say(f"{eviction}: not possible here: {reason}")
            yield Combination(eviction, why_not=reason)
    answers: dict[tuple[str, str, int], str] = {}
    for _, group in groupby(possible, key=lambda one: one.process):
        left = list(group)
        while left:
            async for result in of_one_server(options, plan, left, possible, answers, progress):
                left.remove(result.eviction)
                yield result


async def of_one_server(
    options: argparse.Namespace,
    plan: Plan,
    evictions: list[Eviction],
    possible: list[Eviction],
    answers: dict[tuple[str, str, int], str],
    progress: Progress,
) -> AsyncIterator[Combination]:
    """Results of the first of these evictions, and of the next ones as long as nothing fails."""
    current = evictions[0]
    results = []
    try:
        progress.say(f"{current}: starting llmux and the engines")
        async with serving(plan, current, answers) as site:
            for current in list(evictions):
                now = monotonic()
                share = (progress.began_at + options.limit_seconds - now) / (len(possible) - possible.index(current))
                result = await try_out(site, plan, current, now + share)
                results.append(result)
                verdict = "FAILED" if result.problems else "ok"
                progress.say(f"{current}: {result.switches} switches, {verdict}")
                for line in [*result.problems, *(site.log_tail() if result.problems else ())]:
                    progress.say(f"    {line}")
                if result.problems:
                    break
    except* (UnexpectedAnswer, TimeoutError) as failures:
        reason = reason_of(failures)
        progress.say(f"{current}: FAILED: {reason}")
        results = [one for one in results if one.eviction != current]
        results.append(Combination(current, problems=[reason]))
    for result in results:
        yield result


@contextmanager
def work_directory(given: Path | None) -> Iterator[Path]:
    """A directory for weights and images, which is removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="gpu-check-", dir=given))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--switches", type=int, default=20, help="of each combination, half of them back (20)")
    parser.add_argument("--size-gib", type=float, default=4.0, help="weights and KV cache of each engine (4)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--engine-python", default=shutil.which("python3") or sys.executable, help="has PyTorch")
    parser.add_argument("--criu", default="criu", help="the program")
    parser.add_argument("--only", action="append", metavar="W+P", help="only this combination; may be repeated")
    parser.add_argument("--directory", type=Path, help="where weights and images are put meanwhile (TMPDIR)")
    parser.add_argument("--limit-seconds", type=float, default=420.0, help="after that fewer switches are made (420)")
    parser.add_argument("--plant", choices=FAULTS, help="a fault in the engines, which the check must find")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--output", type=Path, help="directory for gpu-check.json and gpu-check.md")
    options = parser.parse_args()
    options.engine_python = shutil.which(options.engine_python) or options.engine_python
    if unknown := set(options.only or ()) - set(map(str, every_eviction())):
        parser.error(f"no such combination: {', '.join(sorted(unknown))}")
    if options.switches < 2 or options.switches % 2:
        parser.error("--switches: as many back as away, so an even number from 2 on")
    return options


def main() -> int:
    """Check, report, and say by the exit code what came out."""
    options = parse()
    progress = Progress()
    try:
        machine = inspect(options.device, options.engine_python, options.criu)
    except NoGpu as reason:
        print(f"SKIPPED: nothing was checked: {reason}", file=sys.stderr)
        return SKIPPED
    with work_directory(options.directory) as directory:
        report = asyncio.run(check(options, machine, directory, progress))
    text, table = json.dumps(report.as_data(), indent=2), report.markdown()
    print(text if options.json else table)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "gpu-check.json").write_text(text + "\n")
        (options.output / "gpu-check.md").write_text(table)
    for problem in report.problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return int(bool(report.problems))


if __name__ == "__main__":
    raise SystemExit(main())
