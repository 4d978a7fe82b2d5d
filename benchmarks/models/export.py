"""Exports a trained model: one input convention, normalisation inside, compared before it is called done.

The exported model takes images (B, 3, S, S) float32, RGB in [0, 1], resized to S, and gives (B, K) float32
scores, for any B. What depends on no image, such as the features of learnt prompts, is computed once.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.models.rebuild import Model
from methods.base import StepMethod
from methods.errors import UserError, first_line
from methods.parts.prompts import LearntPrompts
from results.schema import CUTS
from results.weights import KEY

KINDS = {"torch-export": ".pt2", "onnx": ".onnx", "safetensors": ".safetensors"}
"""Forms of an exported model, with the ending of their files."""
ONNX = ("onnx", "onnxscript", "onnxruntime")
SIZES = (1, 2, 5)
"""Images of the batches that are compared; another number is traced."""
TRACED = 3
TOLERANCE = {"torch-export": 1e-5, "onnx": 1e-4, "safetensors": 0.0}
"""By how much scores may differ, beside 1 or their size, whichever is more."""

Scores = Callable[[Tensor], Tensor]
"""From (B, 3, S, S) images to (B, K) scores."""


class ImageScorer(nn.Module):
    """A trained model as one module.

    Args:
        model: on the CPU, in float32.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.fitted = None
        self.constants = nn.Module()
        """What depends on no image, by number; at the top, where every tensor's name is one of Python's."""
        if isinstance(model.method, StepMethod):
            self.network: Any = model.method
        else:
            assert model.backbone is not None  # what a fitted method reads
            self.network, self.fitted = model.backbone, model.method

    def forward(self, images: Tensor) -> Tensor:
        """(B, K) float32 scores of (B, 3, S, S) images."""
        if self.fitted is None:
            return self.network.predict(images).float()
        return self.fitted.predict(self.network.features(images).float()).float()


class _Constant(nn.Module):
    """What a module without inputs gives, computed once.

    Args:
        place: holds the value; a module's name in a method, "class" for example, may be a word of Python,
            which no exported tensor can be called by.
        value: the value.
    """

    def __init__(self, place: nn.Module, value: Tensor) -> None:
        super().__init__()
        self._name = f"value_{len(place._buffers)}"
        place.register_buffer(self._name, value)
        self._place = (place,)  # in a tuple, so that it is no sub-module

    def forward(self) -> Tensor:
        return getattr(self._place[0], self._name)


def require(kind: str) -> None:
    """Refuse a form whose libraries are not here.

    Raises:
        UserError: says how to get them.
    """
    missing = [name for name in ONNX if importlib.util.find_spec(name) is None] if kind == "onnx" else []
    if missing:
        raise UserError(
            f"--to onnx needs {', '.join(missing)}: pip install 'ssmll-bench[onnx]', or pip install "
            f"{' '.join(ONNX)}"
        )


