"""All checks, by topic."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmux.config.settings import Settings, default_cache_directory
from llmux.diagnosis.engines import check_engines
from llmux.diagnosis.findings import Finding, Level, error, ok, warning
from llmux.diagnosis.gpus import Gpus, check_gpus, read_gpus
from llmux.diagnosis.images import check_images
from llmux.diagnosis.machine import check_host, read_host
from llmux.diagnosis.network import check_ports
from llmux.engines.files import exists, is_directory
from llmux.errors import GpusUnreadable, Problem

TEMPORARY_BYTES = 1 << 30
"""For large request bodies that wait, and engines' own files."""


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
    problems: Sequence[Problem] = (),
    warnings: Sequence[Problem] = (),
    environment: Mapping[str, str] = os.environ,
) -> Examination:
    """Look at this machine, and at what the configuration wants of it. Starts no engine and takes no GPU memory.

    ``settings``: None without a configuration, or with one that is wrong. ``problems`` and ``warnings`` are what the
    configuration's own checks found.
    """
    gpus = _gpus()
    has_gpu = isinstance(gpus, Gpus) and bool(gpus.gpus)
    topics: list[tuple[str, Iterable[Finding]]] = [
        ("configuration", _configuration(settings, problems, warnings)),
        ("machine", check_host(read_host(), settings)),
        ("directories", _directories(settings)),
        ("GPUs", check_gpus(gpus, settings)),
        ("checkpoints", check_images(settings, has_gpu=has_gpu)),
        ("engines", () if settings is None else check_engines(settings, environment)),
        ("ports", () if settings is None else check_ports(settings)),
    ]
    examined = (Topic(name, tuple(findings)) for name, findings in topics)
    return Examination(tuple(topic for topic in examined if topic.findings))


def _gpus() -> Gpus | GpusUnreadable:
    try:
        return read_gpus()
    except GpusUnreadable as unreadable:
        return unreadable


def _configuration(
    settings: Settings | None, problems: Sequence[Problem], warnings: Sequence[Problem]
) -> Iterator[Finding]:
    for problem in problems:
        yield error(problem.path or "file", problem.message, problem.remedy or "correct it")
    for problem in warnings:
        yield warning(problem.path or "file", problem.message, problem.remedy or "look at it")
    if settings is not None and not problems and not warnings:
        count = len(settings.models)
        yield ok("file", f"{count} model{'s' if count != 1 else ''}, nothing wrong")


def _directories(settings: Settings | None) -> Iterator[Finding]:
    cache = default_cache_directory() if settings is None else settings.cache_dir or default_cache_directory()
    remedy = "change its owner, or set cache_dir; without it, compiled kernels and saved prompts are lost"
    yield _writable("cache_dir", cache, remedy)
    temporary = Path(tempfile.gettempdir())
    yield _writable("temporary files", temporary, "set TMPDIR to a directory that llmux may write to")
    stat = os.statvfs(temporary)
    free_bytes = stat.f_bavail * stat.f_frsize
    if free_bytes < TEMPORARY_BYTES:
        yield warning(
            "temporary files", f"{temporary} has {free_bytes >> 20} MiB free", "free some, or set TMPDIR elsewhere"
        )


def _writable(what: str, directory: Path, remedy: str) -> Finding:
    existing = next(one for one in (directory, *directory.absolute().parents) if exists(one))
    if is_directory(existing) and os.access(existing, os.W_OK | os.X_OK):
        return ok(what, str(directory))
    return error(what, f"{directory} cannot be written to", remedy)
