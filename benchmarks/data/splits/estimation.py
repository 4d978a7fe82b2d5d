"""The estimation images: a share of the labelled ones that is measured on instead of trained on (DiCaP)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from methods.errors import UserError


def split_off(labels: NDArray[np.uint8], share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide labelled images, which stand in random order, into those that stay and the estimation images.

    The last ones are taken, except that a class never loses its last positive: an image that is the only one
    left of a class stays, and the one before it is taken.

    Args:
        labels: (n_l, K) in {0, 1}, in the order in which the images were drawn.
        share: share of them in (0, 1) to be taken, rounded down, at least one image.

    Returns:
        Positions (n_l − n_e,) that stay and (n_e,) that are taken, int64, each in the given order.

    Raises:
        UserError: a share outside (0, 1), or too few images whose classes have another.

    >>> split_off(np.array([[1, 0], [1, 0], [0, 1], [1, 0]], dtype=np.uint8), 0.5)
    (array([0, 2]), array([1, 3]))
    """
    if not 0 < share < 1:
        raise UserError(f"estimation_share: {share:g} is not allowed; it must lie in (0, 1)")
    count = max(1, int(share * len(labels)))
    left = labels.sum(axis=0, dtype=np.int64)
    taken: list[int] = []
    for place in reversed(range(len(labels))):
        if len(taken) == min(count, len(labels) - 1):  # one image always stays
            break
        shown = labels[place] > 0
        if (left[shown] > 1).all():
            taken.append(place)
            left -= shown
    if len(taken) < count:
        raise UserError(
            f"estimation_share: {share:g} of {len(labels)} labelled images takes {count}, and only "
            f"{len(taken)} can leave without a class losing its last positive; lower it, or take more "
            "labelled images"
        )
    leave = np.array(taken[::-1], dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), leave), leave
