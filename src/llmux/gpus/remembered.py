"""What engines were seen to hold of their GPUs, remembered on disk from one llmux to the next.

One small file for each way in which an engine was started (``key_of``), in the cache directory. Several llmux may use
the same one: files are replaced as a whole. Nothing of it is needed: what cannot be read is measured again.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from llmux.core.eviction import Eviction
from llmux.core.identifiers import GpuId
from llmux.core.need import SeenNeed

log = structlog.get_logger("llmux.gpus")

FILES_MAX = 1000
"""Some hundred bytes each. Beyond that, those that were written longest ago are deleted."""
SUFFIX = ".json"


def identity_of(gpu_models: str, gpus: Mapping[GpuId, int]) -> str:
    """The GPUs for which needs are remembered: what kind they are, and how large."""
    return f"{gpu_models}: {sorted(gpus.values())}"


def key_of(fingerprint: str, gpus: str) -> str:
    """The name of what is remembered of an engine with this fingerprint on these GPUs."""
    return hashlib.sha256(json.dumps([fingerprint, gpus]).encode()).hexdigest()[:32]


class NeedStore:
    """A directory of such files. Its methods read and write the disk and raise nothing: the first failure is logged."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._has_warned = False

    def read(self, key: str) -> SeenNeed:
        """What was seen of an engine; nothing if it was not measured yet, or the file is damaged."""
        path = self._path(key)
        try:
            return _decode(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return SeenNeed()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._warn("what a model needs of the GPUs is not remembered: it is measured again", path, error)
            return SeenNeed()

    def write(self, key: str, model: str, seen: SeenNeed) -> None:
        """Remember it. ``model`` is for people who look into the file."""
        document = {
            "model": model,
            "awake_mib": seen.awake_mib,
            "residue_mib": {str(eviction): mib for eviction, mib in seen.residue_mib.items()},
        }
        path = self._path(key)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            _replace(path, json.dumps(document).encode())
            self._delete_oldest()
        except OSError as error:
            self._warn("what a model needs of the GPUs cannot be remembered", path, error)

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}{SUFFIX}"

    def _delete_oldest(self) -> None:
        files = [entry for entry in os.scandir(self._directory) if entry.name.endswith(SUFFIX)]
        if len(files) > FILES_MAX:
            files.sort(key=lambda entry: entry.stat().st_mtime)
            for entry in files[: len(files) - FILES_MAX]:
                # Another llmux may have deleted it.
                with suppress(FileNotFoundError):
                    Path(entry.path).unlink()

    def _warn(self, what: str, path: Path, error: Exception) -> None:
        tell = log.debug if self._has_warned else log.warning
        self._has_warned = True
        tell(what, file=str(path), reason=str(error) or type(error).__name__, remedy="delete it, or set cache_dir")


def _decode(document: Mapping[str, Any]) -> SeenNeed:
    """Raises ValueError, KeyError, TypeError or AttributeError for anything else than ``write`` has written."""
    awake_mib = document["awake_mib"]
    residue = {Eviction.parse(text): mib for text, mib in document["residue_mib"].items()}
    if any(type(mib) is not int or mib < 0 for mib in (awake_mib, *residue.values())):
        raise ValueError("an amount is not a number of MiB")
    return SeenNeed(awake_mib, residue)


def _replace(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
