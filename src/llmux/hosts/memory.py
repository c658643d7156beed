"""How much memory this machine has left, and how much a model's weights would take of it."""

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
