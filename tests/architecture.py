"""The rules of ARCHITECTURE.md: who may import whom, no circles, small files, one place for hidden labels.

Imports are read with `ast`, not executed: those inside functions and under TYPE_CHECKING count, and so do
module names in strings, which is how `import_module` and ``python -m`` get them. `tests/test_architecture.py`
applies the rules to this repository, and to small trees that break them.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGES: dict[str, set[str]] = {
    "benchmarks": {"methods", "csaa", "results", "slurm"},
    "csaa": {"methods"},
    # The two ground files and the one way from a table to a dataclass: standard library only.
    "slurm": {"methods.errors", "methods.fields", "results.files"},
    "methods": set(),
    "results": set(),
}
"""What a package may import of the others: whole packages, or single modules."""

GROUND = {"workspace", "arguments", "progress", "signals", "provenance"}
"""Modules of `benchmarks` that each of its rooms may import; they import no room."""

ROOMS: dict[str, set[str]] = {
    "run": {"cli"},
    "worker": {"launch"},  # the old name of benchmarks/launch/worker.py, which saved plans call
    "cli": {"launch", "models", "checks", "plan", "status", "data"},
    "perf": {"launch", "training", "plan", "data"},
    "launch": {"models", "training", "plan", "status", "data"},
    "models": {"training", "plan", "data"},
    "training": {"plan", "data"},
    "checks": {"launch", "training", "plan", "data"},  # whole trainings of the contract
    "plan": {"data"},
    "status": set(),
    "data": set(),
}
"""What a room of `benchmarks` may import of the others, besides the ground."""

STARTS = {("launch", "run")}
"""Rooms that start a module of a higher room as a process: a SLURM job prepares data by a verb."""

LAZY_NAMES = {"benchmarks", "methods", "methods.backbones", "results"}
"""Packages whose `__init__` does something: lazy names, and declaring `csaa`."""

LIGHT = ("benchmarks.run", "benchmarks.cli", "benchmarks.status", "methods", "methods.backbones", "results")
"""Modules, or rooms with all their modules, that start without torch."""

HEAVY = {"torch", "torchvision", "accelerate", "open_clip", "timm", "transformers"}
LINES = 420
TOP_FLOOR = 8


@dataclass(frozen=True)
class Arrow:
    """One module names another: by ``import``, in a ``string``, or to ``start`` it as a process."""

    source: str
    target: str
    kind: str
    at_import: bool
    """Whether importing the source imports the target: not inside a function, not under TYPE_CHECKING."""


class Tree:
    """The modules of some packages below ``root``, and what each names.

    Attributes:
        files: path of each module by dotted name; a package stands for its ``__init__``.
        arrows: between these modules.
        outside: top-level packages from elsewhere that a module imports when it is imported.
    """

    def __init__(self, root: Path, packages: Collection[str]) -> None:
        self.root = root
        self.files = {
            self._name(path): path for package in packages for path in sorted((root / package).rglob("*.py"))
        }
        self.code = {
            name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in self.files.items()
        }
        self.arrows: set[Arrow] = set()
        self.outside: dict[str, set[str]] = {name: set() for name in self.files}
        for name, module in self.code.items():
            self._read(name, module)

    def _name(self, path: Path) -> str:
        parts = path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def _read(self, name: str, module: ast.Module) -> None:
        started = set()
        for node, at_import in _nodes(module, True):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = self._base(name, node)
                targets = [f"{base}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.List | ast.Tuple):
                for flag, word in itertools.pairwise(node.elts):
                    if isinstance(flag, ast.Constant) and flag.value == "-m":
                        started.add(word)
                continue
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                target = node.value.partition(":")[0]
                if "." in target and target in self.files and target != name:
                    kind = "start" if node in started else "string"
                    self.arrows.add(Arrow(name, target, kind, False))
                continue
            else:
                continue
            for target in targets:
                self._add(name, target, at_import)

    def _base(self, name: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = name.split(".") if self.files[name].name == "__init__.py" else name.split(".")[:-1]
        above = package[: len(package) - node.level + 1]
        return ".".join([*above, *([node.module] if node.module else [])])

    def _add(self, name: str, target: str, at_import: bool) -> None:
        top = target.partition(".")[0]
        if not any(known.partition(".")[0] == top for known in self.files):
            if at_import:
                self.outside[name].add(top)
            return
        while target and target not in self.files:  # a function or class of the module
            target = target.rpartition(".")[0]
        if target and target != name:
            self.arrows.add(Arrow(name, target, "import", at_import))

    def circles(self, group: Mapping[str, str] | None = None) -> list[list[str]]:
        """Sets of modules, or of groups of modules, that import each other; processes do not count."""
        graph: dict[str, set[str]] = {}
        for arrow in self.arrows:
            source, target = arrow.source, arrow.target
            if group is not None:
                if source not in group or target not in group:
                    continue
                source, target = group[source], group[target]
            if source != target and arrow.kind != "start":
                graph.setdefault(source, set()).add(target)
        reach = {node: _reach(graph, node) for node in graph}
        found = {
            tuple(sorted({node, *(other for other in reach[node] if node in reach.get(other, ()))}))
            for node in graph
            if node in reach[node]
        }
        return [list(circle) for circle in sorted(found)]

    def folders(self, package: str) -> dict[str, str]:
        """Each module below ``package``: its folder on the next floor, or itself if it has none."""
        depth = package.count(".") + 2
        return {
            name: ".".join(name.split(".")[:depth]) for name in self.files if name.startswith(f"{package}.")
        }

    def loads(self, name: str) -> dict[str, str]:
        """What importing a module loads from elsewhere, and by which module of the tree."""
        graph: dict[str, set[str]] = {}
        for arrow in self.arrows:
            if arrow.at_import:
                graph.setdefault(arrow.source, set()).update(_with_parents(arrow.target))
        modules = {*_with_parents(name), *(m for n in _with_parents(name) for m in _reach(graph, n))}
        return {top: module for module in sorted(modules) for top in self.outside.get(module, ())}


def _nodes(node: ast.AST, at_import: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, outer ones first, and whether importing the module executes them."""
    for child in ast.iter_child_nodes(node):
        inside = at_import and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            inside = False
        yield child, inside
        yield from _nodes(child, inside)


