"""Find and build methods by name.

A name comes from one of four sources:

- a file of this package with a class that is decorated with `register`; see `methods.discovery`;
- a package of this repository, such as ``csaa``: `declare` or the checkout's own entry points name it;
- an installed package with an entry point in the group ``ssmll_bench.methods`` (name = method name,
  object = the class);
- a module that was imported and used `register`, such as a user's own file.

Listing names imports nothing; `get` imports the one module that it needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from methods.discovery import declared_in, scan
from methods.errors import UserError, nearest
from methods.fields import Wording, build, later_fields

if TYPE_CHECKING:  # torch is imported only when a method is built: listing names stays fast
    from importlib.metadata import EntryPoint

    from methods.backbones.base import Backbone
    from methods.base import FitMethod, StepMethod, Task

    AnyMethod = StepMethod | FitMethod

GROUP = "ssmll_bench.methods"
USER_FILE = "_ssmll_bench_user_"
"""Start of the name in `sys.modules` of a module that was read from a user's file."""

_WORDING = Wording(
    unknown="method {where!r}: unknown hyper-parameter {name!r}{near}",
    wrong="{where}.{name}: expected {kind}, got {value!r} ({given})",
    choice="{where}.{name}: unknown value {value!r}{near}",
    missing="{where}.{name} has no default in its Hyper; give it under [hyper.{where}]",
)

_registered: dict[str, type[Any]] = {}
_declared: dict[str, str] = {}
M = TypeVar("M", bound=type)


def register(cls: M) -> M:
    """Class decorator: make a `StepMethod` or `FitMethod` available under its ``name``.

    Raises:
        UserError: no name, not a method class, no ``Hyper`` dataclass, or the name is taken.
    """
    from methods.base import FitMethod, StepMethod

    where = _place(cls)
    name = cls.__dict__.get("name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: a method needs a class attribute 'name'")
    if not issubclass(cls, StepMethod | FitMethod):
        raise UserError(f"{where}: a method derives from methods.base.StepMethod or FitMethod")
    hyper_class = getattr(cls, "Hyper", None)
    if not (isinstance(hyper_class, type) and dataclasses.is_dataclass(hyper_class)):
        raise UserError(f"{where}: a method needs a frozen dataclass 'Hyper'")
    defaults = {field.name: field.default for field in dataclasses.fields(hyper_class)}
    for field, value in later_fields(hyper_class).items():
        # A method is built from its run's identity, in which such a field is left out.
        if field not in defaults or defaults[field] != value:
            raise UserError(f"{where}: Hyper.later has {field!r}: {value!r}, which is no field's default")
    _claim(name, cls, where)
    _registered[name] = cls
    return cls


def declare(name: str, module: str) -> None:
    """Say which module registers a method, without importing it.

    For packages of this repository outside ``methods/``, so that a checkout that is not installed
    has them too. Repeating a declaration changes nothing.

    Raises:
        UserError: another module has the name.
    """
    owner = built_in().get(name, module)
    if owner != module:
        raise UserError(f"{module}: the method name {name!r} is taken by {owner}; choose another")
    _declared[name] = module
    _entry_points.cache_clear()


def forget(module: str) -> None:
    """Drop the methods that a module has registered, so that its file can be imported again."""
    for name in [name for name, cls in _registered.items() if cls.__module__ == module]:
        del _registered[name]


def available() -> list[str]:
    """Return the names of all methods, sorted; no method is imported for it."""
    return sorted({*built_in(), *_registered, *_entry_points()})


