"""Processor time, latency and memory of llmux's data plane beside nginx and other routers, in rounds that take turns.

    python bench/gateway/run.py [--all] [--peers] [--rounds N] [--check] [--python OTHER/bin/python]

README.md says what is measured and how.
"""

import argparse
import resource
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from candidates import PEERS, Candidate, Candidates, compiled
from traffic import IDLE_STREAMS, Figures, Requests, Streams, Workload, WorkloadFailed, idle_stream_kib, measured

from bench.conditions import describe_machine, describe_python

BODIES = {"1KB": 910, "100KB": 102_000, "5MB": 5_242_000}
"""Bytes of the prompt."""
REQUEST, CHUNK, IDLE = "1KB x 64", "200 streams", "idle"
CPU_BARS = {REQUEST: 1.5, CHUNK: 1.2}
"""Processor time against nginx, median of the rounds' ratios."""
P50_BAR = 1.0
"""Time of an answer against nginx, for the larger bodies."""
IDLE_BAR_KIB = 6.0
OTHER_SECONDS = 1.0
"""Of a measurement without a bar."""

Measured = dict[tuple[str, str], list[Figures]]
"""By workload and candidate, in the order of the rounds."""


def all_workloads(streams: Path) -> dict[str, Workload]:
    """By name. The intervals are such that a slow proxy keeps up."""
    requests = {
        f"{size} x {connections}": Requests(length, connections)
        for size, length in BODIES.items()
        for connections in (1, 64)
    }
    events = {
        f"{count} streams": Streams(streams, count, spacing) for count, spacing in ((50, 20), (200, 20), (1000, 200))
    }
    return {**requests, **events}


def measure(
    candidates: Sequence[Candidate], workloads: Mapping[str, Workload], rounds: int, seconds: float
) -> Measured:
    """In each round every candidate does everything; one more round comes first and does not count."""
    found: Measured = {(name, one.name): [] for name in workloads for one in candidates}
    for number in range(rounds + 1):
        for name, workload in workloads.items():
            for candidate in candidates:
                if name in candidate.failures:
                    continue
                try:
                    figures = measured(
                        workload, candidate, seconds if name in CPU_BARS else min(seconds, OTHER_SECONDS)
                    )
                except WorkloadFailed as error:
                    if not candidate.is_peer:
                        raise SystemExit(f"{candidate.name}, {name}: {error}: the benchmark has failed") from None
                    candidate.failures[name] = str(error)
                    continue
                if number:
                    found[name, candidate.name].append(figures)
    return found


def report(name: str, candidates: Sequence[Candidate], found: Measured) -> bool:
    """Print a workload's table; whether llmux has held its bars."""
    columns = f"{'CPU us':>8} {'min':>8} {'/ nginx':>20} {'min/min':>8} {'p50 us':>9} {'p99 us':>9}"
    print(f"\n{name:26} {columns} added p50, p99")
    nginx = found[name, "nginx"]
    alone = found.get((name, "none"), [])
    passed = True
    for candidate in candidates:
        if name in candidate.failures:
            print(f"  {candidate.name:24} {candidate.failures[name]}")
            continue
        own = found[name, candidate.name]
        costs, theirs = ([one.cpu_microseconds for one in ones] for ones in (own, nginx))
        ratios = [mine / other for mine, other in zip(costs, theirs, strict=True)]
        line = f"  {candidate.name:24} "
        if candidate.process is not None:
            spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}]"
            line += f"{statistics.median(costs):8.1f} {min(costs):8.1f} {spread:>20} {min(costs) / min(theirs):8.2f} "
        else:
            line += f"{'':48}"
        print(line + _latencies(own, alone))
        if candidate.name == "llmux":
            passed = _holds(name, statistics.median(ratios), own, nginx)
    return passed


def _latencies(own: Sequence[Figures], alone: Sequence[Figures]) -> str:
    """Medians of the rounds' percentiles, and of what they are more than those of the engine alone."""
    p50, p99 = _percentiles(own)
    if not p50:
        return ""
    text = f"{statistics.median(p50):9.0f} {statistics.median(p99):9.0f}"
    if alone is not own:
        more = [
            statistics.median(mine - theirs for mine, theirs in zip(ones, others, strict=True))
            for ones, others in zip((p50, p99), _percentiles(alone), strict=True)
        ]
        text += f" {more[0]:9.0f} {more[1]:9.0f}"
    return text


