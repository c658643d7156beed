"""The fingerprint of how an engine is started. An image with another one is outdated."""

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

TEMPORARY_PATHS = frozenset({"TMPDIR", "VLLM_RPC_BASE_PATH"})
"""Variables that differ at every start."""
ENGINE_PREFIXES = (
    *("CUDA_", "FLASHINFER_", "HF_", "LD_", "MKL_", "NCCL_", "NVIDIA_", "OMP_", "PYTHON", "PYTORCH_", "TORCH"),
    *("TRANSFORMERS_", "TRITON_", "VLLM_"),
)
"""Variables that engines and their libraries read; most others change with every login."""


def fingerprint_of(
    argv: Sequence[str],
    environment: Mapping[str, str],
    configured: Collection[str] = (),
    files: Sequence[tuple[str, int, int]] = (),
) -> str:
    """A digest of the arguments, the relevant environment and the ``files`` (path, size, time).

    Relevant are variables with one of ``ENGINE_PREFIXES`` and those ``configured`` for the model. The port and
    temporary paths are left out: they differ between starts of the same engine.
    """
    variables = {
        name: value
        for name, value in environment.items()
        if name not in TEMPORARY_PATHS and (name in configured or name.startswith(ENGINE_PREFIXES))
    }
    text = json.dumps([without_port(argv), sorted(variables.items()), *([sorted(files)] if files else [])])
    return hashlib.sha256(text.encode()).hexdigest()


def stamps_of(program: str, model_path: str) -> list[tuple[str, int, int]]:
    """Path, size and modification time (ns) of the program and the model's files, as far as they are local."""
    found = shutil.which(program)
    paths = [] if found is None else [Path(found).resolve()]
    directory = Path(model_path)
    try:
        paths += [entry for entry in directory.iterdir() if entry.is_file()]
        stats = [(str(path), path.stat()) for path in paths]
    except OSError:  # the model is a name on a hub
        stats = [(str(path), path.stat()) for path in paths[:1]]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def without_port(argv: Sequence[str]) -> list[str]:
    """The arguments without the value of ``--port``."""
    return [
        "--port=" if word.startswith("--port=") else "" if index and argv[index - 1] == "--port" else word
        for index, word in enumerate(argv)
    ]
