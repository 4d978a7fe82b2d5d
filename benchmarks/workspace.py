"""Where things lie on disk: data, caches, shared stages and runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from results.store import RunStore

REPOSITORY = Path(__file__).resolve().parent.parent
"""The folder that holds the packages: a checkout, a copy made for jobs, or site-packages."""


@dataclass(frozen=True)
class Workspace:
    """The folders of one user of the harness.

    Attributes:
        data: one folder per dataset, in its official layout; GlyphScenes too.
        runs: the run store and the stages that runs share.
    """

    data: Path
    runs: Path

    @property
    def cache(self) -> Path:
        """Resized images, memory-mapped."""
        return self.data / "cache"

    @cached_property
    def store(self) -> RunStore:
        """One directory per run."""
        return RunStore(self.runs / "store")

    @property
    def stages(self) -> Path:
        """Features and warm-ups that several runs share."""
        return self.runs / "stages"

    @property
    def tables(self) -> Path:
        """Tables and figures of the last call, by grid."""
        return self.runs / "tables"
