"""House rules that a linter does not know: directions of imports, a pure core, sizes, docstrings that say something.

Complexity is ruff's (C901, at most 12; a ``match`` over all events or actions is marked as a dispatch table). Layers
are one table, in scripts/structure.py, from which the one in docs/architecture.md is generated.
"""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from scripts import structure

ROOT = Path(__file__).parents[1]

MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 60

PURE = {
    "llmux",
    "abc",
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "heapq",
    "itertools",
    "math",
    "operator",
    "types",
    "typing",
}
"""What the core may import: nothing that has a clock, does I/O, or is random."""

ALLOWED = {name: {name, *allowed} for name, _, allowed in structure.LAYERS}
PACKAGES = tuple(ALLOWED)
ROOTS = ("", "__main__", "src/llmux/__init__")


# Parsed when a test wants it: every worker imports this module, and few run its tests.
@cache
def sources() -> dict[str, str]:
    return {path: text for path, text in structure.working_tree().items() if path.startswith("src/llmux/")}


@cache
def trees() -> dict[str, ast.Module]:
    return {structure.module_of(path): ast.parse(text) for path, text in sources().items()}


@cache
def graph() -> dict[str, set[str]]:
    return structure.import_graph(trees())


def package_of(module: str) -> str:
    return module.split(".")[0]


def test_the_table_of_layers_is_complete_and_in_order() -> None:
    assert {package_of(module) for module in trees()} - {"src", "__init__", "__main__"} == set(PACKAGES)
    for name, _, allowed in structure.LAYERS:
        above = [other for other in allowed if PACKAGES.index(other) > PACKAGES.index(name)]
        assert not above, f"{name} must not import from above: {above}"


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_downwards(package: str) -> None:
    wrong = [
        f"{module} imports {target}"
        for module, targets in graph().items()
        if package_of(module) == package
        for target in sorted(targets)
        if package_of(target) in PACKAGES and package_of(target) not in ALLOWED[package]
    ]
    assert not wrong


def test_no_package_cycles_and_no_file_circles() -> None:
    assert structure.package_cycles(graph()) == []
    assert structure.circles(graph()) == []


def test_production_code_knows_nothing_of_the_simulation() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, targets in graph().items()
        for target in targets
        if package_of(target) == "simulation"
        and not any(f"{module}.".startswith(f"{one}.") for one in structure.SIMULATION_MAY_BE_IMPORTED_BY)
    ]
    assert not wrong


def test_the_documented_table_of_packages_is_the_one_that_is_checked() -> None:
    document = (ROOT / "docs" / "architecture.md").read_text()
    assert structure.with_table(document) == document, "run: make structure"


def test_names_and_addresses_of_hosts_are_read_in_one_module() -> None:
    readers = re.compile(r"\b(?:ipaddress|ip_address|inet_aton)\b")
    assert [module_path for module_path, text in sources().items() if readers.search(text)] == [
        "src/llmux/host_names.py"
    ]


def test_the_core_is_pure() -> None:
    for module, tree in trees().items():
        if package_of(module) != "core":
            continue
        for node in ast.walk(tree):
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"{module}:{node.lineno} is asynchronous"
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]}
            else:
                continue
            assert names <= PURE, f"{module}:{node.lineno} imports {names - PURE}"


def test_sizes() -> None:
    for path, text in sources().items():
        assert text.count("\n") <= MODULE_LINES_MAX, f"{path} has {text.count(chr(10))} lines"
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= FUNCTION_LINES_MAX, f"{module}: {node.name} has {length} lines"


def test_public_names_have_docstrings() -> None:
    for module, tree in trees().items():
        assert ast.get_docstring(tree) or module in ROOTS, f"{module} does not say what it is for"
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        nodes += [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        for node in nodes:
            assert node.name.startswith("_") or ast.get_docstring(node), f"{module}: {node.name} has no docstring"


def test_docstrings_say_something() -> None:
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = (ast.get_docstring(node) or "").strip()
                assert not structure.REFERS_ELSEWHERE.match(text), f"{module}: {node.name} only refers elsewhere"


def test_no_leftovers() -> None:
    for path, text in sources().items():
        for number, line in enumerate(text.splitlines(), 1):
            assert not re.search(r"\b(TODO|FIXME|XXX)\b", line), f"{path}:{number}: finish it or file an issue"


def test_the_limits_of_the_ci_steps_add_up_to_less_than_cis_own() -> None:
    limits = re.findall(r'^ *step "[^"]+" (\d+) ', (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert len(limits) == 15
    assert sum(map(int, limits)) <= 90


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


NAMES_ONE_ENGINE = re.compile(r"vllm|sglang|llama_cpp|comfyui", re.IGNORECASE)
KEPT = re.compile(r"vllm_command|RUST_LOG|ENGINE_TARGET|\"engine: [a-z_, ]+\.")
"""0.7.7's key for the program and its name for the engines' output, and which kinds have a key of the configuration."""
KNOWS_KINDS = ("engines", "simulation", "config.migration", "cli.migrate")
"""The latter two read the files of other programs."""


def test_only_the_package_of_engines_knows_one_kind_from_another() -> None:
    named = [
        f"{path}: {line.strip()}"
        for path, text in sources().items()
        if not structure.module_of(path).startswith(KNOWS_KINDS)
        for line in text.splitlines()
        if NAMES_ONE_ENGINE.search(KEPT.sub("", line))
    ]
    assert not [line for line in named if not KEPT.search(line)]


def test_every_test_that_the_documents_name_exists() -> None:
    named = re.compile(r"`((?:unit|integration)/[\w/]+\.py)(?:::(test_\w+))?`")
    wrong = []
    for document in sorted((ROOT / "docs").glob("*.md")):
        for file, name in named.findall(document.read_text()):
            path = ROOT / "tests" / file
            if not path.is_file() or (name and f"def {name}(" not in path.read_text()):
                wrong.append(f"{document.name}: {file}::{name}")
    assert not wrong
    assert len(named.findall((ROOT / "docs/migration.md").read_text())) > 80, "the table of 0.7.7's rows is there"
