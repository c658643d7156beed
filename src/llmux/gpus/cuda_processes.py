"""Which of an engine's processes use CUDA, and so must be suspended together."""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

PROC = Path("/proc")
GPU_DEVICE = re.compile(r"/dev/nvidia\d+")


def users_of_gpu(tree: Sequence[int], holders: Collection[int]) -> tuple[int, ...]:
    """Those of an engine's processes that use a GPU. Reads /proc.

    ``tree`` are all of them, ``holders`` the processes that the driver lists. In a container their numbers may be
    others than ours: then a GPU that is open or mapped is the sign.
    """
    return tuple(pid for pid in tree if pid in holders) or tuple(pid for pid in tree if uses_device(pid))


def candidates(tree: Sequence[int], holders: Collection[int], names: Sequence[str] = ()) -> tuple[int, ...]:
    """Those that may use CUDA: the users of a GPU, else those that have one of the ``names``, else all. Reads /proc.

    The driver has the last word: it tells no state for a process without CUDA.
    """
    return users_of_gpu(tree, holders) or tuple(pid for pid in tree if _is_called(pid, names)) or tuple(tree)


def uses_device(pid: int) -> bool:
    """Whether a process has an NVIDIA GPU open or mapped; False if it has ended or may not be looked at."""
    return (
        any(map(GPU_DEVICE.match, _open_paths(pid))) or GPU_DEVICE.search(_text(PROC / str(pid) / "maps")) is not None
    )


def _open_paths(pid: int) -> Iterable[str]:
    directory = PROC / str(pid) / "fd"
    try:
        descriptors = os.listdir(directory)  # noqa: PTH208
    except OSError:
        return
    for descriptor in descriptors:
        try:
            yield str((directory / descriptor).readlink())
        except OSError:
            continue


def _is_called(pid: int, names: Sequence[str]) -> bool:
    # Engines give their processes names of their own, in place of the command line.
    return any(name in _text(PROC / str(pid) / part) for name in names for part in ("cmdline", "comm"))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
