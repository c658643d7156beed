"""Entry point: imports the shim's folder as a top-level package, without importing llmux."""

import os
import sys
from importlib import import_module

folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib costs memory
# At the end, and without the folder itself: its modules must not shadow the standard library's.
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]  # noqa: PTH100
sys.path.append(os.path.dirname(folder))  # noqa: PTH120
import_module(f"{os.path.basename(folder)}.program").main(int(sys.argv[1]))  # noqa: PTH119
