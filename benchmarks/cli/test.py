"""The verb `test`: the contract suite on a user's own method.

The suite is `benchmarks.checks.contract`; it brings its own tiny backbone and task, so it needs neither
data nor this repository's tests, but pytest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import methods
from benchmarks.cli import options
from benchmarks.workspace import REPOSITORY
from methods.discovery import scan
from methods.errors import UserError, nearest
from methods.registry import GROUP


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    parser = options.verb(
        verbs,
        "test",
        execute,
        help="run the contract suite on a method of your own",
        examples=["test my_method.py", "test my_methods.py --name top_one"],
    )
    option = parser.add_argument
    option("module", metavar="FILE", help="a file with methods, or an installed module")
    option("--name", default=None, help="only this one of its methods")


def execute(args: argparse.Namespace) -> int:
    """Run the suite; pytest prints what fails.

    Returns:
        0 if the methods keep the contract, 1 if not, 2 if pytest could not finish.

    Raises:
        UserError: no such file, one that cannot be imported or has no such method, or no pytest.
    """
    names = _methods_of(args.module)
    if args.name is not None:
        if args.name not in names:
            raise UserError(f"{args.module}: no method {args.name!r}{nearest(args.name, names)}")
        names = [args.name]
    from benchmarks.checks import contract

    code = contract.run(names)
    if code in (0, 1):
        print(f"{', '.join(names)}: {'does not keep' if code else 'keeps'} the contract of methods/base.py")
        return code
    return 2


def _methods_of(module: str) -> list[str]:
    """Import a file or module; the names of the methods that it registers."""
    from benchmarks.plan.user_code import import_methods

    path = Path(module)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise UserError(f"no file {module!r}")
    if path.exists() and not is_file:
        raise UserError(f"{module} is no Python file: name one that ends in .py")
    if is_file and path.resolve().parent == REPOSITORY / "methods":  # a built-in method has its name already
        module = f"methods.{path.stem}"
    before = set(methods.available())
    import_methods(module, Path.cwd(), "run.py test")
    names = [name for name in methods.available() if name not in before] or _declared_by(module)
    if not names:
        raise UserError(f"{module}: no method there: decorate a class with methods.register")
    return names


def _declared_by(module: str) -> list[str]:
    """Names known before a module is imported: those of its file in methods/, or of its entry points."""
    from importlib.metadata import entry_points  # reads the disk, and takes a while to import

    built_in = scan(Path(methods.__file__).parent, "methods")
    points = {point.name: point.module for point in entry_points(group=GROUP)}
    return sorted(name for name, place in {**points, **built_in}.items() if place == module)
