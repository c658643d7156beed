"""Under which conditions a figure was taken: the machine and how busy it was, the Python and how it was built."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

_QUESTION = """
import json, platform, sysconfig
from importlib.metadata import version
from llmux import how_built
flags = sysconfig.get_config_var("CONFIG_ARGS") or ""
print(json.dumps({
    "python": platform.python_version(),
    "optimised": "PGO" if "--enable-optimizations" in flags else "no PGO",
    "lto": "LTO" if "--with-lto" in flags else "no LTO",
    "compiler": platform.python_compiler(),
    "llmux": how_built(),
    "libraries": " ".join(f"{name} {version(name)}" for name in ("uvloop", "httptools", "msgspec")),
}))
"""


def describe_machine() -> str:
    """Processor, cores, kernel and load, in one line."""
    models = {
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    load = " ".join(f"{average:.1f}" for average in os.getloadavg())
    name = ", ".join(sorted(models)) or platform.machine()
    return f"machine: {name}, {os.cpu_count()} cores, Linux {platform.release()}, load {load}"


def describe_python(python: str) -> str:
    """How an interpreter was built, and the libraries that count on the data path, in one line."""
    told = _ask(python)
    build = f"{told['optimised']}, {told['lto']}, {told['compiler']}"
    return f"{python}: Python {told['python']} ({build}), llmux {told['llmux']}, {told['libraries']}"


def build_name(python: str) -> str:
    """Names what the number of instructions depends on, as ``Python 3.11, no PGO``, or that and ``, compiled``."""
    told = _ask(python)
    compiled = ", compiled" if told["llmux"] == "compiled" else ""
    return f"Python {told['python'].rpartition('.')[0]}, {told['optimised']}{compiled}"


def _ask(python: str) -> dict[str, str]:
    answer = subprocess.run([python, "-c", _QUESTION], check=True, capture_output=True, text=True).stdout
    return {str(key): str(value) for key, value in json.loads(answer).items()}


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which the share of the values lies; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0
