"""Makes `noisy.json`: numbers of the official code of CAP, D2L, LargeLoss, Hill, SPLC and VLPL.

    python tests/methods/golden/make_noisy.py CLONES

CLONES holds a clone of each repository of `SOURCES`, under its name without the owner, at the commit given
there. Their functions are called as they are, on random inputs, on the CPU: `Tensor.cuda` returns the tensor,
and modules that have nothing to do with the numbers (tensorboard, data sets, networks) are stand-ins. The
file holds values only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import sklearn.metrics  # noqa: F401 - the official files import it, which works once in a process
import torch
from torch import Tensor

SOURCES = {
    "cap": ("xiemk/SSMLL-CAP", "b7dd8075d61bdc0c1947df97dfab16a0c8b30948"),
    "d2l": ("JiahaoXxX/SSMLL-D2L_MAT", "50c9a1c596b9f13fc170af8700a08578bae2a59c"),
    "large_loss": ("snucml/LargeLossMatters", "5025d16b37e7ed4ef278d341885976e8f316a097"),
    "robust": ("xinyu1205/robust-loss-mlml", "dcfa4d54bcca43fba3632ec9d21d8bfabef1f6dd"),
    "vlpl": ("mvrl/VLPL", "ed09b592bbde3c1e2995f818261cd4cfbce97fca"),
}
OUT = Path(__file__).with_name("noisy.json")
STAND_INS = (
    "_init_paths",
    "dataset",
    "dataset.get_dataset",
    "dataset.handlers",
    "models",
    "models.MLDResnet",
    "models.Resnet",
    "randaugment",
    "matplotlib",
    "matplotlib.pyplot",
    "termcolor",
    "torch.utils.tensorboard",
)


def load(clones: Path, name: str, file: str) -> Any:
    """The module in a file of a clone."""
    root = clones / SOURCES[name][0].partition("/")[2]
    for module in [module for module in sys.modules if module.partition(".")[0] == "utils"]:
        del sys.modules[module]  # both CAP and D2L call a package so
    with (
        patch.object(sys, "path", [str(root / "lib"), str(root), *sys.path]),
        patch.dict(sys.modules, {stand_in: MagicMock() for stand_in in STAND_INS}),
    ):
        spec = importlib.util.spec_from_file_location(f"official_{name}_{Path(file).stem}", root / file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `is` with a text, in the official code
            spec.loader.exec_module(module)
        return module


class Images(torch.utils.data.Dataset):
    """A data set whose images are rows of logits: ((weak, strong), target)."""

    X = None

    def __init__(self, logits: Tensor, targets: Tensor, patches: bool = False) -> None:
        self.logits, self.targets, self.patches = logits, targets, patches

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, place: int) -> Any:
        row = self.logits[place]
        return ([row] * 5 if self.patches else row, row), self.targets[place]


def numbers(value: Any) -> Any:
    """A tensor as lists of numbers with seven digits."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value.int().tolist()
        value = value.detach().double().tolist()
    if isinstance(value, list):
        return [numbers(entry) for entry in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def with_gradient(function: Any, logits: Tensor) -> dict[str, Any]:
    """Element-wise loss and the gradient of its sum."""
    leaf = logits.clone().requires_grad_()
    loss = function(leaf)
    loss.sum().backward()
    return {"loss": numbers(loss), "gradient": numbers(leaf.grad)}


def cap(clones: Path) -> dict[str, Any]:
    """Pseudo-labels and masks of `pseudo_label`, the last class absent; loss and gradient of a batch."""
    module = load(clones, "cap", "run_CAP.py")
    generator = torch.Generator().manual_seed(1)
    labelled = (torch.rand(23, 5, generator=generator) < torch.tensor([0.5, 0.3, 0.15, 0.9, 0.0])).float()
    scores = torch.randn(60, 5, generator=generator).mul(1000).round().div(1000)
    # As in its get_datasets, whose labels are float64.
    found = SimpleNamespace(
        amp=False,
        workers=0,
        dataset_name="coco",
        dataset_dir="",
        pos_label_freq=labelled.double().numpy().sum(0) / float(len(labelled)),
        neg_label_freq=(labelled.numpy() == 0).sum(0) / float(len(labelled)),
        init_pos_per=1.0,
        init_neg_per=1.0,
        save_PR=False,
    )
    kept: list[Any] = []
    module.MASK_HANDLER_DICT = {"coco": lambda *given, **_: kept.append(given)}
    cases = []
    for eta_pos, eta_neg in ((1.0, 1.0), (0.7, 0.6)):
        found.init_pos_per, found.init_neg_per = eta_pos, eta_neg
        module.adjust_per(0, found)
        with torch.no_grad():
            module.pseudo_label(Images(scores, scores), MagicMock(), lambda images: images, found, None)
        _, targets, mask, _ = kept.pop()
        case = {"eta_pos": float(found.pos_per), "eta_neg": float(found.neg_per), "asked": eta_neg}
        cases.append({**case, "targets": numbers(targets.astype(int)), "mask": numbers(mask.astype(int))})
    logits = torch.randn(7, 5, generator=generator).mul(3000).round().div(1000)
    targets = (torch.rand(7, 5, generator=generator) < 0.4).float()
    mask = (torch.rand(7, 5, generator=generator) < 0.7).float()
    loss = module.AsymmetricLoss(gamma_neg=4, gamma_pos=0, clip=0.05, reduction="none")
    return {
        "counts": numbers(labelled.sum(0).int()),
        "labelled": len(labelled),
        "scores": numbers(scores),
        "cases": cases,
        "batch": {
            "logits": numbers(logits),
            "targets": numbers(targets.int()),
            "mask": numbers(mask.int()),
            **with_gradient(lambda z: loss(z, targets) * mask, logits),
        },
    }


def d2l(clones: Path) -> dict[str, Any]:
    """Thresholds of `update_ths`, the last class absent."""
    module = load(clones, "d2l", "run_main.py")
    generator = torch.Generator().manual_seed(2)
    labels = (torch.rand(40, 5, generator=generator) < torch.tensor([0.5, 0.3, 0.1, 0.9, 0.0])).float()
    logits = (torch.randn(40, 5, generator=generator) + labels).mul(1000).round().div(1000)
    cases = []
    for beta in (0.5, 1.0, 2.0):
        arguments = SimpleNamespace(workers=0, amp=False, print_freq=10**9, cat_strategy="fB", beta=beta)
        model = MagicMock(side_effect=lambda images: (images, images))
        images = Images(logits, labels, patches=True)
        logger = logging.getLogger("official")
        thresholds = module.update_ths(images, model, arguments, logger, torch.zeros(5))
        cases.append({"beta": beta, "thresholds": numbers(thresholds)})
    return {"logits": numbers(logits), "labels": numbers(labels.int()), "cases": cases}


def large_loss(clones: Path) -> dict[str, Any]:
    """Mean losses, gradients and entries to be flipped, of all schemes."""
    module = load(clones, "large_loss", "losses.py")
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 5, generator=generator).mul(2000).round().div(1000)
    observed = (torch.rand(6, 5, generator=generator) < 0.2).float()
    logits[0, 0], logits[3, 2] = logits[4, 1], logits[4, 1]  # ties
    observed[[0, 3, 4], [0, 2, 1]] = 0
    cases = []
    # As Cp is given on a command line: another text object, which `is` does not take for "LL-Cp".
    typed = "".join(["LL", "-Cp"])
    for scheme, rate in [(s, r) for r in (0.05, 0.1, 0.2, 0.3) for s in ("LL-R", "LL-Ct", "LL-Cp", typed)]:
        settings = {"clean_rate": 1 - 2 * rate, "delta_rel": rate, "mod_scheme": scheme}
        if scheme is not typed and scheme == "LL-Cp":
            settings["mod_scheme"] = _constant(module, "LL-Cp")
        leaf = logits.clone().requires_grad_()
        loss, flipped = module.compute_batch_loss(leaf, observed, settings)
        loss.backward()
        cases.append(
            {
                "scheme": scheme.removeprefix("LL-") + ("-typed" if scheme is typed else ""),
                "rate": rate,
                "loss": numbers(loss),
                "gradient": numbers(leaf.grad),
                "flipped": sorted(numbers(torch.stack(flipped, dim=1))),
            }
        )
    return {"logits": numbers(logits), "observed": numbers(observed.int()), "cases": cases}


