"""Faults planted into functions of the code under test, by changing their syntax trees.

A change says where it applies by kind and position ("the second ``if``"), never by a name, so that renaming things does
not break it. Positions count in source order, within the function; negative ones count from the end.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType

Change = Callable[[ast.AST], None]
"""Changes a function's tree in place; raises AssertionError if there is nothing to change."""


@dataclass(frozen=True)
class Fault:
    """One planted fault: a change of a function."""

    what: str
    function: Callable[..., object]
    change: Change


def condition(nth: int, *, always: bool) -> Change:
    """The nth ``if``, or conditional expression, is always taken or never."""

    def change(tree: ast.AST) -> None:
        node = _nth(tree, nth, ast.If, ast.IfExp)
        assert isinstance(node, ast.If | ast.IfExp)
        node.test = ast.Constant(always)

    return change


def operand(nth: int, position: int, *, value: bool) -> Change:
    """In the nth ``and`` or ``or``, the operand at a position is a constant."""

    def change(tree: ast.AST) -> None:
        node = _nth(tree, nth, ast.BoolOp)
        assert isinstance(node, ast.BoolOp)
        node.values[position] = ast.Constant(value)

    return change


def without(nth: int, *kinds: type[ast.stmt]) -> Change:
    """The nth statement of these kinds (calls, if none are named) is left out."""

    def change(tree: ast.AST) -> None:
        chosen = _nth(tree, nth, *(kinds or (ast.Expr,)))
        for node in ast.walk(tree):
            for name in ("body", "orelse"):
                statements = getattr(node, name, None)
                if isinstance(statements, list) and chosen in statements:
                    statements[statements.index(chosen)] = ast.Pass()
                    return
        raise AssertionError("the statement is in no body")

    return change


def over_nothing(nth: int) -> Change:
    """The nth ``for`` loop runs over nothing."""

    def change(tree: ast.AST) -> None:
        node = _nth(tree, nth, ast.For)
        assert isinstance(node, ast.For)
        node.iter = ast.Tuple([], ast.Load())

    return change


def argument(builtin: str, nth: int, position: int, becomes: str) -> Change:
    """In the nth call of a builtin, the argument at a position becomes another expression."""

    def change(tree: ast.AST) -> None:
        calls = [
            node
            for node in _nodes(tree, ast.Call)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == builtin
        ]
        calls[nth].args[position] = _expression(becomes)

    return change


def assigned(nth: int, becomes: str) -> Change:
    """The nth assignment assigns another expression."""
    return _with_value(ast.Assign, nth, becomes)


def returned(nth: int, becomes: str) -> Change:
    """The nth ``return`` returns another expression."""
    return _with_value(ast.Return, nth, becomes)


def constant(before: object, after: object) -> Change:
    """The one constant of this value has another."""

    def change(tree: ast.AST) -> None:
        found = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and node.value == before and type(node.value) is type(before)
        ]
        assert len(found) == 1, f"{len(found)} constants are {before!r}"
        found[0].value = after  # type: ignore[assignment]

    return change


def compared(nth: int, *, left: str = "{}", right: str = "{}", operator: type[ast.cmpop] | None = None) -> Change:
    """The nth comparison compares something else: ``{}`` stands for what it compared before."""

    def change(tree: ast.AST) -> None:
        node = _nth(tree, nth, ast.Compare)
        assert isinstance(node, ast.Compare)
        node.left = _expression(left.format(f"({ast.unparse(node.left)})"))
        node.comparators[0] = _expression(right.format(f"({ast.unparse(node.comparators[0])})"))
        if operator is not None:
            node.ops[0] = operator()

    return change


def added(nth: int, becomes: str) -> Change:
    """In the nth sum, what is added becomes another expression."""

    def change(tree: ast.AST) -> None:
        sums = [
            node for node in _nodes(tree, ast.BinOp) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)
        ]
        sums[nth].right = _expression(becomes)

    return change


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """Have the fault in place, for every caller of the function."""
    function = fault.function
    assert isinstance(function, FunctionType)
    module = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = module.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list.clear()
    before = ast.dump(module)
    fault.change(definition)
    assert ast.dump(module) != before, f"{fault.what}: the change changes nothing"
    namespace: dict[str, object] = {}
    exec(compile(ast.fix_missing_locations(module), "planted", "exec"), function.__globals__, namespace)
    changed = namespace[function.__name__]
    assert isinstance(changed, FunctionType)
    original: CodeType = function.__code__
    function.__code__ = changed.__code__
    try:
        yield
    finally:
        function.__code__ = original


def _with_value(kind: type[ast.Assign | ast.Return], nth: int, becomes: str) -> Change:
    def change(tree: ast.AST) -> None:
        node = _nth(tree, nth, kind)
        assert isinstance(node, ast.Assign | ast.Return)
        node.value = _expression(becomes)

    return change


def _nodes(tree: ast.AST, *kinds: type[ast.AST]) -> list[ast.AST]:
    """All nodes of these kinds in source order, docstrings left out."""
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, kinds) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))  # type: ignore[attr-defined]


def _nth(tree: ast.AST, nth: int, *kinds: type[ast.AST]) -> ast.AST:
    nodes = _nodes(tree, *kinds)
    assert -len(nodes) <= nth < len(nodes), f"there are {len(nodes)} of {[kind.__name__ for kind in kinds]}"
    return nodes[nth]


def _expression(source: str) -> ast.expr:
    return ast.parse(source, mode="eval").body
