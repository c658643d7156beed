"""All checks, by topic."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from llmux.config.settings import Settings, default_cache_directory
from llmux.diagnosis.engines import check_engines
from llmux.diagnosis.findings import Finding, Level, error, ok, unknown, warning
from llmux.diagnosis.gpus import Gpus, check_gpus, read_gpus
from llmux.diagnosis.images import check_images
from llmux.diagnosis.machine import check_host, read_host
from llmux.diagnosis.network import check_ports
from llmux.engines.files import exists, is_directory
from llmux.errors import GpusUnreadable, Problem

TEMPORARY_BYTES = 1 << 30
"""For large request bodies that wait, and engines' own files."""
GPU_SECONDS = 20.0
"""NVML answers within a second, except where a GPU or its driver hangs."""
TOPIC_SECONDS = 60.0
"""More than the limits of a topic's programs and connections together; file systems and names can hang without one."""


@dataclass(frozen=True, slots=True)
class Topic:
    """The findings about one thing, in the order in which they are shown."""

    name: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Examination:
    """Everything that was found."""

    topics: tuple[Topic, ...]

    def count(self, level: Level) -> int:
        """How many findings there are of a level."""
        return sum(finding.level is level for topic in self.topics for finding in topic.findings)


def examine(
    settings: Settings | None,
    problems: Iterable[Problem] = (),
    warnings: Iterable[Problem] = (),
    environment: Mapping[str, str] = os.environ,
) -> Examination:
    """Look at this machine, and at what the configuration wants of it. Starts no engine and takes no GPU memory.

    ``settings``: None without a configuration, or with one that is wrong. ``problems`` and ``warnings`` are what the
    configuration's own checks find; iterators are read under the same limit of time as everything else.
    """
    gpus = _gpus()
    has_gpu = isinstance(gpus, Gpus) and bool(gpus.gpus)
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "configuration": lambda: _configuration(settings, problems, warnings),
        "machine": lambda: check_host(read_host(), settings),
        "directories": lambda: _directories(settings),
        "GPUs": lambda: check_gpus(gpus, settings, environment),
        "checkpoints": lambda: check_images(settings, has_gpu=has_gpu),
        "engines": lambda: () if settings is None else check_engines(settings, environment),
        "ports": lambda: () if settings is None else check_ports(settings),
    }
    examined = [Topic(name, look(name, check)) for name, check in checks.items()]
    return Examination(tuple(topic for topic in examined if topic.findings))


def look(
    topic: str, check: Callable[[], Iterable[Finding]], limit_seconds: float = TOPIC_SECONDS
) -> tuple[Finding, ...]:
    """What a check finds; if it cannot be made or does not end in time, what it found until then, and that."""
    found: list[Finding] = []
    try:
        _run_in_time(lambda: found.extend(check()), limit_seconds)
    except TimeoutError:
        found.append(unknown(topic, f"the rest was not looked at: it took longer than {limit_seconds:g} s"))
    except OSError as failure:
        found.append(unknown(topic, f"the rest could not be looked at: {failure}"))
    return tuple(found)


def _run_in_time(work: Callable[[], None], limit_seconds: float) -> None:
    """Raises TimeoutError, or what the work raises."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as failure:
            failures.append(failure)

    # A thread that hangs in the kernel cannot be ended: as a daemon it does not keep the program from ending.
    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_seconds)
    if thread.is_alive():
        raise TimeoutError
    for failure in failures:
        raise failure


def _gpus() -> Gpus | GpusUnreadable:
    read: list[Gpus] = []
    try:
        _run_in_time(lambda: read.append(read_gpus()), GPU_SECONDS)
        return read[0]
    except TimeoutError:
        return GpusUnreadable(f"the driver does not answer within {GPU_SECONDS:g} s")
    except GpusUnreadable as unreadable:
        return unreadable


def _configuration(
    settings: Settings | None, problems: Iterable[Problem], warnings: Iterable[Problem]
) -> Iterator[Finding]:
    is_clean = True
    for problem in problems:
        is_clean = False
        yield error(problem.path or "file", problem.message, problem.remedy or "correct it")
    for problem in warnings:
        is_clean = False
        yield warning(problem.path or "file", problem.message, problem.remedy or "look at it")
    if settings is not None and is_clean:
        count = len(settings.models)
        yield ok("file", f"{count} model{'s' if count != 1 else ''}, nothing wrong")


def _directories(settings: Settings | None) -> Iterator[Finding]:
    cache = default_cache_directory() if settings is None else settings.cache_directory
    remedy = "change its owner, or set cache_dir; without it, compiled kernels and saved prompts are lost"
    # Without it the engines start all the same.
    yield _writable("cache_dir", cache, Level.WARNING, remedy)
    temporary = Path(tempfile.gettempdir())
    yield _writable("temporary files", temporary, Level.ERROR, "set TMPDIR to a directory that llmux may write to")
    stat = os.statvfs(temporary)
    free_bytes = stat.f_bavail * stat.f_frsize
    if free_bytes < TEMPORARY_BYTES:
        yield warning(
            "temporary files", f"{temporary} has {free_bytes >> 20} MiB free", "free some, or set TMPDIR elsewhere"
        )


def _writable(what: str, directory: Path, otherwise: Level, remedy: str) -> Finding:
    existing = next(one for one in (directory, *directory.absolute().parents) if exists(one))
    if is_directory(existing) and os.access(existing, os.W_OK | os.X_OK):
        return ok(what, str(directory))
    return Finding(otherwise, what, f"{directory} cannot be written to", remedy)
