"""Figures of the source tree's structure, of the working tree or side by side with a revision.

    python scripts/structure.py [REVISION]
    python scripts/structure.py --write      writes the table of packages into docs/architecture.md

What is counted:

* package cycles: pairs of top-level packages of llmux that import each other, directly or through others;
* file circles: groups of modules that import each other, imports for type checking included;
* ``now`` in core: parameters named ``now``, and arguments that pass it on;
* records and protocols between gateway and core: the classes named in ``BETWEEN``, where they exist, and the methods of
  the protocols among them;
* docstrings that only refer elsewhere: "See X", "The opposite", "Who answers".

Standard library only. A revision is read with ``git archive``; the working tree is not touched.
"""

import ast
import io
import re
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LAYERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("errors", "exceptions that cross a package's boundary", ()),
    ("cancellation", "waiting that a cancellation does not cut short", ()),
    ("os_errors", "errors of the operating system: whose fault they are, and how they are told", ()),
    ("host_names", "names and addresses of hosts: in headers, URLs and the configuration", ()),
    ("redaction", "takes secrets out of text that others may read", ()),
    ("core", "pure: states, events, actions, the scheduler, placement, costs, policies", ("errors",)),
    ("access", "the port between the gateway and the runtime: leases on models", ("core", "errors")),
    (
        "engines",
        "the port to engines, one module for each kind: command line, names, paths, control calls, eviction steps",
        ("core", "host_names", "errors"),
    ),
    (
        "config",
        "the schema, the loader, files of 0.7.7 and of other programs",
        ("engines", "core", "redaction", "host_names", "errors"),
    ),
    (
        "gpus",
        "the GPUs' memory and which processes hold it (NVML); waiting until enough is free; suspending CUDA processes",
        ("core", "cancellation", "errors"),
    ),
    ("hosts", "ports, directories, processes and memory of this machine", ("core", "errors")),
    ("observability", "metrics and logs", ("core", "os_errors", "errors")),
    (
        "checkpoints",
        "images of processes: criu's command lines, and all that criu leaves to others",
        ("hosts", "core", "cancellation", "errors"),
    ),
    (
        "instances",
        "one running engine: process, shim, health, canary, images, and the instance that takes its steps",
        (
            "engines",
            "checkpoints",
            "gpus",
            "hosts",
            "access",
            "core",
            "redaction",
            "os_errors",
            "cancellation",
            "errors",
        ),
    ),
    (
        "gateway",
        "the data plane: HTTP/1.1 in `http/`, connections and exchanges in `proxy/`",
        ("access", "engines", "observability", "core", "host_names", "os_errors", "errors"),
    ),
    (
        "runtime",
        "performs what the scheduler decides (controller, dispatcher, operations); finds hung engines; reads ahead",
        ("instances", "observability", "hosts", "gpus", "access", "core", "errors"),
    ),
    (
        "control",
        "control API, status page, model list, in 0.7.7's words where it had some",
        ("runtime", "gateway", "instances", "observability", "core", "host_names", "errors"),
    ),
    (
        "server",
        "the composition root: builds everything that serves, and runs it",
        (
            "control",
            "runtime",
            "gateway",
            "instances",
            "engines",
            "checkpoints",
            "observability",
            "hosts",
            "gpus",
            "config",
            "access",
            "core",
            "redaction",
            "errors",
        ),
    ),
    (
        "tools",
        "the command line's jobs with one engine and no server: validate, checkpoint, restore",
        ("server", "instances", "engines", "checkpoints", "gpus", "hosts", "config", "core", "errors"),
    ),
    (
        "diagnosis",
        "looks for what usually goes wrong, before it does: the checks of ``llmux doctor``",
        ("server", "engines", "checkpoints", "gpus", "hosts", "config", "core", "errors"),
    ),
    (
        "simulation",
        "the simulated engine and its virtual GPU; virtual runs over traces, replay, demo: [simulation](simulation.md)",
        ("server", "runtime", "config", "observability", "gpus", "hosts", "core", "errors"),
    ),
    (
        "cli",
        "one module per command",
        (
            "simulation",
            "diagnosis",
            "tools",
            "server",
            "control",
            "runtime",
            "instances",
            "engines",
            "checkpoints",
            "observability",
            "hosts",
            "gpus",
            "config",
            "core",
            "host_names",
            "errors",
        ),
    ),
)
"""Every top-level package (or module) of llmux from the bottom up: what it is for, and which ones it may import."""

SIMULATION_MAY_BE_IMPORTED_BY = (
    "simulation",
    "cli.demo",
    "cli.main",
    "cli.replay",
    "cli.simulate",
    "cli.traces",
    "cli.tuning",
)
"""Everything else is production code, which knows nothing of the simulation."""

TABLE_BEGINS, TABLE_ENDS = "<!-- packages: begin (make structure) -->", "<!-- packages: end -->"

BETWEEN = {
    "_Pending": "record",
    "_DeskLease": "record",
    "Lease": "record",
    "Waiting": "record",
    "Frozen": "record",
    "Request": "record",
    "LeaseHolder": "protocol",
    "LeaseDesk": "protocol",
    "Requests": "protocol",
    "ModelAccess": "protocol",
    "RequestHolder": "protocol",
}
"""Classes that describe a request, or pass one on, between gateway and core, by today's names and earlier ones."""

BETWEEN_PLACES = ("access.py", "runtime/", "core/")

REFERS_ELSEWHERE = re.compile(r"^(See ``[^`]+``|The opposite|Who [a-z]+s( [a-z]+){0,3})(; .*)?\.?$")

Sources = Mapping[str, str]
"""Python files by their path from the root of the repository."""


