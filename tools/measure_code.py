"""The shape of the code base in figures (`make measure-code`): sizes, circles of imports, access to others' private parts.

    python tools/measure_code.py [--json] [src/roost]

A circle is a set of modules each of which reaches every other by imports. *Typed* ones count imports under `TYPE_CHECKING`,
too, as a reader must follow them; *run-time* ones count what is imported when a module is loaded. A private access is
`thing._name` where `_name` is defined in another module only.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

LONG_FILE = 400
LONG_FUNCTION = 60
SHOWN = 12


class Function(NamedTuple):
    """One function or method: where it is, how many lines and parameters."""

    name: str
    lines: int
    parameters: int


class Module(NamedTuple):
    """What one file is made of."""

    name: str
    lines: int
    functions: list[Function]
    imports: set[str]  # as written, with those for types
    at_run_time: set[str]
    own_private: set[str]
    private_accesses: list[tuple[int, str]]


def read(path: Path, name: str) -> Module:
    """Parse one file."""
    text = path.read_text()
    tree = ast.parse(text)
    reader = _Reader(name)
    reader.visit(tree)
    return Module(
        name, text.count("\n"), reader.functions, reader.imports, reader.at_run_time, reader.own_private, reader.accesses
    )


class _Reader(ast.NodeVisitor):
    def __init__(self, module: str) -> None:
        self.module = module
        self.functions: list[Function] = []
        self.imports: set[str] = set()
        self.at_run_time: set[str] = set()
        self.own_private: set[str] = set()
        self.accesses: list[tuple[int, str]] = []
        self._modules: set[str] = set()
        self._only_types = False
        self._inside = 0

    def visit_If(self, node: ast.If) -> None:
        for_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        self.visit(node.test)
        before, self._only_types = self._only_types, self._only_types or for_types
        for child in node.body:
            self.visit(child)
        self._only_types = before
        for child in node.orelse:
            self.visit(child)

    def _imported(self, names: list[str]) -> None:
        self.imports.update(names)
        if not self._only_types and not self._inside:
            self.at_run_time.update(names)

    def visit_Import(self, node: ast.Import) -> None:
        self._imported([alias.name for alias in node.names])
        self._modules.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module:
            self._imported([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        arguments = node.args
        count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
        self.functions.append(Function(f"{self.module}:{node.name}", lines, count))
        self._defines(node.name)
        self._inside += 1
        self.generic_visit(node)
        self._inside -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self._defines(node.id)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._defines(node.name)
        for statement in node.body:
            if isinstance(statement, ast.Assign) and "__slots__" in ast.dump(statement.targets[0]):
                for each in ast.walk(statement.value):
                    if isinstance(each, ast.Constant) and isinstance(each.value, str):
                        self._defines(each.value)
        self.generic_visit(node)

    def _defines(self, name: str) -> None:
        if name.startswith("_"):
            self.own_private.add(name)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = node.attr
        if name.startswith("_") and not name.startswith("__"):
            owner = node.value
            if isinstance(owner, ast.Name) and owner.id in ("self", "cls"):
                if isinstance(node.ctx, ast.Store):
                    self.own_private.add(name)
            elif not (isinstance(owner, ast.Name) and owner.id in self._modules):
                self.accesses.append((node.lineno, name))
        self.generic_visit(node)


def read_all(root: Path) -> dict[str, Module]:
    """All modules of a package, by name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = read(path, name)
    return found


def graph(modules: dict[str, Module], *, typed: bool) -> dict[str, set[str]]:
    """Who imports whom."""
    return {
        name: {each for each in (module.imports if typed else module.at_run_time) if each in modules and each != name}
        for name, module in modules.items()
    }


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other, the largest first (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            at = stack.index(name)
            members = stack[at:]
            del stack[at:]
            if len(members) > 1:
                found.append(sorted(members))

    for name in arrows:
        if name not in order:
            visit(name)
    return sorted(found, key=len, reverse=True)


def private_accesses(modules: dict[str, Module]) -> dict[str, list[tuple[int, str]]]:
    """By module: the lines that touch what only other modules define."""
    defined = Counter(name for module in modules.values() for name in module.own_private)
    found = {}
    for module in modules.values():
        foreign = [
            (line, name) for line, name in module.private_accesses if name not in module.own_private and defined[name]
        ]
        if foreign:
            found[module.name] = foreign
    return found


def measure(root: Path) -> dict[str, object]:
    """All figures."""
    modules = read_all(root)
    functions = [function for module in modules.values() for function in module.functions]
    lengths = sorted(function.lines for function in functions)
    sizes = sorted(((module.lines, name) for name, module in modules.items()), reverse=True)
    foreign = private_accesses(modules)
    return {
        "modules": len(modules),
        "lines": sum(lines for lines, _ in sizes),
        "median_file": statistics.median(lines for lines, _ in sizes),
        "largest_file": sizes[0][0],
        "files_over_400": {name: lines for lines, name in sizes if lines > LONG_FILE},
        "median_function": statistics.median(lengths),
        "p95_function": lengths[int(len(lengths) * 0.95)],
        "functions_over_60": {each.name: each.lines for each in functions if each.lines > LONG_FUNCTION},
        "most_parameters": max((each.parameters, each.name) for each in functions),
        "typed_circles": circles(graph(modules, typed=True)),
        "run_time_circles": circles(graph(modules, typed=False)),
        "private_accesses": sum(map(len, foreign.values())),
        "private_accesses_by_file": {name: len(lines) for name, lines in foreign.items()},
        "private_attributes": Counter(name for lines in foreign.values() for _, name in lines).most_common(),
    }


def main() -> int:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parents[1] / "src/roost")
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args()
    found = measure(parsed.root)
    if parsed.json:
        print(json.dumps(found, indent=1))
        return 0
    for key, value in found.items():
        if isinstance(value, dict):
            shown = [f"  {count:5}  {name}" for name, count in list(value.items())[:SHOWN]]
            print(f"{key}: {len(value)}", *shown, sep="\n")
        elif isinstance(value, list) and value and isinstance(value[0], list):
            print(f"{key}: {' + '.join(str(len(circle)) for circle in value)}")
            for circle in value:
                print("  " + ", ".join(name.removeprefix("roost.") for name in circle))
        else:
            print(f"{key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
