"""What a candidate is given to do, and what is measured of it."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

sys.path.insert(0, str(Path(__file__).parents[2]))

from candidates import Candidate

from bench.proxies import OTHER_CPU, pinned

HERE = Path(__file__).parent
IDLE_STREAMS = 1000


class WorkloadFailed(Exception):
    """There were errors, or nothing was done."""


class NothingDone(WorkloadFailed):
    """The machine was so busy that more time is needed."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one candidate in one round."""

    cpu_microseconds: float
    """Of a unit."""
    p50_microseconds: float | None = None
    """Of the time from a request to the end of its answer, where that is measured."""
    p99_microseconds: float | None = None


class Workload(Protocol):
    """Something that each candidate does in every round."""

    def measure(self, candidate: Candidate, seconds: float) -> Figures:
        """Raises WorkloadFailed."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests with bodies of this size, one after the other on each connection; 2 KB answers."""

    body_bytes: int
    connections: int

    def measure(self, candidate: Candidate, seconds: float) -> Figures:
        """The unit is a request."""
        command = ["wrk", "-t1", f"-c{self.connections}", f"-d{seconds:g}s", "--timeout", "20s"]
        command += ["-s", str(HERE / "post.lua"), f"http://127.0.0.1:{candidate.port}", "--", str(self.body_bytes)]
        before = candidate.cpu_microseconds()
        output = _run(command)
        used = candidate.cpu_microseconds() - before
        result = next(line for line in output.splitlines() if line.startswith("RESULT"))
        answered, errors, p50, p99 = map(int, result.split()[1:])
        _check(answered, errors)
        return Figures(used / answered, p50, p99)


@dataclass(frozen=True, slots=True)
class Streams:
    """So many streams at a time, each with an event of 250 bytes in each interval."""

    program: Path
    streams: int
    spacing_ms: int

    def measure(self, candidate: Candidate, seconds: float) -> Figures:
        """The unit is a chunk."""
        chunks = round(seconds * 1000 / self.spacing_ms)
        command = [str(self.program), *map(str, (candidate.port, self.streams, chunks, self.spacing_ms))]
        before = candidate.cpu_microseconds()
        received, errors = map(int, _run(command).split())
        used = candidate.cpu_microseconds() - before
        _check(received, errors)
        return Figures(used / received)


def measured(workload: Workload, candidate: Candidate, seconds: float) -> Figures:
    """In a longer time if nothing is done in so many seconds. Raises WorkloadFailed."""
    for factor in (1, 4):
        try:
            return workload.measure(candidate, factor * seconds)
        except NothingDone:
            pass
    return workload.measure(candidate, 16 * seconds)


def idle_stream_kib(program: Path, candidate: Candidate) -> float:
    """Memory of an idle stream, in a process that has not had any yet: memory that was freed is not given back."""
    before = candidate.memory_kib()
    command = pinned(OTHER_CPU, [str(program), str(candidate.port), str(IDLE_STREAMS), "1", "0"])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
        assert clients.stdout is not None
        opened, errors = map(int, clients.stdout.readline().split())
        used = candidate.memory_kib() - before
    _check(opened, errors)
    return used / opened


def _run(command: list[str]) -> str:
    return subprocess.run(pinned(OTHER_CPU, command), check=True, capture_output=True, text=True).stdout


def _check(done: int, errors: int) -> None:
    if errors:
        raise WorkloadFailed(f"{errors} errors in {done}")
    if not done:
        raise NothingDone("nothing was done in time")
