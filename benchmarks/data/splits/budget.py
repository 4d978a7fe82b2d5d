"""How many training images are labelled: a share of all, a number of images, or a number for each class."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from benchmarks.data.dataset import Dataset
from benchmarks.data.splits.rules import Partition, draw
from methods.errors import UserError

_TEXT = re.compile(r"\s*(\d+)\s+(images?|per class)\s*")
FORMS = "a share in (0, 1] such as 0.05, '100 images' or '4 per class'"


@dataclass(frozen=True)
class Budget:
    """A labelling budget; exactly one of its numbers is not 0.

    Attributes:
        ratio: labelled share p in (0, 1].
        images: number of labelled images.
        per_class: number of labelled images that each class has at least, see `rules.per_class_indices`.
    """

    ratio: float = 0.0
    images: int = 0
    per_class: int = 0

    @classmethod
    def of(cls, value: float | str, where: str) -> Budget:
        """The budget that a grid or a command line says.

        Args:
            value: a share, "N images" or "N per class".
            where: the place, for the message.

        Raises:
            UserError: it is something else.
        """
        if isinstance(value, str):
            text = value
            try:
                value = float(text)
            except ValueError:
                match = _TEXT.fullmatch(text)
                if match is None or not int(match[1]):
                    raise UserError(f"{where}: ratio {text!r}; it must be {FORMS}") from None
                number = int(match[1])
                return cls(per_class=number) if match[2] == "per class" else cls(images=number)
        if not 0 < value <= 1:
            whole = value > 1 and value == int(value)
            hint = f"; write '{value:g} images' for a number of images" if whole else ""
            raise UserError(f"{where}: ratio {value:g} is outside (0, 1]{hint}")
        return cls(ratio=float(value))

    @property
    def label(self) -> str:
        """The text "100 images" or "4 per class"; "" for a share, which is its own label."""
        if self.images:
            return f"{self.images} images" if self.images > 1 else "1 image"
        return f"{self.per_class} per class" if self.per_class else ""

    @property
    def key(self) -> float | str:
        """What selects it on a command line and in a recipe's table: the share, or the label."""
        return self.label or self.ratio

    def rule(self, rule: str, where: str) -> str:
        """The rule that draws the images where a dataset's rule is another one.

        Raises:
            UserError: images for each class are asked for of another rule than the published one.
        """
        if not self.per_class:
            return rule
        if rule != "published":
            raise UserError(
                f"{where}: '{self.label}' is a rule of its own and does not go with split = {rule!r}"
            )
        return f"{self.per_class}-per-class"


def draw_budget(dataset: Dataset, rule: str, budget: Budget, seed: int) -> tuple[Partition, str, float]:
    """Divide the training images of a dataset by a budget.

    Args:
        dataset: its images and labels.
        rule: the dataset's rule or list.
        budget: how many images are labelled.
        seed: seed of the split.

    Returns:
        The parts, the rule that drew them, and the labelled share p with `int(p * N)` labelled images.

    Raises:
        UserError: more images than there are, or as in `rules.draw`.
    """
    total = len(dataset.train)
    if budget.images > total:
        raise UserError(f"{dataset.name}: {budget.label} are asked for, there are {total} for training")
    ratio = exact_ratio(budget.images, total) if budget.images else budget.ratio
    rule = budget.rule(rule, dataset.name)
    drawn = draw(dataset, rule, ratio, seed)
    return drawn, rule, ratio or exact_ratio(len(drawn.labelled), total)


def exact_ratio(count: int, total: int) -> float:
    """The smallest share p with `int(p * total) == count`, for a count in 1 … total."""
    ratio = count / total
    while int(ratio * total) < count:  # rounding can make the product too small
        ratio = math.nextafter(ratio, 1.0)
    return ratio
