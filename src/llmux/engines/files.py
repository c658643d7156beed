"""Looking for a model's files: in directories that llmux may not be allowed to search, and in the Hugging Face cache.

Where a directory may not be searched, pathlib's functions of the same meaning raise PermissionError up to Python 3.13;
``exists`` and its like say no.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def exists(path: str | Path) -> bool:
    """Whether something is there, as far as can be seen."""
    return os.path.exists(path)  # noqa: PTH110


def is_directory(path: str | Path) -> bool:
    """Whether a directory is there, as far as can be seen."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: str | Path) -> bool:
    """Whether a file is there, as far as can be seen."""
    return os.path.isfile(path)  # noqa: PTH113


SAFETENSORS = ".safetensors"
OTHER_WEIGHTS = frozenset((".bin", ".pt", ".pth", ".gguf"))
WEIGHT_FILES = OTHER_WEIGHTS | {SAFETENSORS}
"""The endings of files that hold weights."""
UNSHARDED_COPY = "consolidated"
"""Begins the names of the second copy of the weights that some repositories have."""
SMALL_BYTES_MAX = 64 << 20
"""Tokenizers are smaller; what is larger and holds no weights by its ending, holds those of another program."""


def hub_home(environment: Mapping[str, str]) -> Path:
    """The directory of all that huggingface_hub keeps."""
    return Path(environment.get("HF_HOME", Path("~/.cache/huggingface").expanduser()))


def hub_cache(environment: Mapping[str, str]) -> Path:
    """The directory in which it keeps what it has downloaded."""
    return Path(environment.get("HF_HUB_CACHE", hub_home(environment) / "hub"))


def hub_folder(model_id: str, environment: Mapping[str, str]) -> Path:
    """Where it keeps a model of the hub; it need not exist."""
    return hub_cache(environment) / f"models--{model_id.replace('/', '--')}"


def snapshot_files(model_id: str, environment: Mapping[str, str]) -> Sequence[Path]:
    """The files of a hub's model in the cache, of the revision ``main``; none if it is not there. Reads the disk."""
    folder = hub_folder(model_id, environment)
    try:
        revision = (folder / "refs" / "main").read_text().strip()
        return [entry for entry in (folder / "snapshots" / revision).iterdir() if entry.is_file()]
    except (OSError, ValueError):
        return ()


def in_loading_order(files: Iterable[Path]) -> Sequence[Path]:
    """Those of a model's files that an engine reads at its start: what is small first, then the weights by their names.

    A repository may hold the weights in several formats, or twice in one: engines read one copy. Reads the disk.
    """
    found = sorted(set(files))
    weights = [file for file in found if file.suffix in WEIGHT_FILES]
    if not weights:
        return found
    if any(file.suffix == SAFETENSORS for file in weights):
        weights = [file for file in weights if file.suffix == SAFETENSORS]
    sharded = [file for file in weights if not file.name.startswith(UNSHARDED_COPY)]
    return [*(file for file in found if _is_small(file)), *(sharded or weights)]


def _is_small(file: Path) -> bool:
    try:
        return file.suffix not in WEIGHT_FILES and file.stat().st_size <= SMALL_BYTES_MAX
    except OSError:
        return False
