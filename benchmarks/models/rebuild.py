"""A model from the file of weights that a run kept: its method is built as in the run and takes the weights.

The file holds what training can change, and the labels of the labelled images, from which methods are built.
The pretrained weights of the backbone are not in it, but their SHA-256 is: they are found where the run found
them, or where the caller says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

import methods
from benchmarks.data.cache.decode import DECODING
from benchmarks.data.views.patches import make_views
from benchmarks.plan.user_code import code_of, import_methods
from benchmarks.training.group import Group
from benchmarks.training.scoring import memory_advice
from benchmarks.training.strategy import Strategy, make
from methods.backbones import BackboneSpec, load_backbone
from methods.backbones.base import Backbone
from methods.backbones.conventions import conventions
from methods.backbones.load import weights_digest
from methods.base import FitMethod, StepMethod, Task, at_least_fp32
from methods.errors import UserError, first_line
from results.damage import UnreadableError
from results.weights import verified

LABELS, ESTIMATION, STATE = "task.labels", "task.estimation", "state."
"""Names of tensors in the file: of the task's labels, and the beginning of those of the method's state."""


@dataclass(frozen=True)
class Kept:
    """A file of weights, read and compared with its checksum.

    Attributes:
        path: the file.
        record: what it says of itself, see `results.weights`.
        tensors: all of its tensors, on the CPU.
    """

    path: Path
    record: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> Kept:
        """Read a file of weights.

        Raises:
            UserError: it is cut off, damaged, of another kind, or of a newer version.
        """
        try:
            record = verified(path).record
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except UnreadableError as error:
            raise UserError(str(error)) from None
        except safetensors.SafetensorError as error:
            raise UserError(f"{path} cannot be read: {first_line(error)}") from None
        if LABELS not in tensors:
            raise UserError(f"{path} is damaged (it lacks the tensor {LABELS!r}): train the run again")
        return cls(path, record, tensors)

    @property
    def size(self) -> int:
        """Side in pixels of the square images that the model takes."""
        return int(self.record["input"]["size"])

    @property
    def task(self) -> Task:
        """What the method was built for."""
        said, estimation = self.record["task"], self.tensors.get(ESTIMATION)
        return Task(
            tuple(self.record["classes"]),
            tuple(said["prompts"]),
            self.tensors[LABELS].float(),
            said["unlabelled"],
            said["seed"],
            None if estimation is None else estimation.float(),
        )


class Model:
    """A trained method with what it needs to score images.

    Args:
        kept: the file.
        strategy: device and precision.
        weights: file of the backbone's pretrained weights, in place of where the run found them.

    Attributes:
        method: on the device, in evaluation mode if it is a module.
        backbone: of a fitted method, on the device; a trained one has its own.
        batch: images of a forward pass in the run.

    Raises:
        UserError: the pretrained weights are absent or others; the method or its code is not that of the run.
    """

    def __init__(self, kept: Kept, strategy: Strategy, weights: Path | None = None) -> None:
        self.kept, self.record, self.strategy = kept, kept.record, strategy
        self.batch = int(kept.record["input"]["batch"])
        self.patches = int(kept.record["input"]["patches"])
        self._check()
        backbone = self._load_backbone(weights)
        spec = self.record["spec"]
        self.method = methods.create(spec["method"], backbone=backbone, task=kept.task, **spec["hyper"])
        state = {
            name.removeprefix(STATE): value for name, value in kept.tensors.items() if name.startswith(STATE)
        }
        device, dtype = strategy.accelerator.device, strategy.dtype
        self.backbone: Backbone | None = None
        if isinstance(self.method, StepMethod):
            if self.record.get("phase"):
                self.method.begin_phase(self.record["phase"])
            try:
                self.method.load_training_state(state)
            except (ValueError, RuntimeError) as error:
                raise UserError(f"{kept.path}: {first_line(error)}") from None
            self.method.to(device, dtype).eval()
        else:
            for name, value in state.items():
                setattr(self.method, name, value)
            self.backbone = backbone.to(device, dtype).eval()

    def _check(self) -> None:
        """Refuse what would give other scores than those of the run."""
        path, spec = self.kept.path, self.record["spec"]
        decoding = self.record["input"].get("decoding")
        if decoding != DECODING:
            raise UserError(
                f"{path}: trained on pixels of decoding rule {decoding!r}, this code decodes by rule "
                f"{DECODING!r}; use the code of the run (`why` names its commit)"
            )
        name = spec["method"]
        try:
            cls = methods.get(name)
        except UserError as error:
            if not spec.get("code"):
                raise
            raise UserError(f"{path}: {error}; it is a user's own: add --module FILE with its file") from None
        if cls.version != spec["version"]:
            raise UserError(
                f"{path}: trained by version {spec['version']} of method {name!r}, this code has version "
                f"{cls.version}; use the code of the run (`why` names its commit)"
            )
        code = code_of(name)
        if (code.digest if code else "") != spec.get("code", ""):
            raise UserError(
                f"{path}: the code of method {name!r} is not that of the run, which had SHA-256 "
                f"{spec.get('code', 'of none: it was built in')[:16]}; give the file of then with --module"
            )

    def _load_backbone(self, weights: Path | None) -> Backbone:
        said = dict(self.record["backbone"])
        for field in ("mean", "std"):
            said[field] = None if said[field] is None else tuple(said[field])
        spec = BackboneSpec(**said)
        wanted = self.record["spec"]["backbone"]
        if weights is not None:
            if wanted["weights_sha256"] == "random":
                raise UserError(f"--weights: the backbone {spec.name} of this run had random weights")
            spec = dataclasses.replace(spec, weights=str(weights))
        try:
            found = weights_digest(spec)
        except UserError as error:
            raise UserError(
                f"{self.kept.path} needs the pretrained weights of {spec.name} with SHA-256 "
                f"{wanted['weights_sha256'][:16]}…: {error}; give their file with --weights FILE"
            ) from None
        if found != wanted["weights_sha256"]:
            raise UserError(
                f"{self.kept.path} needs the pretrained weights of {spec.name} with SHA-256 "
                f"{wanted['weights_sha256'][:16]}…, and {spec.weights or 'those that are here'} have "
                f"{found[:16]}…; give the right file with --weights FILE"
            )
        if weights is not None:  # a file says less of itself than the tag that it was
            spec = dataclasses.replace(
                spec,
                mean=tuple(wanted["mean"]),
                std=tuple(wanted["std"]),
                quick_gelu=wanted["quick_gelu"],
            )
        built = conventions(spec)
        before = wanted["quick_gelu"], wanted["mean"], wanted["std"]
        if (built.quick_gelu, list(built.mean), list(built.std)) != before:
            raise UserError(
                f"{self.kept.path}: the installed libraries build {spec.name} with other conventions than "
                f"the run's (quick_gelu, mean, std were {before}); install the versions that `why` names"
            )
        return load_backbone(spec, self.kept.size)

    @property
    def forward(self) -> Callable[[Tensor], Tensor]:
        """From views to what `finish` takes: scores, or the features of a fitted method's backbone."""
        if self.backbone is not None:
            return self.backbone.features
        assert isinstance(self.method, StepMethod)
        return self.method.predict

    @torch.no_grad()
    def rows(self, images: Tensor) -> Tensor:
        """What `finish` takes of some images.

        Args:
            images: (B, 3, S, S) uint8.

        Returns:
            (B, C) float32, under precision "fp64" float64, on the CPU.
        """
        images = images.to(self.strategy.accelerator.device)
        numbers = torch.arange(len(images))  # of random draws, of which the test view has none
        view = make_views(images, numbers, policy="test", seed=0, epoch=0, patches=self.patches)
        view = view.to(self.strategy.dtype)
        with self.strategy.autocast(), memory_advice(f"--batch {len(images)}"):
            return at_least_fp32(self.forward(view)).cpu()

    @torch.no_grad()
    def finish(self, rows: Tensor) -> Tensor:
        """Scores (N, K) float32 on the CPU; a fitted method gets the features of all images at once."""
        if isinstance(self.method, FitMethod):
            rows = self.method.predict(rows.float())
        return rows.float().cpu()


def load_model(
    path: Path, *, weights: Path | None = None, modules: Sequence[str] = (), precision: str = ""
) -> Model:
    """The model of a file of weights, on this machine's device, in a process of its own.

    Args:
        path: the file.
        weights: file of the backbone's pretrained weights, in place of where the run found them.
        modules: files (``*.py``) or installed modules of users' methods; they are executed.
        precision: of the scores; "" for the run's.

    Raises:
        UserError: see `Kept.read` and `Model`; or a module cannot be imported.
    """
    kept = Kept.read(path)
    for module in modules:
        import_methods(module, Path.cwd(), "--module")
    return Model(kept, make("ddp", precision or kept.record["input"]["precision"], Group()), weights)