def _with_parents(name: str) -> list[str]:
    return list(itertools.accumulate(name.split("."), lambda above, part: f"{above}.{part}"))


def _reach(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph.get(waiting.pop(), ()):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


# --- the rules: each returns the faults it finds, by name, with details -----------------------------------


def package_faults(tree: Tree) -> dict[str, str]:
    """Arrows between packages that `PACKAGES` does not allow."""
    faults = {}
    for arrow in tree.arrows:
        source, target = arrow.source.partition(".")[0], arrow.target.partition(".")[0]
        if source != target and not PACKAGES[source] & {target, arrow.target}:
            faults[f"package {source} → {target}"] = f"{arrow.source} names {arrow.target}"
    for name, tops in tree.outside.items():
        if "tests" in tops:
            faults[f"package {name.partition('.')[0]} → tests"] = name
    return faults


def room_faults(tree: Tree) -> dict[str, str]:
    """Arrows between the rooms of `benchmarks` that `ROOMS` does not allow."""
    faults = {}
    for arrow in tree.arrows:
        if not arrow.source.startswith("benchmarks.") or not arrow.target.startswith("benchmarks."):
            continue
        source, target = arrow.source.split(".")[1], arrow.target.split(".")[1]
        allowed = GROUND if source in GROUND else GROUND | ROOMS.get(source, set())
        starts = arrow.kind == "start" and (source, target) in STARTS
        if source != target and target not in allowed and not starts:
            faults[f"room {source} → {target}"] = f"{arrow.source} names {arrow.target}"
    for name in tree.files:
        if name.startswith("benchmarks.") and name.split(".")[1] not in {*ROOMS, *GROUND}:
            faults[f"no row for {name.split('.')[1]}"] = f"{name}: say in ROOMS what it may import"
    return faults


def circle_faults(tree: Tree) -> dict[str, str]:
    """Import circles between modules, between rooms, and between folders of the data room."""
    faults = {f"circle {', '.join(circle)}": "" for circle in tree.circles()}
    for package in ("benchmarks", "benchmarks.data"):
        for circle in tree.circles(tree.folders(package)):
            faults[f"folder circle {', '.join(circle)}"] = ""
    return faults


def init_faults(tree: Tree) -> dict[str, str]:
    """Packages without a purpose of one line, or whose `__init__` does something."""
    faults = {}
    for name, path in tree.files.items():
        if path.name == "__init__.py":
            module = tree.code[name]
            purpose = (ast.get_docstring(module) or "").partition("\n")[0]
            if not purpose.endswith(".") or (len(module.body) > 1 and name not in LAZY_NAMES):
                faults[f"__init__ of {name}"] = "one sentence in a line, and no code"
        elif path.parent != tree.root and not (path.parent / "__init__.py").exists():
            faults[f"__init__ of {name.rpartition('.')[0]}"] = "is missing"
    return faults


def size_faults(tree: Tree, tests: Path) -> dict[str, str]:
    """Files that are not read in one sitting, and a top floor with too many modules."""
    faults = {}
    for path in [*tree.files.values(), *sorted(tests.rglob("*.py"))]:
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > LINES:
            faults[f"long {path.relative_to(tree.root)}"] = f"{count} lines, more than {LINES}"
    modules = sorted(path.name for path in (tree.root / "benchmarks").glob("*.py"))
    if len(modules) > TOP_FLOOR:
        faults["top floor of benchmarks"] = f"{len(modules)} modules: {', '.join(modules)}"
    return faults


def method_faults(tree: Tree) -> dict[str, str]:
    """Built-in methods that take more than their one file: another module or an entry point names them."""
    own = {name for name, code in tree.code.items() if name.startswith("methods.") and _registers(code)}
    faults = {
        f"method {arrow.target}": f"named by {arrow.source}"
        for arrow in tree.arrows
        if arrow.target in own and arrow.source not in own
    }
    settings = (tree.root / "pyproject.toml").read_text(encoding="utf-8")
    return faults | {f"method {name}": "named by pyproject.toml" for name in own if f'"{name}:' in settings}


def _registers(code: ast.Module) -> bool:
    classes = (node for node in ast.walk(code) if isinstance(node, ast.ClassDef))
    return any(ast.unparse(mark).endswith("register") for cls in classes for mark in cls.decorator_list)


def hidden_label_faults(tree: Tree) -> dict[str, str]:
    """Places besides `training/hidden_labels.py` that take the training labels of anything but the split.

    Looked for is ``….train.labels[index]``; an index that names the labelled or the held-out images is
    fine, and so is the splits' own room, which decides who is labelled.
    """
    faults = {}
    for name, path in tree.files.items():
        if name == "benchmarks.training.hidden_labels" or name.startswith("benchmarks.data.splits."):
            continue
        for node in ast.walk(tree.code[name]):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("train.labels"):
                words = {word.id for word in ast.walk(node.slice) if isinstance(word, ast.Name)}
                words |= {word.attr for word in ast.walk(node.slice) if isinstance(word, ast.Attribute)}
                if not words & {"labelled", "held", "held_out", "val"}:
                    place = path.relative_to(tree.root)
                    faults[f"hidden labels in {place}"] = f"line {node.lineno}: {ast.unparse(node)}"
    return faults


def torch_faults(tree: Tree) -> dict[str, str]:
    """Modules that have to start fast and load torch."""
    faults = {}
    for name in tree.files:
        if name in LIGHT or any(name.startswith(f"{room}.") for room in LIGHT[1:3]):
            for top, through in tree.loads(name).items():
                if top in HEAVY:
                    faults[f"{name} loads {top}"] = f"through {through}"
    return faults


def all_faults(tree: Tree) -> dict[str, dict[str, str]]:
    """Faults by rule."""
    return {
        "packages": package_faults(tree),
        "rooms": room_faults(tree),
        "circles": circle_faults(tree),
        "inits": init_faults(tree),
        "sizes": size_faults(tree, tree.root / "tests"),
        "methods": method_faults(tree),
        "hidden labels": hidden_label_faults(tree),
        "torch": torch_faults(tree),
    }
