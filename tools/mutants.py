"""Does a test notice? Small changes to a module, one at a time, each against the unit and contract tests of its line.

`make mutants` judges the modules of `mutants.json` and fails if one is below its floor. `make mutants MODULE=NAME` judges
one and names what survived. The sample is seeded: the same code gives the same mutants. A survivor is read: it gets its
test, or a line in `mutants.json` (`equivalent`) with the reason why it changes nothing.

Each mutant is compiled in a forked child and put in the module's place by an import hook, so no file is ever changed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.util
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
TIERS = ("tests/unit", "tests/contract")
LIMIT_S = 60.0  # a mutant that loops counts as killed
FLOORS = ROOT / "tools/mutants.json"

SWAPS: dict[type, type] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


class Mutant(NamedTuple):
    """One change: the node's place in a walk over the tree, and which of its changes."""

    line: int
    place: int
    change: str


def _changes(node: ast.AST) -> list[str]:
    """What may be changed in a node, by name."""
    if isinstance(node, ast.Compare):
        return [f"swap {index}" for index, op in enumerate(node.ops) if type(op) in SWAPS]
    if isinstance(node, ast.BoolOp | ast.BinOp | ast.AugAssign):
        return ["swap"] if type(node.op) in SWAPS else []
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        return ["negate"]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ["drop not"]
    if isinstance(node, ast.Constant) and type(node.value) in (int, bool):
        return ["other"]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await):
        return ["drop"]
    if isinstance(node, ast.Assign) and any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
        return ["drop"]
    if isinstance(node, ast.Return):
        is_none = node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None)
        return ["drop"] if is_none else ["return None"]
    return []


def _apply(node: Any, change: str) -> ast.AST | None:
    """Change the node in place, or give another for it."""
    what, _, number = change.partition(" ")
    if what == "swap" and number:
        node.ops[int(number)] = SWAPS[type(node.ops[int(number)])]()
    elif what == "swap":
        node.op = SWAPS[type(node.op)]()
    elif what == "negate":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif change == "drop not":
        return node.operand  # type: ignore[no-any-return]
    elif change == "other":
        node.value = not node.value if type(node.value) is bool else node.value + 1
    elif change == "drop":
        return ast.Pass()
    else:
        node.value = ast.Constant(None)
    return None


def _is_quiet(node: ast.AST) -> bool:
    """Nothing that a test should look at: log lines, assertions, types, what only a type checker reads."""
    if isinstance(node, ast.Assert | ast.Raise):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func).startswith(("_log.", "logs."))
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases)


def _nodes(tree: ast.Module) -> list[ast.AST]:
    """Those inside functions, in the order of the text, without what is quiet and without annotations."""
    found: list[ast.AST] = []

    def visit(node: ast.AST, *, inside: bool) -> None:
        if _is_quiet(node):
            return
        if inside:
            found.append(node)
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list") or isinstance(value, ast.arguments):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, inside=inside)

    visit(tree, inside=False)
    return found


def mutants_of(source: str) -> list[Mutant]:
    return [
        Mutant(getattr(node, "lineno", 0), place, change)
        for place, node in enumerate(_nodes(ast.parse(source)))
        for change in _changes(node)
    ]


def mutated(source: str, mutant: Mutant) -> ast.Module:
    tree = ast.parse(source)
    node = _nodes(tree)[mutant.place]
    other = _apply(node, mutant.change)
    if other is not None:

        class Replace(ast.NodeTransformer):
            def generic_visit(self, visited: ast.AST) -> ast.AST:
                return other if visited is node else super().generic_visit(visited)

            visit = generic_visit  # type: ignore[assignment]

        Replace().visit(tree)
    return ast.fix_missing_locations(tree)