@torch.no_grad()
def export(model: Model, kind: str, file: Path, about: dict[str, Any]) -> float:
    """Write a model, load it again, and compare its scores with the model's.

    Args:
        model: from `load_model` with precision "fp32"; it cannot be used afterwards.
        kind: one of `KINDS`.
        file: where to write; a file there is replaced.
        about: goes into the metadata.

    Returns:
        The largest difference between two scores.

    Raises:
        UserError: the method cannot be exported, or the loaded model gives other scores.
    """
    spec = model.record["spec"]
    if model.patches:
        raise UserError(
            f"method {spec['method']!r} cuts its images into patches ({model.patches} a side), which no "
            "exported model does: it cannot be exported; `predict` scores with it"
        )
    scorer = ImageScorer(model).cpu().float().eval()
    size = model.kept.size
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.rand(n, 3, size, size, generator=draw) for n in (TRACED, *SIZES)]
    expected = [scorer(images) for images in inputs]
    text = json.dumps({**about, **described(model)}, sort_keys=True)
    try:
        loaded = _WRITERS[kind](scorer, inputs[0], file, text)
        found = [loaded(images) for images in inputs[1:]]
    except UserError:
        raise
    except Exception as error:  # of the tracer and the libraries, which raise many kinds
        raise UserError(
            f"method {spec['method']!r} cannot be exported as {kind}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    worst = 0.0
    for ours, theirs in zip(found, expected[1:], strict=True):
        if ours.shape != theirs.shape:
            raise UserError(
                f"{file}: the exported model gives {tuple(ours.shape)}, not {tuple(theirs.shape)}"
            )
        difference = (ours - theirs).abs()
        if not bool((difference <= TOLERANCE[kind] * theirs.abs().clamp(min=1.0)).all()):
            raise UserError(
                f"{file}: the exported model gives other scores, by {float(difference.max()):.2g}; "
                "it is not kept"
            )
        worst = max(worst, float(difference.max()))
    return worst


def described(model: Model) -> dict[str, Any]:
    """What an exported model says of its input and output."""
    record, size = model.record, model.kept.size
    return {
        "classes": record["classes"],
        "score_scale": record["score_scale"],
        "decision_above": CUTS.get(record["score_scale"]),
        "input": {
            "name": "images",
            "shape": ["batch", 3, size, size],
            "dtype": "float32",
            "channels": "RGB",
            "range": [0.0, 1.0],
            "resize": record["input"]["resize"],
            "normalisation": "inside the model",
        },
        "output": {"name": "scores", "shape": ["batch", len(record["classes"])], "dtype": "float32"},
    }


def _traced(scorer: ImageScorer, images: Tensor) -> torch.export.ExportedProgram:
    """The program of a model, for any number of images."""
    for module in list(scorer.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, LearntPrompts):
                module._modules[name] = _Constant(scorer.constants, part().detach())
    for parameter in scorer.parameters():
        parameter.requires_grad_(False)
        # Convolutions hold theirs with the channels last, which an archive stores as a slice of something.
        parameter.data = parameter.data.contiguous()
    batch = torch.export.Dim("batch", min=1)
    # Strict: the other way of tracing takes the number of images that `len` gives for a constant.
    return torch.export.export(scorer, (images,), dynamic_shapes={"images": {0: batch}}, strict=True)


def _torch_export(scorer: ImageScorer, images: Tensor, file: Path, text: str) -> Scores:
    torch.export.save(_traced(scorer, images), file, extra_files={f"{KEY}.json": text})
    extra = {f"{KEY}.json": ""}
    program = torch.export.load(file, extra_files=extra)
    said: Any = extra[f"{KEY}.json"]
    _compare_text(file, said.decode() if isinstance(said, bytes) else said, text)
    return program.module()


def _onnx(scorer: ImageScorer, images: Tensor, file: Path, text: str) -> Scores:
    import onnx
    import onnxruntime

    program = torch.onnx.export(
        _traced(scorer, images), (), dynamo=True, input_names=["images"], output_names=["scores"]
    )
    assert program is not None  # it is without a file to write
    found = program.model_proto
    for key, value in (
        (KEY, text),
        *((name, json.dumps(json.loads(text)[name])) for name in ("classes", "input")),
    ):
        found.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(found)
    onnx.save(found, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    _compare_text(file, session.get_modelmeta().custom_metadata_map.get(KEY, ""), text)
    return lambda some: torch.from_numpy(np.asarray(session.run(["scores"], {"images": some.numpy()})[0]))


def _safetensors(scorer: ImageScorer, images: Tensor, file: Path, text: str) -> Scores:
    """All tensors of the model, the backbone's and its normalisation too."""
    state = _all_tensors(scorer)
    tensors = {
        name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt", KEY: text})
    with safetensors.safe_open(file, framework="pt") as opened:
        _compare_text(file, opened.metadata().get(KEY, ""), text)
    loaded = safetensors.torch.load_file(file)
    if loaded.keys() != state.keys():
        raise UserError(f"{file}: it lacks tensors of the model")
    for name, value in state.items():
        value.zero_()  # so that nothing of the scores can come from anywhere but the file
        value.copy_(loaded[name])
    return scorer


def _all_tensors(scorer: ImageScorer) -> dict[str, Tensor]:
    """Parameters and all buffers by name, and the tensors of a fitted method."""
    found: dict[str, Tensor] = {**dict(scorer.named_parameters()), **dict(scorer.named_buffers())}
    if scorer.fitted is not None:
        found |= {f"fitted.{k}": v for k, v in vars(scorer.fitted).items() if isinstance(v, Tensor)}
    return found


def _compare_text(file: Path, found: str, text: str) -> None:
    if found != text:
        raise UserError(f"{file}: the metadata are not those that were written; it is not kept")


_WRITERS: dict[str, Callable[[ImageScorer, Tensor, Path, str], Scores]] = {
    "torch-export": _torch_export,
    "onnx": _onnx,
    "safetensors": _safetensors,
}
