"""A column of a table, a dataset at one labelling budget, and what its parts are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


def percent(ratio: float) -> str:
    """Labelled share for people: 0.05 -> "5 %"."""
    return f"{round(100 * ratio, 6):g} %"


def subset_name(ratio: float, budget: str) -> str:
    """A labelled subset for people, without its seed: "p=0.05", or a budget such as "100 images"."""
    return budget or f"p={ratio:g}"


def seeds_name(seed: int, split_seed: int | None) -> str:
    """The seeds of a run for people: "seed=1", or "split=1 seed=2" where the split has its own."""
    return f"seed={seed}" if split_seed in (None, seed) else f"split={split_seed} seed={seed}"


class Column(NamedTuple):
    """A dataset at one labelling budget.

    Attributes:
        dataset: its name.
        ratio: labelled share; the mean share where a number of images is the budget.
        budget: "100 images" or "4 per class"; "" where the share is the budget.
    """

    dataset: str
    ratio: float
    budget: str = ""

    @property
    def share(self) -> str:
        """The budget for people: "5 %", "100 images"."""
        return self.budget or percent(self.ratio)

    @classmethod
    def present(cls, frame: pd.DataFrame) -> set[Column]:
        """The columns that a frame of `results.frames` has rows of."""
        return set(map(cls, frame["dataset"], frame["ratio"], frame["budget"]))

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of a frame of `results.frames` that belong to this column."""
        same = [frame[name] == value for name, value in self._asdict().items()]
        return frame[same[0] & same[1] & same[2]]
