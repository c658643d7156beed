"""The house rules that a linter does not know: sizes, directions of imports, a pure core, a test for every module."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "llmux"
MODULES = sorted(SOURCE.rglob("*.py"))

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60

LAYERS = {
    "errors": set(),
    "core": {"errors"},
    "access": {"core", "errors"},
    "config": {"core", "errors"},
    "gpus": {"core", "errors"},
    "hosts": {"core", "errors"},
    "checkpoints": {"core", "hosts", "errors"},
    "engines": {"checkpoints", "gpus", "hosts", "access", "core", "errors"},
    "observability": {"core", "errors"},
    "gateway": {"access", "observability", "core", "errors"},
    "runtime": {"access", "engines", "observability", "core", "errors"},
    "control": {"runtime", "gateway", "engines", "observability", "core", "errors"},
    "server": {
        "runtime",
        "control",
        "gateway",
        "engines",
        "checkpoints",
        "gpus",
        "hosts",
        "observability",
        "config",
        "access",
        "core",
        "errors",
    },
    "tools": {"server", "engines", "checkpoints", "gpus", "hosts", "config", "core", "errors"},
    "simulation": {"server", "runtime", "config", "observability", "gpus", "core", "errors"},
    "cli": {"tools", "server", "config", "simulation", "observability", "engines", "hosts", "gpus", "core", "errors"},
}
"""What each package may import, beside itself."""

AVOIDED = re.compile(r"manager|handler|utils|helper|common", re.IGNORECASE)


def module_name(path: Path) -> str:
    """``src/llmux/core/model.py`` is ``core.model``."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[str]:
    """Names within llmux that a module imports, as ``core.model``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "llmux":
            base = node.module.removeprefix("llmux").removeprefix(".")
            for alias in node.names:
                joined = f"{base}.{alias.name}" if base else alias.name
                yield joined if (SOURCE / joined.replace(".", "/")).with_suffix(".py").exists() else base
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("llmux."):
                    yield alias.name.removeprefix("llmux.")


def within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(allowed + ".")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    name = module_name(path)
    package = name.split(".")[0]
    if package in ("", "__init__", "__main__"):
        return
    allowed = {package, *LAYERS[package]}
    wrong = [imported for imported in imports_of(path) if imported and not any(within(imported, a) for a in allowed)]
    assert not wrong, f"{name} must not import {wrong}"


@pytest.mark.parametrize("path", [path for path in MODULES if module_name(path).startswith("core")], ids=module_name)
def test_the_core_is_pure(path: Path) -> None:
    tree = ast.parse(path.read_text())
    allowed = {"llmux", "collections", "dataclasses", "enum", "heapq", "itertools", "math", "typing", "bisect", "abc"}
    for node in ast.walk(tree):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"line {node.lineno} is asynchronous"
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] in allowed, f"line {node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MODULE_LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_names_and_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not AVOIDED.search(path.stem), "the name says nothing"
    if path.stat().st_size > 1:
        assert ast.get_docstring(tree), "the module does not say what it is for"
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.ClassDef):
            assert not AVOIDED.search(node.name), f"the name {node.name} says nothing"
            if not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{node.name} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_leftovers(path: Path) -> None:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        assert not re.search(r"\b(TODO|FIXME|XXX)\b", line), f"line {number}: finish it or file an issue"


def test_every_dependency_is_pinned_for_the_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        re.split(r"[=<>\s]", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.split(r"[=<>;\[\s]", text)[0].lower().replace("_", "-") for text in wanted}
    assert names <= pinned, names - pinned
