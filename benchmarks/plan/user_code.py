"""Methods that are not part of this repository: importing their modules, and what their code hashes to.

A user's method comes from a file or module that a grid names under `modules`, or from the entry point
of an installed package. The SHA-256 of its source is part of the identity of its runs, because its
author need not raise `version` after each edit. Methods of this repository have no such hash.

The source of a method is the module that defines its class: a file, or all `*.py` files of a package.
To it belong the files that it imports, directly or through each other, from outside this repository,
the standard library and the folders of installed packages; such as a helper beside a user's file. They
are found by reading the import statements with `ast`, those inside functions too, so the hash does not
depend on what has been executed.

A launch copies these files (`benchmarks.plan.copies`), and its processes import the copies.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import methods
from benchmarks.plan import copies
from benchmarks.plan.identity import digest
from methods.errors import UserError
from methods.registry import GROUP, USER_FILE, forget

OWN = ("benchmarks", "csaa", "methods", "results", "slurm")
"""Packages of this repository."""


@dataclass(frozen=True)
class UserCode:
    """The source of a method that is not part of this repository.

    Attributes:
        digest: SHA-256 of the source: of the file's bytes, or, where there are several files, of the
            table of their names and hashes.
        files: SHA-256 of each file by its name, relative to the folder of its module or package.
        distribution: name and version of the installed package that declares the method; "" for none.
    """

    digest: str
    files: dict[str, str]
    distribution: str = ""

    def record(self) -> dict[str, Any]:
        """What provenance says of it, as JSON values."""
        found: dict[str, Any] = {"sha256": self.digest, "files": self.files}
        return {**found, "distribution": self.distribution} if self.distribution else found


@dataclass(frozen=True)
class SourceFile:
    """A file of a user's code, as it was read.

    Attributes:
        path: where it was read.
        home: the folder that it is imported from.
        short: its name, by which it is hashed.
        content: its bytes.
    """

    path: Path
    home: Path
    short: str
    content: bytes

    @property
    def place(self) -> str:
        """Its path below the folder that it is imported from."""
        return self.path.relative_to(self.home).as_posix()

    @property
    def sha256(self) -> str:
        """Of its bytes."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Sources:
    """The files that make up a user's module.

    Attributes:
        files: sorted by name.
        tops: the folder of each importable top-level name among them.
    """

    files: tuple[SourceFile, ...]
    tops: dict[str, Path]

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file by its name."""
        return {file.short: file.sha256 for file in self.files}


def import_methods(module: str, folder: Path, where: str) -> tuple[str, Path | None]:
    """Import a user's methods.

    A file is known by its resolved path and its content: two files of one name do not collide, and a
    file that has changed is read again in the place of the old one. Modules beside it can be imported;
    what is installed comes before them. In a process of a launch its copy is read.

    Args:
        module: a file (``*.py``), relative to ``folder``, or an installed module.
        folder: of the grid file.
        where: what names the module, for messages.

    Returns:
        The module's name in `sys.modules`; and the file that is named, None for an installed module.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        if module.endswith(".py"):
            path = (folder / module).resolve()
            return _import_file(path), path
        importlib.import_module(module)
        return module, None
    except UserError:
        raise
    # The user's own code: whatever is wrong in it, say where. A script that exits is no module either.
    except (Exception, SystemExit) as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and copies.used() is not None:
            hint = "; a launch copies, and imports, what an import statement names"
        raise UserError(
            f"{where}: cannot import {module!r}: {type(error).__name__}: {error}{hint}"
        ) from error


def _import_file(original: Path) -> str:
    path = copies.place(original)
    source = path.read_bytes()
    place = hashlib.sha256(bytes(original)).hexdigest()[:12]
    start = f"{USER_FILE}{path.stem}_{place}_"
    name = start + hashlib.sha256(source).hexdigest()[:12]
    if name in sys.modules:
        return name
    for old in [loaded for loaded in sys.modules if loaded.startswith(start)]:
        forget(old)
        del sys.modules[old]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()  # a helper beside it may be new
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # it always is for a name that ends in .py
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # dataclasses look their module up while it is executed
    try:
        # These very bytes, whose hash is in the name: the file may change at any time.
        exec(compile(source, str(path), "exec", dont_inherit=True), loaded.__dict__)
    except BaseException:
        forget(name)
        del sys.modules[name]
        raise
    with suppress(UserError):  # what is wrong with it is said where its hash is needed
        _imported_with[name] = sources(loaded, name).hashes()
    return name


def imported_with(name: str) -> dict[str, str] | None:
    """SHA-256 of a user's file and the files that it imports, as they were when it was imported, by name.

    Args:
        name: of its module; None is returned for a module that is not of a file which a grid names.
    """
    return _imported_with.get(name)


_imported_with: dict[str, dict[str, str]] = {}


def is_users(module: ModuleType) -> bool:
    """Whether a module belongs neither to this repository nor to what is installed."""
    if module.__name__.startswith(USER_FILE):
        return True
    file = getattr(module, "__file__", None)
    if module.__name__.partition(".")[0] in OWN or not str(file).endswith(".py"):
        return False
    path = Path(str(file)).resolve()
    return not _holds_installed((_package(path) or path).parent)


def code_of(name: str) -> UserCode | None:
    """The source of a method; None for methods of this repository.

    Raises:
        UserError: its source cannot be read, it is not what was imported any more, or it imports a module
            whose name stands for two files.
    """
    module = module_of(name)
    if module is None:
        return None
    files = sources(module, f"method {name!r}").hashes()
    if len(files) == 1:
        (whole,) = files.values()
    else:
        whole = digest(files)
    return UserCode(whole, files, _distribution(name))


