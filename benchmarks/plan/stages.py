"""Computations that several runs share: what names one, and whether it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.plan.identity import digest
from benchmarks.workspace import Workspace
from results.damage import UnreadableError, read_table

STAGE_RECORD = "stage.json"
"""The file of a stage that is written last."""
FROZEN = ("features", "views")
"""Kinds of stages that are forward passes of a frozen backbone."""
CACHED_VIEW = "scpnet-weak"
"""The view of `methods.base.FitMethod.cached_views`: mirrored or not, then a random resized crop."""


@dataclass(frozen=True)
class Stage:
    """A computation that several runs share; it is done once.

    Attributes:
        kind: "features" (of all images), "views" (features of augmented views of the labelled ones) or
            "warmup".
        key: everything that its result depends on, as plain JSON values.
    """

    kind: str
    key: dict[str, Any] = field(hash=False)

    @cached_property
    def stage_id(self) -> str:
        """SHA-256 of kind and key."""
        return digest({"kind": self.kind, "key": self.key})

    def directory(self, workspace: Workspace) -> Path:
        """Return the folder of its result."""
        return workspace.stages / f"{self.kind}-{self.stage_id[:16]}"

    def is_done(self, workspace: Workspace) -> bool:
        """Return whether its result is complete; whether its files are what was written is not looked at."""
        try:
            found = read_table(self.directory(workspace) / STAGE_RECORD, "")
        except (FileNotFoundError, UnreadableError):
            return False
        return found.get("kind") == self.kind