def _percentiles(figures: Sequence[Figures]) -> tuple[list[float], list[float]]:
    p50 = [one.p50_microseconds for one in figures if one.p50_microseconds is not None]
    return p50, [one.p99_microseconds for one in figures if one.p99_microseconds is not None]


def _holds(name: str, ratio: float, own: Sequence[Figures], nginx: Sequence[Figures]) -> bool:
    passed = True
    if (bar := CPU_BARS.get(name)) is not None:
        passed = ratio <= bar
        print(f"  bar: processor time at most {bar} x nginx: {'ok' if passed else 'MISSED'}")
    if name.startswith(("100KB", "5MB")):
        mine, theirs = (_percentiles(figures)[0] for figures in (own, nginx))
        slower = statistics.median(one / other for one, other in zip(mine, theirs, strict=True))
        passed = slower <= P50_BAR
        print(f"  bar: p50 at most {P50_BAR} x nginx: {slower:.2f} {'ok' if passed else 'MISSED'}")
    return passed


def report_idle(candidates: Sequence[Candidate], streams: Path) -> bool:
    """Open idle streams at each candidate, and print their memory; whether llmux has held its bar."""
    print(f"\nmemory of one of {IDLE_STREAMS} idle streams, KiB")
    passed = True
    for candidate in candidates:
        if candidate.process is None:
            continue
        try:
            kib = idle_stream_kib(streams, candidate)
        except WorkloadFailed as error:
            print(f"  {candidate.name:24} {error}")
            passed = passed and candidate.is_peer
            continue
        print(f"  {candidate.name:24} {kib:8.1f}")
        if candidate.name == "llmux":
            passed = kib <= IDLE_BAR_KIB
            print(f"  bar: at most {IDLE_BAR_KIB} KiB: {'ok' if passed else 'MISSED'}")
    return passed


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement; without a bar at most 1")
    parser.add_argument("--check", action="store_true", help="exit code 1 where a bar is missed")
    parser.add_argument("--all", action="store_true", help=f"everything, instead of {REQUEST!r} and {CHUNK!r}")
    parser.add_argument("--only", action="append", help=f"one workload, as '5MB x 1'; or {IDLE!r}")
    parser.add_argument("--peers", action="store_true", help=f"beside {', '.join(PEERS)}, too, which are installed")
    parser.add_argument("--python", action="append", default=[], help="an interpreter that has another llmux")
    parser.add_argument(
        "--peers-cache", type=Path, default=Path("~/.cache/llmux-bench").expanduser(), help="where peers are installed"
    )
    return parser.parse_args()


def _started(candidates: Candidates, arguments: argparse.Namespace) -> list[Candidate]:
    """All of them; those that are missing are printed."""
    candidates.add_engine()
    candidates.add_nginx()
    candidates.add_llmux(sys.executable, "llmux")
    for number, python in enumerate(arguments.python, 2):
        candidates.add_llmux(python, f"llmux {number}")
    for peer in PEERS if arguments.peers else ():
        candidates.add_peer(peer, arguments.peers_cache)
    for name, reason in candidates.absent.items():
        print(f"absent: {name}: {reason}")
    return candidates.running


def main() -> int:
    """Print the tables; exit code 1 if a bar is missed and ``--check`` was given."""
    arguments = _arguments()
    for program in ("gcc", "wrk", "nginx", "taskset"):
        if shutil.which(program) is None and not Path(f"/usr/sbin/{program}").exists():
            raise SystemExit(f"{program} is not installed")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))
    print(describe_machine(), *map(describe_python, (sys.executable, *arguments.python)), sep="\n")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmux-bench-")))
        streams = compiled(folder, "streams")
        workloads = all_workloads(streams)
        names = list(workloads) if arguments.all else arguments.only or [REQUEST, CHUNK]
        if unknown := set(names) - {*workloads, IDLE}:
            raise SystemExit(f"there is no {', '.join(unknown)}, only {', '.join(workloads)} and {IDLE}")
        candidates = _started(Candidates(folder, stack), arguments)
        passed = [report_idle(candidates, streams)] if arguments.all or IDLE in names else []
        chosen = {name: workloads[name] for name in names if name != IDLE}
        found = measure(candidates, chosen, arguments.rounds, arguments.seconds)
        passed += [report(name, candidates, found) for name in chosen]
    return int(arguments.check and not all(passed))


if __name__ == "__main__":
    sys.exit(main())