def covering(modules: list[str]) -> dict[str, dict[int, set[str]]]:
    """By file and line: the tests that run it, as pytest's arguments."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        command = [sys.executable, "-m", "coverage", "run", f"--data-file={data}"]
        command += [f"--include={','.join(str(_file_of(module)) for module in modules)}", "-m", "pytest", "-q"]
        command += ["-p", "no:cacheprovider", "-p", "mutant_contexts", *TIERS]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            sys.exit(f"mutants: the tests are red without any:\n{done.stdout[-2000:]}")
        from coverage import CoverageData

        found = CoverageData(str(data))
        found.read()
        return {
            file: {line: {test for test in tests if test} for line, tests in found.contexts_by_lineno(file).items()}
            for file in found.measured_files()
        }


def _file_of(module: str) -> Path:
    return ROOT / "src" / (module.replace(".", "/") + ".py")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module from a changed tree."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self._module = module
        self._tree = tree

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._module:
            return None
        return importlib.util.spec_from_file_location(name, _file_of(name), loader=self)  # type: ignore[arg-type]

    def exec_module(self, module: Any) -> None:
        exec(compile(self._tree, str(_file_of(self._module)), "exec"), module.__dict__)


def _try(module: str, tree: ast.Module, tests: list[str]) -> int:
    """In a forked child: pytest's exit code."""
    import pytest

    os.setpgid(0, 0)
    os.chdir(ROOT)
    sys.meta_path.insert(0, Finder(module, tree))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def survives(module: str, tree: ast.Module, tests: list[str]) -> bool:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 1)
            os.dup2(devnull, 2)
            code = _try(module, tree, tests)
        finally:
            os._exit(code)
    until = time.monotonic() + LIMIT_S
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() > until:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # what it started
    return os.waitstatus_to_exitcode(status) == 0


def judge(module: str, lines: dict[int, set[str]], equivalent: list[dict[str, str]], count: int, seed: int) -> float:
    """The share that is killed, of a sample without those that are known to change nothing. Prints the survivors."""
    source = _file_of(module).read_text()
    text = source.split("\n")
    known = {(each["line"], each["change"]) for each in equivalent}
    every = [mutant for mutant in mutants_of(source) if (text[mutant.line - 1].strip(), mutant.change) not in known]
    chosen = sorted(random.Random(f"{module} {seed}").sample(every, min(count, len(every))))

    def alive(mutant: Mutant) -> str | None:
        tests = sorted(lines.get(mutant.line, ()))
        if not tests:
            return "no test runs it"
        return "survived" if survives(module, mutated(source, mutant), tests) else None

    with ThreadPoolExecutor(2) as pool:
        fates = list(pool.map(alive, chosen))
    killed = fates.count(None)
    share = 100 * killed / max(1, len(chosen))
    print(f"{module}: {killed} of {len(chosen)} killed ({share:.0f} %), of {len(every)} possible")
    for mutant, fate in zip(chosen, fates, strict=True):
        if fate is not None:
            print(f"  {mutant.line}: {text[mutant.line - 1].strip()}  [{mutant.change}] {fate}")
    sys.stdout.flush()
    return share


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as roost.gateway.routing.router (default: all that have a floor)")
    parser.add_argument("--count", type=int, default=40, help="mutants of each module (default: 40)")
    parser.add_argument("--seed", type=int, default=1)
    parsed = parser.parse_args()
    kept: dict[str, Any] = json.loads(FLOORS.read_text())
    modules = parsed.modules or list(kept["floors"])
    for module in modules:
        if not _file_of(module).is_file():
            print(f"mutants: there is no module {module}; give its whole name, such as roost.link.unix", file=sys.stderr)
            return 2
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]
    lines = covering(modules)
    import pytest  # noqa: F401 - loaded once for all children

    below = []
    for module in modules:
        floor = kept["floors"].get(module, 0)
        share = judge(
            module, lines.get(str(_file_of(module)), {}), kept["equivalent"].get(module, []), parsed.count, parsed.seed
        )
        if share < floor:
            below.append(f"{module}: {share:.0f} %, its floor is {floor} %")
    for line in below:
        print(f"below its floor: {line}", file=sys.stderr)
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
