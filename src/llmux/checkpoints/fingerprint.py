"""The fingerprint of how an engine is started. An image with another one is outdated."""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

LIBRARY_PREFIXES = (
    *("CUDA_", "HF_", "LD_", "MKL_", "NCCL_", "NVIDIA_", "OMP_", "PYTHON", "PYTORCH_", "TORCH"),
    *("TRANSFORMERS_", "TRITON_"),
)
"""Variables that the libraries of most engines read; most others change with every login."""


def fingerprint_of(
    argv: Sequence[str],
    environment: Mapping[str, str],
    configured: Collection[str] = (),
    files: Sequence[tuple[str, int, int]] = (),
    *,
    prefixes: tuple[str, ...] = (),
    ignored: Collection[str] = (),
) -> str:
    """A digest of the arguments, the relevant environment and the ``files`` (path, size, time).

    Relevant are variables with one of ``LIBRARY_PREFIXES`` or ``prefixes`` and those ``configured`` for the model,
    without those ``ignored``, which differ between starts of the same engine, as the port does.
    """
    relevant = (*LIBRARY_PREFIXES, *prefixes)
    variables = {
        name: value
        for name, value in environment.items()
        if name not in ignored and (name in configured or name.startswith(relevant))
    }
    text = json.dumps([without_port(argv), sorted(variables.items()), *([sorted(files)] if files else [])])
    return hashlib.sha256(text.encode()).hexdigest()


def stamps_of(program: str, files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Path, size and modification time (ns) of the program and of the model's files, without those that are gone."""
    found = shutil.which(program)
    paths = [] if found is None else [Path(found).resolve()]
    stamps = []
    for path in (*paths, *files):
        try:
            stat = path.stat()
        except OSError:
            continue
        stamps.append((str(path), stat.st_size, stat.st_mtime_ns))
    return stamps


def without_port(argv: Sequence[str]) -> list[str]:
    """The arguments without the value of ``--port``."""
    return [
        "--port=" if word.startswith("--port=") else "" if index and argv[index - 1] == "--port" else word
        for index, word in enumerate(argv)
    ]
