"""What makes one engine another: a fingerprint of how it was started, by which an outdated image is recognised."""

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

PLACES = frozenset({"TMPDIR", "VLLM_RPC_BASE_PATH"})
"""Different at every start."""
ENGINE_PREFIXES = (
    *("CUDA_", "FLASHINFER_", "HF_", "LD_", "MKL_", "NCCL_", "NVIDIA_", "OMP_", "PYTHON", "PYTORCH_", "TORCH"),
    *("TRANSFORMERS_", "TRITON_", "VLLM_"),
)


def fingerprint_of(
    argv: Sequence[str],
    environment: Mapping[str, str],
    configured: Collection[str] = (),
    files: Sequence[tuple[str, int, int]] = (),
) -> str:
    """The fingerprint of an engine that is started so, of these ``files``; ports and temporary places do not count.

    Of the environment only what engines read by their names, and the variables configured for the model: the rest
    changes with every login.
    """
    variables = {
        name: value
        for name, value in environment.items()
        if name not in PLACES and (name in configured or name.startswith(ENGINE_PREFIXES))
    }
    text = json.dumps([without_port(argv), sorted(variables.items()), *([sorted(files)] if files else [])])
    return hashlib.sha256(text.encode()).hexdigest()


def stamps_of(program: str, model_path: str) -> list[tuple[str, int, int]]:
    """Path, size and time of the program and of the model's files, where they are on this machine."""
    found = shutil.which(program)
    paths = [] if found is None else [Path(found).resolve()]
    directory = Path(model_path)
    try:
        paths += [entry for entry in directory.iterdir() if entry.is_file()]
        stats = [(str(path), path.stat()) for path in paths]
    except OSError:
        stats = [(str(path), path.stat()) for path in paths[:1]]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def without_port(argv: Sequence[str]) -> list[str]:
    """The arguments without the value of ``--port``."""
    return [
        "--port=" if word.startswith("--port=") else "" if index and argv[index - 1] == "--port" else word
        for index, word in enumerate(argv)
    ]