def get(name: str) -> type[AnyMethod]:
    """Return the class of a method.

    Raises:
        UserError: unknown name, a module that does not register it, or an entry point that cannot be
            loaded.
    """
    if name in _registered:
        return _registered[name]
    ours = built_in()
    if name in ours:
        importlib.import_module(ours[name])
        if name not in _registered:
            raise UserError(f"method {name!r}: {ours[name]} was imported and does not register it")
        return _registered[name]
    points = _entry_points()
    if name not in points:
        raise UserError(f"unknown method {name!r}{nearest(name, available())}")
    point = points[name]
    try:
        cls = point.load()
    except Exception as error:  # a broken third-party package must not look like our own fault
        raise UserError(f"method {name!r}: cannot load its entry point {point.value!r}: {error}") from error
    if _registered.get(name) is not cls:  # its module may already use the decorator
        register(cls)
    if getattr(cls, "name", None) != name:
        raise UserError(f"entry point {name!r} points to a method named {cls.name!r}")
    return cls


def hyper(name: str, **overrides: Any) -> Any:
    """Return the frozen hyper-parameters of a method, defaults overridden by field.

    Whole numbers are accepted for float fields and lists for tuple fields, so that values read
    from a file give the same dataclass (and run identity) as the defaults.

    Raises:
        UserError: unknown method, unknown field, or a value of the wrong type.
    """
    return build(get(name).Hyper, overrides, name, _WORDING)


def create(name: str, *, backbone: Backbone, task: Task, **overrides: Any) -> StepMethod | FitMethod:
    """Build a method: parameters are drawn under a generator seeded with ``task.seed``.

    Args:
        name: one of `available`.
        backbone: from `methods.backbones.load_backbone`; a step method may train it in place.
        task: classes, labels and seed.
        **overrides: hyper-parameters by field.

    Raises:
        UserError: as in `hyper`; or the method needs a text tower that the backbone lacks.
    """
    from methods.base import StepMethod, seeded_rng

    cls = get(name)
    parameters = hyper(name, **overrides)
    if cls.needs_vlm and not backbone.is_vlm:
        raise UserError(
            f"method {name!r} needs a vision-language backbone (glyphclip or open_clip/<model>), "
            f"not {backbone.description}"
        )
    with seeded_rng(task.seed):
        method = cls(backbone, task, parameters)
    if isinstance(method, StepMethod):
        method.frozen_names = frozenset(
            name for name, value in method.named_parameters() if not value.requires_grad
        )
    return method


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Run a block whose registrations and declarations are undone at its end; for tests."""
    registered, declared = dict(_registered), dict(_declared)
    _entry_points.cache_clear()
    try:
        yield
    finally:
        _registered.clear()
        _registered.update(registered)
        _declared.clear()
        _declared.update(declared)
        _entry_points.cache_clear()


def built_in() -> dict[str, str]:
    """Names of methods that belong to this repository, each with the module that registers it."""
    folder = Path(__file__).parent
    return {**scan(folder, "methods"), **declared_in(folder.parent, GROUP), **_declared}


def _place(cls: type) -> str:
    """Where a class is defined, for messages: its module, or the file that a user named."""
    if cls.__module__.startswith(USER_FILE):
        return f"{sys.modules[cls.__module__].__file__}: {cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def _claim(name: str, cls: type, where: str) -> None:
    """Raise if ``name`` belongs to another class."""
    owner = _registered.get(name)
    module = built_in().get(name)
    taken_by = None
    if owner is not None and owner is not cls:
        taken_by = _place(owner)
    elif module is not None and module != cls.__module__:
        taken_by = module
    if taken_by:
        raise UserError(f"{where}: the method name {name!r} is taken by {taken_by}; choose another")


@functools.lru_cache(maxsize=1)
def _entry_points() -> dict[str, EntryPoint]:
    """Entry points of installed packages by name, without those of names known from `built_in`."""
    from importlib.metadata import entry_points  # reads the disk, and takes a while to import

    ours = built_in()
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        taken_by = ours.get(point.name)
        if point.value.partition(":")[0] == taken_by:
            continue
        # One distribution can be seen twice (an editable install and its folder on sys.path).
        if point.name in found and found[point.name].value != point.value:
            taken_by = found[point.name].value
        if taken_by:
            raise UserError(
                f"entry point {point.name!r} of group {GROUP}: {point.value} and {taken_by} "
                f"claim the same method name; uninstall or rename one"
            )
        found[point.name] = point
    return found
