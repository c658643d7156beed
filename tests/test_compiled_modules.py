"""What must hold of the modules that hatch_build.py compiles, whether they are compiled or not."""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest

ROOT = Path(__file__).parent.parent


def build_hook() -> ModuleType:
    """hatch_build.py, whose only import beyond the standard library is the builder that calls it."""
    spec = spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    name = "hatchling.builders.hooks.plugin.interface"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, MagicMock(BuildHookInterface=object))
        spec.loader.exec_module(module)
    return module


HOOK = build_hook()
COMPILED: list[str] = HOOK.modules(ROOT)


def caught(function: ast.AST) -> Iterator[tuple[str, str]]:
    """The names that a function's handlers bind to exceptions, each with its type; not those of functions within."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.ExceptHandler) and node.name is not None:
            yield node.name, ast.unparse(node.type) if node.type is not None else "BaseException"
        yield from caught(node)


def doubly_caught(source: str) -> list[tuple[str, str]]:
    """The functions in which handlers of different exceptions use one name, with the name."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        types = defaultdict(set)
        for name, kind in caught(function):
            types[name].add(kind)
        found += [(function.name, name) for name, kinds in types.items() if len(kinds) > 1]
    return found


def looked_up_members(source: str) -> list[str]:
    """A module's names for members of an Enum that are not Final: ``_HEAD = Phase.HEAD``, ``_HEAD, _BODY = Phase``."""
    found = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign):
            continue
        value, target = node.value, node.targets[0]
        is_member = isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.attr.isupper()
        if is_member or (isinstance(value, ast.Name) and isinstance(target, ast.Tuple)):
            found.append(ast.unparse(target))
    return found


def test_members_of_enums_are_not_looked_up() -> None:
    assert looked_up_members("_A = Phase.A\n_B, _C = Phase\n_D: Final = Phase.D\nE = 1") == ["_A", "(_B, _C)"]
    found = {path: names for path in COMPILED if (names := looked_up_members((ROOT / path).read_text()))}
    assert not found, "each use of these is a look-up where it is compiled: make them Final"


def final_tuples(source: str) -> list[str]:
    """A module's names for tuples that are Final."""
    return [
        ast.unparse(node.target)
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign)
        and ast.unparse(node.annotation).startswith("Final")
        and isinstance(node.value, ast.Tuple)
    ]


def test_no_tuple_is_final() -> None:
    assert final_tuples("_A: Final = (1, 2)\n_B = (1, 2)\n_C: Final = 3") == ["_A"]
    found = {path: names for path in COMPILED if (names := final_tuples((ROOT / path).read_text()))}
    assert not found, "where it is compiled, its value is not set when it is used"


def test_a_trap_of_the_compiler_is_seen() -> None:
    trapped = """
def f():
    try: a()
    except KeyError as error: b(error)
    try: a()
    except (OSError, ValueError) as error: b(error)
def g():
    try: a()
    except KeyError as error: b(error)
    except OSError as refusal: b(refusal)
    def h():
        try: a()
        except IndexError as error: b(error)
"""
    assert doubly_caught(trapped) == [("f", "error")]


@pytest.mark.parametrize("path", COMPILED)
def test_no_handlers_of_different_exceptions_share_a_name(path: str) -> None:
    """mypyc gives such a name the type of the first of them, and the second exception becomes a TypeError."""
    assert doubly_caught((ROOT / path).read_text()) == []


def test_what_is_compiled_is_there_and_nothing_is_left_out_in_vain() -> None:
    assert {"src/llmux/gateway/proxy/exchange.py", "src/llmux/core/scheduler.py"} < set(COMPILED)
    for path in HOOK.PLAIN:
        assert (ROOT / "src" / path).exists()
        assert any(fnmatch(path, pattern.replace("**/", "*")) for pattern in HOOK.COMPILED)


@pytest.mark.parametrize(("variable", "version"), [("", "standard"), ("0", "standard"), ("1", "editable")])
def test_nothing_is_compiled_unasked_or_for_an_editable_install(
    variable: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOOK.VARIABLE, variable)
    data: dict[str, object] = {"pure_python": True}
    hook = HOOK.CompilingHook()
    hook.initialize(version, data)
    hook.finalize(version, data, "")
    assert data == {"pure_python": True}


def test_nothing_more_is_required_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOOK.VARIABLE, raising=False)
    assert HOOK.CompilingHook().dependencies() == []
