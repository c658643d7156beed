"""Where the interpreter enters the shim's folder: makes it a package of its own, without llmux around it."""

import os
import sys
from importlib import import_module

folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib costs memory
# Last, and not the folder itself: nothing of ours may stand before the standard library.
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]  # noqa: PTH100
sys.path.append(os.path.dirname(folder))  # noqa: PTH120
import_module(f"{os.path.basename(folder)}.program").main(int(sys.argv[1]))  # noqa: PTH119