def working_tree() -> Sources:
    """The files as they are on disk."""
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for folder in ("src", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }


def revision(name: str) -> Sources:
    """The files of a commit."""
    archive = subprocess.run(["git", "archive", name, "src", "tests"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = [member for member in tar if member.isfile() and member.name.endswith(".py")]
        return {member.name: tar.extractfile(member).read().decode() for member in members}  # type: ignore[union-attr]


def module_of(path: str) -> str:
    """``src/llmux/core/model.py`` is ``core.model``; a package's ``__init__`` is the package."""
    return path.removeprefix("src/llmux/").removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def imports_of(tree: ast.AST, known: Iterable[str]) -> Iterator[str]:
    """The modules of llmux that a module imports."""
    names = set(known)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "llmux":
            base = node.module.removeprefix("llmux").removeprefix(".")
            for alias in node.names:
                joined = f"{base}.{alias.name}" if base else alias.name
                yield joined if joined in names else base
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("llmux."):
                    yield alias.name.removeprefix("llmux.")


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components with more than one member (Tarjan)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], index[target])
        if lowest[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def import_graph(trees: Mapping[str, ast.AST]) -> dict[str, set[str]]:
    """Which module imports which; a package's ``__init__`` is left out, it only says what the package is for."""
    return {module: {name for name in imports_of(tree, trees) if name in trees} for module, tree in trees.items()}


def package_cycles(graph: Mapping[str, set[str]]) -> list[str]:
    """Pairs of top-level packages that import each other."""
    edges = {(module.split(".")[0], target.split(".")[0]) for module, targets in graph.items() for target in targets}
    return sorted(f"{a} <-> {b}" for a, b in edges if a < b and (b, a) in edges)


def now_count(trees: Iterable[ast.AST]) -> int:
    """Parameters named ``now``, and arguments that pass it on."""
    count = 0
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                count += sum(a.arg == "now" for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))
            elif isinstance(node, ast.Call):
                given = (*node.args, *(keyword.value for keyword in node.keywords))
                count += sum(isinstance(value, ast.Name) and value.id == "now" for value in given)
    return count


def between(trees: Mapping[str, ast.AST]) -> tuple[int, int, int]:
    """Records and protocols between gateway and core, and the protocols' methods."""
    records = protocols = methods = 0
    for module, tree in trees.items():
        path = module.replace(".", "/") + ".py"
        if not path.startswith(BETWEEN_PLACES):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name in BETWEEN:
                if BETWEEN[node.name] == "record":
                    records += 1
                else:
                    protocols += 1
                    methods += sum(isinstance(member, ast.FunctionDef) for member in node.body)
    return records, protocols, methods


def layers_table() -> str:
    """The table of packages in docs/architecture.md."""
    rows = [f"| `{name}` | {purpose} | {', '.join(allowed) or 'nothing'} |" for name, purpose, allowed in LAYERS]
    return "\n".join(["| package | what it is for | may import |", "|---|---|---|", *reversed(rows)])


def with_table(document: str) -> str:
    """The document with the table of packages as it should be."""
    before, _, rest = document.partition(TABLE_BEGINS)
    _, _, after = rest.partition(TABLE_ENDS)
    return f"{before}{TABLE_BEGINS}\n{layers_table()}\n{TABLE_ENDS}{after}"


def figures(sources: Sources) -> dict[str, object]:
    """Everything that is counted, by its name."""
    modules = {path: text for path, text in sources.items() if path.startswith("src/llmux/")}
    trees = {module_of(path): ast.parse(text) for path, text in modules.items()}
    graph = import_graph(trees)
    lines = [text.count("\n") for text in modules.values()]
    with_code = [text.count("\n") for path, text in modules.items() if not path.endswith("/__init__.py")]
    core = [tree for module, tree in trees.items() if module.split(".")[0] == "core"]
    records, protocols, methods = between(trees)
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    documented = (
        node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return {
        "package cycles": len(package_cycles(graph)),
        "file circles": len(circles(graph)),
        "modules": len(lines),
        "  median lines": int(statistics.median(lines)),
        "  under 50 lines": sum(count < 50 for count in lines),
        "  under 50, without __init__.py": sum(count < 50 for count in with_code),
        "  over 400 lines": sum(count > 400 for count in lines),
        "lines in src": sum(text.count("\n") for text in modules.values()),
        "lines in tests": sum(text.count("\n") for path, text in sources.items() if path.startswith("tests/")),
        "'now' in core": now_count(core),
        "records, gateway to core": records,
        "protocols, gateway to core": protocols,
        "  their methods": methods,
        "classes over 20 methods": sum(
            sum(isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) for member in node.body) > 20
            for node in classes
        ),
        "docstrings that refer elsewhere": sum(
            bool(REFERS_ELSEWHERE.match((ast.get_docstring(node) or "").strip())) for node in documented
        ),
    }


def main() -> None:
    """Print the figures, of a revision beside those of the working tree if one is named."""
    if sys.argv[1:] == ["--write"]:
        document = ROOT / "docs" / "architecture.md"
        document.write_text(with_table(document.read_text()))
        return
    if any(argument.startswith("-") for argument in sys.argv[1:]):
        sys.exit("usage: structure.py [--write | REVISION]")
    columns = {"now": figures(working_tree())}
    if len(sys.argv) > 1:
        columns = {sys.argv[1]: figures(revision(sys.argv[1])), **columns}
    print(" " * 34 + "".join(f"{title:>12}" for title in columns))
    for name in columns["now"]:
        print(f"{name:<34}" + "".join(f"{column[name]!s:>12}" for column in columns.values()))


if __name__ == "__main__":
    main()
