"""How much memory this machine has left, how much a model's weights would take of it, and what processes hold."""

from collections.abc import Iterable
from pathlib import Path

import psutil

MIB = 1 << 20
WEIGHT_FILES = frozenset((".safetensors", ".bin", ".pt", ".pth", ".gguf"))


def available_mib() -> int:
    """What could be used without swapping."""
    return int(psutil.virtual_memory().available) // MIB


def weights_mib(model_path: str) -> int:
    """The size of the weights in a directory; 0 where they are not in one of this machine's, and so not known."""
    directory = Path(model_path)
    try:
        files = [file for file in directory.iterdir() if file.suffix in WEIGHT_FILES]
        return sum(file.stat().st_size for file in files) // MIB
    except OSError:
        return 0


def find_descendants(parent: int) -> list[psutil.Process]:
    """The processes below this one, itself not among them."""
    try:
        return psutil.Process(parent).children(recursive=True)
    except psutil.Error:
        return []


def held_mib(processes: Iterable[psutil.Process]) -> int:
    """What they hold together, shared pages counted once; what has ended holds nothing."""
    return sum(map(_held_bytes, processes)) // MIB


def still_living(processes: Iterable[psutil.Process]) -> list[int]:
    """Those that have not ended; a zombie has."""
    return [process.pid for process in processes if _is_living(process)]


def _held_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _is_living(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