def _constant(module: Any, text: str) -> str:
    """The very text object of a function's code."""
    return next(value for value in module.compute_batch_loss.__code__.co_consts if value == text)


def robust(clones: Path) -> dict[str, Any]:
    """Element-wise Hill and SPLC, before and after the epoch from which SPLC corrects."""
    module = load(clones, "robust", "src/loss_functions/losses.py")
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(6, 5, generator=generator).mul(2500).round().div(1000)
    targets = (torch.rand(6, 5, generator=generator) < 0.4).float()
    hill, splc = module.Hill(reduction="none"), module.SPLC(reduction="none")
    return {
        "logits": numbers(logits),
        "targets": numbers(targets.int()),
        "hill": with_gradient(lambda z: hill(z, targets), logits),
        "splc": with_gradient(lambda z: splc(z, targets, 0), logits),
        "splc_corrected": with_gradient(lambda z: splc(z, targets, 1), logits),
    }


def vlpl(clones: Path) -> dict[str, Any]:
    """Element-wise loss_EM: positives and unknown entries."""
    module = load(clones, "vlpl", "losses.py")
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, 5, generator=generator).mul(2000).round().div(1000)
    observed = (torch.rand(6, 5, generator=generator) < 0.3).float()

    def loss(z: Tensor) -> Tensor:
        batch = {"preds": torch.sigmoid(z), "label_vec_obs": observed, "label_vec_true": observed}
        found, _ = module.loss_EM(batch, {"alpha": 0.2}, {"device": "cpu"})
        return found

    return {
        "logits": numbers(logits),
        "observed": numbers(observed.int()),
        "alpha": 0.2,
        **with_gradient(loss, logits),
    }


def main(clones: Path) -> None:
    """Write the file."""
    made = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(Tensor, "cuda", lambda self, **_: self))
        for name, function in (
            ("cap", cap),
            ("d2l", d2l),
            ("large_loss", large_loss),
            ("robust", robust),
            ("vlpl", vlpl),
        ):
            repository, commit = SOURCES[name]
            made[name] = {"repository": repository, "commit": commit, **function(clones)}
    lines = [f"{json.dumps(name)}: {json.dumps(part)}" for name, part in made.items()]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
