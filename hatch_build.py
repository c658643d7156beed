"""Compiles the path of a request and the simulator into native code with mypyc, where that is wanted of a wheel.

    LLMUX_COMPILE=1 pip wheel --no-deps .

gives a wheel for this Python and machine. Without the variable, and for editable installs, nothing is compiled and
nothing more is needed: the wheel is the usual one, of Python alone. The sources are in both, for tracebacks.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "LLMUX_COMPILE"
GROUP = "llmux"
"""The shared library of all modules is called after it."""
SOURCES = Path("src")
COMPILED = (
    "llmux/gateway/**/*.py",
    "llmux/core/*.py",
    "llmux/core/policies/*.py",
    "llmux/engines/paths.py",
    "llmux/runtime/dispatcher.py",
    "llmux/runtime/loop_clock.py",
    "llmux/observability/histogram.py",
    "llmux/simulation/virtual/*.py",
    "llmux/simulation/figures.py",
    "llmux/simulation/lower_bound.py",
    "llmux/simulation/on_time.py",
    "llmux/simulation/priced_turns.py",
    "llmux/simulation/occupancy.py",
    "llmux/simulation/residency.py",
)
PLAIN = (
    "llmux/gateway/__init__.py",
    "llmux/gateway/body_fields.py",  # msgspec decodes nothing into a compiled Struct
    "llmux/gateway/errors.py",  # an exception that is compiled takes no weak reference
    "llmux/gateway/large_bodies.py",
    "llmux/gateway/metrics.py",
    "llmux/gateway/pieces.py",
    "llmux/gateway/server.py",  # a server's sockets are a list with uvloop and a tuple for typeshed
    "llmux/core/__init__.py",
    "llmux/simulation/virtual/host_memory.py",
    "llmux/simulation/virtual/scenario.py",  # sees the types of all that serves, and would have the build need them
    "llmux/simulation/virtual/study.py",
)
"""Of these, the ones that stay as they are: what cannot be compiled, or gains nothing."""


def modules(root: Path) -> list[str]:
    """The files to compile, relative to ``root``."""
    found = {
        path.relative_to(root / SOURCES).as_posix() for pattern in COMPILED for path in (root / SOURCES).glob(pattern)
    }
    return [f"{SOURCES}/{path}" for path in sorted(found - set(PLAIN)) if not path.endswith("__init__.py")]


class CompilingHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's hook: adds the native modules to the wheel."""

    PLUGIN_NAME = "custom"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._until_packed = ExitStack()

    def dependencies(self) -> list[str]:
        """mypyc, and what it must see the types of."""
        if not _is_wanted():
            return []
        stubs = [one for one in self.metadata.core.optional_dependencies["lint"] if one.startswith("types-")]
        return ["mypy[mypyc]>=2.4", "setuptools", *stubs, *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is packed."""
        if version == "editable" or not _is_wanted():
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        folder = Path(self._until_packed.enter_context(TemporaryDirectory(prefix="llmux-compiled-")))
        build_data["force_include"].update(_compile(Path(self.root), folder))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what the wheel has a copy of. A build that fails leaves it to the end of the process."""
        self._until_packed.close()


def _is_wanted() -> bool:
    return os.environ.get(VARIABLE) == "1"


def _compile(root: Path, folder: Path) -> dict[str, str]:
    """Build the native modules in a folder; returns the place in the wheel of each file."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    options = ["--config-file", "pyproject.toml", *modules(root)]
    extensions = mypycify(options, opt_level="2", group_name=GROUP, target_dir=str(folder / "c"))
    distribution = Distribution({"name": GROUP, "ext_modules": extensions})
    build = distribution.get_command_obj("build_ext")
    build.build_lib, build.build_temp = str(folder / "lib"), str(folder / "temp")
    build.ensure_finalized()
    build.run()
    return {str(path): path.relative_to(folder / "lib").as_posix() for path in (folder / "lib").rglob("*.so")}
