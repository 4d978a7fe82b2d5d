"""Prompts: text features of learnt prompts and their gradients, encoded in three ways.

Two shared contexts stand before every class name, as in DualCoOp and CSAA; forward and backward:

  full  each prompt as its own sequence, padded to the tower's context length, as the published code does
  cut   each prompt as its own sequence, cut to the longest one in use
  tree  as methods do it: the context once, followed by all names (`methods.parts.prompts.NameTree`)

The three alternate in one process with one thread, or on the GPU if there is one. The time does not
depend on the weights, so random ones are used and nothing is downloaded. The features are compared too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.arguments import positive
from benchmarks.data.readers.class_names import COCO, NUS, VOC, prompt_names
from benchmarks.perf.machine import machine
from benchmarks.provenance import packages
from methods.backbones import BackboneSpec, load_backbone
from methods.backbones.clip import VisionLanguageModel
from methods.errors import UserError
from methods.parts.prompts import LearntPrompts, encode_together

CLASSES = {"voc": VOC, "coco": COCO, "nus": NUS}
VERSIONS = ("python", "torch", "open_clip_torch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--json", action="store_true", help="print one JSON line, not the table")
    parser.add_argument("--backbone", default="open_clip/RN101", help="model (default: open_clip/RN101)")
    parser.add_argument(
        "--classes", choices=sorted(CLASSES), default="voc", help="whose class names (default: voc)"
    )
    parser.add_argument("--length", type=positive, default=16, help="learnt tokens (default: 16)")
    parser.add_argument(
        "--rounds", type=positive, default=3, help="rounds, after one that warms up (default: 3)"
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print, and return the exit code."""
    vlm = load_backbone(BackboneSpec(options.backbone), 224)
    if not (isinstance(vlm, VisionLanguageModel) and vlm.text_tower.cuttable):
        raise UserError(
            f"--backbone {options.backbone} has no causal text tower; choose a model that has "
            "one, such as glyphclip or open_clip/RN101"
        )
    names = prompt_names(CLASSES[options.classes])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prompts = [LearntPrompts(vlm, names, length=options.length, seed=k) for k in range(2)]
    for module in (vlm, *prompts):
        module.to(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = measure(vlm, prompts, rounds=options.rounds)
    finally:
        torch.set_num_threads(threads)
    found |= {"backbone": options.backbone, "classes": len(names), "length": options.length}
    print(json.dumps(found) if options.json else table(found))
    return 0


def measure(vlm: VisionLanguageModel, prompts: list[LearntPrompts], *, rounds: int) -> dict[str, Any]:
    """Measure the three ways of encoding.

    Args:
        vlm: the model.
        prompts: learnt prompts of equal length over the same names.
        rounds: number of timed rounds; one more warms up.

    Returns:
        The fields of the JSON line, without the options. Times are medians over the rounds in
        milliseconds; "difference" is the largest absolute difference of features of "full" and "tree".
    """
    ways: dict[str, Callable[[], list[Tensor]]] = {
        "full": lambda: [full(vlm, prompt) for prompt in prompts],
        "cut": lambda: [vlm.encode_prompts(prompt.embeddings(), prompt.end) for prompt in prompts],
        "tree": lambda: encode_together(prompts),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    features: dict[str, Tensor] = {}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = _clock()
            found = torch.stack(way())
            found.square().sum().backward()
            spent = 1000 * (_clock() - started)
            features[name] = found.detach()
            if number:  # the first round warms up
                times[name].append(spent)
        if number:
            print(
                f"round {number} of {rounds}: "
                + ", ".join(f"{name} {found[-1]:.0f} ms" for name, found in times.items()),
                file=sys.stderr,
                flush=True,
            )
    middle = {name: statistics.median(found) for name, found in times.items()}
    versions = packages()
    cuda = torch.cuda.is_available()
    return {
        "ratio": middle["full"] / middle["tree"],
        "ratio_to_cut": middle["cut"] / middle["tree"],
        **{f"{name}_ms": value for name, value in middle.items()},
        "ratios": [full / tree for full, tree in zip(times["full"], times["tree"], strict=True)],
        "difference": float((features["full"] - features["tree"]).abs().max()),
        "scale": float(features["full"].abs().max()),
        "tokens": sum(tree.tokens for prompt in prompts for tree in prompt.trees),
        "cut_tokens": sum(prompt.embeddings().shape[:2].numel() for prompt in prompts),
        "machine": {**machine(), **({"gpu": torch.cuda.get_device_name()} if cuda else {})},
        "versions": {name: versions[name] for name in VERSIONS if name in versions},
    }


def full(vlm: VisionLanguageModel, prompt: LearntPrompts) -> Tensor:
    """Return (K, d) features of sequences padded to the tower's context length."""
    tower, found = vlm.text_tower, prompt.embeddings()
    padding = tower.padding_embedding.expand(len(found), tower.context_length - found.shape[1], -1)
    x = torch.cat([found, padding], dim=1) + tower.positional_embedding
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))
    return x[torch.arange(len(x), device=x.device), prompt.end] @ tower.text_projection


def table(found: dict[str, Any]) -> str:
    """Return the figures as a table for people."""
    low, high = min(found["ratios"]), max(found["ratios"])
    place = found["machine"]
    rows = [
        ("full length", found["full_ms"]),
        (f"cut to the longest, {found['cut_tokens']} tokens", found["cut_ms"]),
        (f"context read once, {found['tokens']} tokens", found["tree_ms"]),
    ]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    where = place.get("gpu") or f"{place['cpu']}, one thread"
    return "\n".join(
        (
            f"{found['backbone']}, 2 x {found['classes']} prompts with {found['length']} learnt "
            "tokens, forward and backward",
            *(f"{name:38} {value:>9.1f} ms" for name, value in rows),
            f"ratio {found['ratio']:.1f} ({low:.1f} to {high:.1f}); to the cut ones "
            f"{found['ratio_to_cut']:.1f}; features differ by {found['difference']:.1e} of "
            f"{found['scale']:.1f} at most",
            f"{where}; {versions}",
        )
    )


def _clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
