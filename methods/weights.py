"""Weights files: read and load them, with errors that name the tensors that do not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from methods.backbones.digests import file_digest
from methods.errors import UserError

__all__ = ["file_digest", "load_weights", "read_state_dict"]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors or torch file, without running any code in it.

    A ``{"state_dict": …}`` or ``{"model": …}`` wrapper and a ``module.`` prefix are removed.

    Raises:
        UserError: the file is absent, cannot be read, or holds something else.
    """
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and pickle raise a dozen unrelated types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"weights file {path} cannot be read: {reason}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"weights file {path} does not hold a state dict (names to tensors)")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


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
