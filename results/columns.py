"""A column of a table: a dataset at one labelling budget."""

from __future__ import annotations

from typing import NamedTuple


def percent(ratio: float) -> str:
    """Labelled share for people: 0.05 -> "5 %"."""
    return f"{round(100 * ratio, 6):g} %"


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