def module_of(name: str) -> ModuleType | None:
    """The module that defines a method; None for methods of this repository.

    Raises:
        UserError: it has no source file.
    """
    cls = methods.get(name)
    if cls.__module__.partition(".")[0] in OWN:
        return None
    module = sys.modules.get(cls.__module__)
    if module is None or not str(getattr(module, "__file__", None)).endswith(".py"):
        raise UserError(f"method {name!r}: there is no source file of {cls.__module__!r} to be identified by")
    return module


def sources(module: ModuleType, who: str) -> Sources:
    """The files that make up an imported module.

    Args:
        module: the module; it has a file.
        who: names it in messages.

    Raises:
        UserError: a file cannot be read, two have one name, a name stands for two files, or the module's file
            is not what was imported any more.
    """
    assert module.__file__ is not None
    path = Path(module.__file__).resolve()
    # A file that a grid names is a module of its own, even in a package's folder.
    is_file = module.__name__.startswith(USER_FILE)
    if is_file:  # it may have been imported before there was a copy
        path = copies.place(path)
    root = _package(path)
    tops: dict[str, Path] = {}
    left = {path: path.parent}
    if root is not None and not is_file:
        left = dict.fromkeys(_python_files(root), root.parent)
    own = left[path]
    if not is_file:
        if root is None:  # it may lie in folders without __init__.py, which its name says
            own = path.parents[module.__name__.count(".")]
        tops[module.__name__.partition(".")[0]] = own
    found: dict[str, SourceFile] = {}
    seen: set[Path] = set()
    while left:
        file, home = left.popitem()
        seen.add(file)
        try:
            short = file.relative_to(home).as_posix()
            read = SourceFile(file, own if file == path else home, short, file.read_bytes())
        except OSError as error:
            raise UserError(f"{who}: {file}: {error.strerror}") from None
        if file == path and is_file and not module.__name__.endswith(read.sha256[:12]):
            raise UserError(f"{who}: {path} changed while the plan was made; start it again")
        if read.short in found:
            raise UserError(f"{who}: its code has two files called {read.short}: rename one")
        found[read.short] = read
        for dotted in _imported(read.content, file, who):
            for more, place in _local(dotted, file, who).items():
                tops[dotted.partition(".")[0]] = place
                if more not in seen:
                    left[more] = place
    return Sources(tuple(found[short] for short in sorted(found)), tops)


def _imported(content: bytes, file: Path, who: str) -> list[str]:
    """Dotted names that a source imports; relative imports stay in its package."""
    try:
        tree = ast.parse(content)
    except SyntaxError as error:
        raise UserError(f"{who}: {file}, line {error.lineno}: {error.msg}") from None
    return imported_names(tree)


def imported_names(tree: ast.AST) -> list[str]:
    """Dotted names that a source imports, sorted; relative imports are left out."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return sorted(found)


def _local(dotted: str, file: Path, who: str) -> dict[Path, Path]:
    """The files of an imported module, each with the folder that its name is relative to.

    Empty for what is installed or belongs to this repository.
    """
    top = dotted.partition(".")[0]
    if top in OWN or top in sys.builtin_module_names or top in sys.stdlib_module_names:
        return {}
    try:
        spec = copies.spec_of(top) or importlib.util.find_spec(top)
    except ValueError:  # a module without a spec, such as __main__
        return {}
    if spec is None:
        return {}
    if spec.origin is None:
        return _in_namespace(
            dotted, [Path(place).resolve() for place in spec.submodule_search_locations or ()]
        )
    origin = Path(spec.origin).resolve()
    is_package = origin.name == "__init__.py"
    home = origin.parent.parent if is_package else origin.parent
    if origin.suffix != ".py" or _holds_installed(home):
        return {}
    beside = (file.with_name(f"{top}.py"), file.parent / top / "__init__.py")
    if any(place.is_file() and place.resolve() != origin for place in beside):
        raise UserError(
            f"{who}: {file.name} imports {top!r}, and that is {origin}, not the file beside it: "
            "rename one of the two"
        )
    return dict.fromkeys(_python_files(origin.parent) if is_package else [origin], home)


def _in_namespace(dotted: str, locations: Sequence[Path]) -> dict[Path, Path]:
    """The files of a module below folders that have no `__init__.py`."""
    for folder in locations:
        home = folder.parent
        if _holds_installed(home):
            continue
        for part in dotted.split(".")[1:]:
            if (folder / f"{part}.py").is_file():
                return {folder / f"{part}.py": home}
            folder = folder / part
            if (folder / "__init__.py").is_file():
                return dict.fromkeys(_python_files(folder), home)
    return {}


def _package(path: Path) -> Path | None:
    """The outermost package that a file lies in, or None."""
    folders = []
    for folder in path.parents:
        if not (folder / "__init__.py").is_file():
            break
        folders.append(folder)
    return folders[-1] if folders else None


def _python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


@cache
def _holds_installed(folder: Path) -> bool:
    """Whether a folder holds the standard library or installed packages."""
    standard = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    known = [*standard, *site.getsitepackages(), site.getusersitepackages()]
    if any(folder.is_relative_to(Path(place).resolve()) for place in known if place):
        return True
    return next(folder.glob("*.dist-info"), None) is not None  # such as on a cluster's PYTHONPATH


def _distribution(name: str) -> str:
    """Name and version of the distribution whose entry point a method is."""
    for point in metadata.entry_points(group=GROUP, name=name):
        if point.dist is not None:
            return f"{point.dist.name} {point.dist.version}"
    return ""
