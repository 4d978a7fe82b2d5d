"""What is asked of a method while runs are planned, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from methods.errors import UserError

if TYPE_CHECKING:
    from methods.backbones.spec import BackboneSpec
    from methods.phases import Phase


class Planned:
    """The planning side of a method: the base of `StepMethod` and `FitMethod`."""

    @classmethod
    def resolve_hyper(cls, hyper: Any, num_classes: int, backbone: BackboneSpec) -> Any:
        """Return hyper-parameters whose automatic values are replaced by those of a task.

        The run's identity holds what is returned. By default nothing is automatic.

        Args:
            hyper: the method's.
            num_classes: K.
            backbone: which one the run uses.
        """
        return hyper

    @classmethod
    def check_task(cls, hyper: Any, num_classes: int, backbone: BackboneSpec) -> None:
        """Refuse hyper-parameters that cannot work on a task; by default all are accepted.

        Args:
            hyper: the method's, resolved.
            num_classes: K.
            backbone: which one the run uses.

        Raises:
            UserError: one line that names the field and what is allowed.
        """

    @classmethod
    def estimation_share(cls, hyper: Any) -> float:
        """Share of the labelled images, in [0, 1), that leaves the labelled batches and joins the pool.

        Their labels are `Task.estimation`: not trained on, but known, to measure predictions by.
        """
        return 0.0

    @classmethod
    def phases(cls, hyper: Any) -> tuple[Phase, ...]:
        """The phases of a run, in order; none for one training as the recipe says.

        A method with phases has no warm-up (`StepMethod.warmup_hyper`); the first of them may be one.
        """
        return ()

    @classmethod
    def patches(cls, hyper: Any) -> int:
        """Into how many parts a side of each view is cut; 0 for whole images alone.

        With n > 0 the images of batches, and those that `predict` and `score_pool` get, are
        (B, 1 + n², 3, H, W): the whole image, then its patches row by row, enlarged to its size, each
        augmented by itself.
        """
        return 0


def check_patches(size: int, patches: int, field: str) -> None:
    """Raise `UserError` if ``patches`` do not divide a side of ``size`` pixels; ``field`` has the size."""
    if patches and size % patches:
        near = size - size % patches
        raise UserError(
            f"{field} = {size} does not divide into {patches} patches a side; use a multiple of {patches}, "
            f"such as {near or patches}"
        )
