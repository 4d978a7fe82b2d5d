"""Weights files: read and load them, with errors that name the tensors that do not fit."""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from methods.backbones.digests import file_digest
from methods.backbones.formats import weights_format
from methods.errors import UserError, first_line

__all__ = ["file_digest", "load_weights", "read_state_dict"]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors or torch file, without running any code in it.

    Its content says what kind of file it is, whatever its name. A ``{"state_dict": …}`` or ``{"model": …}``
    wrapper and a ``module.`` prefix are removed.

    Raises:
        UserError: the file is absent, cannot be read, or holds something else.
    """
    kind = weights_format(path)
    try:
        if kind == "safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            with path.open("rb") as file:  # by its path torch.load goes by the file's name
                state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and pickle raise a dozen unrelated types
        raise UserError(f"weights file {path} cannot be read: {_reason(path, error)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        held = f"a {type(state).__name__}"
        if isinstance(state, Mapping):
            others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
            held = f"{', '.join(others[:5])}{' …' if len(others) > 5 else ''}"
        raise UserError(
            f"weights file {path} does not hold a state dict (names to tensors) but {held}; save the state "
            "dict alone"
        )
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _reason(path: Path, error: Exception) -> str:
    """Why a safetensors file or one of torch.save cannot be read, and what to do; one line.

    PyTorch's own message advises to read the file in a way that runs the code in it.
    """
    try:
        with path.open("rb") as file:
            objects = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # a file of the old format, or a damaged one
        objects = re.findall(r"GLOBAL ([\w.]+)", str(error))
    if objects:
        shown = f"{', '.join(objects[:3])}{' …' if len(objects) > 3 else ''}"
        return (
            f"it holds Python objects ({shown}) beside tensors, which can run code when they are read; read "
            "it with the program that wrote it and save the tensors alone: "
            "torch.save(model.state_dict(), NEW_FILE)"
        )
    if isinstance(error, pickle.UnpicklingError):
        return "it is a pickle, but not one that torch.save wrote whole; save a state dict, or fetch it again"
    reason = first_line(error)
    return f"it is damaged or cut off ({reason}); fetch it again"


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], source: str, ignored: Collection[str] = ()
) -> None:
    """Load every tensor of ``state`` into ``model``; nothing may be missing, unknown or misshapen.

    Args:
        model: the model.
        state: names to tensors; converted to the model's dtype.
        source: name of the file, for the error message.
        ignored: prefixes of names (of the model and of the state) that are skipped.

    Raises:
        UserError: one line with the first names that do not fit.
    """

    def relevant(name: str) -> bool:
        # Files older than PyTorch 0.4.1 lack the batch counters, which nothing here reads.
        return not name.startswith(tuple(ignored)) and not name.endswith("num_batches_tracked")

    own = model.state_dict()
    wanted = {name for name in own if relevant(name)}
    given = {name for name in state if relevant(name)}
    problems = []
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(wanted & given)
        if own[name].shape != state[name].shape
    ]
    for kind, names in (
        ("missing", sorted(wanted - given)),
        ("unknown", sorted(given - wanted)),
        ("wrong shape", shapes),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{kind}: {', '.join(names[:3])}{more}")
    if problems:
        raise UserError(f"{source} does not fit the model: {'; '.join(problems)}")
    model.load_state_dict({name: state[name] for name in wanted}, strict=False)
