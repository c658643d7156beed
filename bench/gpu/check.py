"""Does llmux work on this machine's GPU? Real engines, real switches, and nothing but PyTorch needed beside llmux.

    make gpu-check [ARGS="--size-gib 8"] [WHEELS=DIRECTORY]
    python bench/gpu/check.py --engine-python PYTHON_WITH_TORCH

1. llmux's reader of GPU memory against PyTorch's figures, and its wait for memory that another process holds.
2. Two engines (engine.py) that fit together, which llmux places by their memory: both stay on the GPU.
3. Two that do not fit onto the GPU together, under a real ``llmux serve``: for each combination of
   weights and process that is possible here, switches to and fro. Each answer carries a checksum of all weights, which
   must be the one from before; after each leaving the memory must be free.
4. For each of them but stop, a stream that a switch freezes: the same text as without it.

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
from bench.gpu.switches import (
    MODELS,
    Answers,
    Combination,
    Plan,
    UnexpectedAnswer,
    reason_of,
    serving,
    stay_together,
    try_out,
    why_refused,
)
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
"""For what is under way when the limit is reached; then everything is given up."""


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
    trials = Trials(options, machine, plan)
    progress.say("two engines that fit are placed beside each other")
    together = await stay_together(plan, trials.answers)
    try:
        async with asyncio.timeout(options.limit_seconds + OVERTIME_SECONDS), filled(plan):
            await trials.run(progress.began_at + options.limit_seconds)
    except TimeoutError:
        progress.say("the time is up")
    trials.give_up()
    date = datetime.now(UTC).date().isoformat()
    return Report(machine, plan, beside, together, trials.results, monotonic() - progress.began_at, date)


@asynccontextmanager
async def filled(plan: Plan) -> AsyncIterator[None]:
    """Fill the GPU up to what one engine needs, so that two cannot fit whatever they say."""
    if not plan.filled_mib:
        yield
        return
    plan.say(f"a process of its own takes the other {plan.filled_mib} MiB, so that two engines do not fit")
    async with holding(plan.program, plan.filled_mib):
        yield


class Trials:
    """Every eviction that is wanted, tried where it is possible."""

    def __init__(self, options: argparse.Namespace, machine: Machine, plan: Plan) -> None:
        self.results: list[Combination] = []
        """In the order in which they came; after ``give_up`` there is one for each eviction."""
        self._wanted = [one for one in every_eviction() if not options.only or str(one) in options.only]
        self._machine = machine
        self._plan = plan
        self.answers: Answers = {}
        self._current: Eviction | None = None

    async def run(self, end_at: float) -> None:
        """Each has an equal share of the time until then. Those of one process share a server while all goes well."""
        for eviction in self._wanted:
            if reason := self._machine.why_not(eviction) or await why_refused(self._plan, eviction):
                self._plan.say(f"{eviction}: not possible here: {reason}")
                self.results.append(Combination(eviction, why_not=reason))
        while (left := self._left()) and monotonic() < end_at + OVERTIME_SECONDS:
            self._current = left[0]
            group = [one for one in left if one.process is left[0].process]
            try:
                await self._run_on_one_server(group, end_at)
            except* (UnexpectedAnswer, TimeoutError) as failures:
                self._plan.say(f"{self._current}: FAILED: {reason_of(failures)}")
                if self._current in self._left():
                    self.results.append(Combination(self._current, problems=[reason_of(failures)]))
                else:
                    self.results[-1].problems.append(reason_of(failures))

    def give_up(self) -> None:
        """Report what there was no time for; what was under way when it was up counts as failed."""
        for eviction in self._left():
            late = Combination(eviction, is_late=True)
            if eviction == self._current:
                late.problems.append("it took so long that it was given up")
            self.results.append(late)

    def _left(self) -> list[Eviction]:
        seen = [one.eviction for one in self.results]
        return [one for one in self._wanted if one not in seen]

    async def _run_on_one_server(self, evictions: list[Eviction], end_at: float) -> None:
        """The first of these, and the next ones as long as nothing fails."""
        say = self._plan.say
        say(f"{evictions[0]}: starting llmux and the engines")
        async with serving(self._plan, evictions[0], self.answers) as site:
            for eviction in evictions:
                self._current = eviction
                now = monotonic()
                result = await try_out(site, self._plan, eviction, now + (end_at - now) / len(self._left()))
                self.results.append(result)
                say(f"{eviction}: {result.switches} switches, {'FAILED' if result.problems else 'ok'}")
                for line in [*result.problems, *site.log_tail()] if result.problems else ():
                    say(f"    {line}")
                if result.problems:
                    return


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
