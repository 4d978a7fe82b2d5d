"""Train GlyphCLIP, the small vision-language model in `methods/backbones/glyphclip`.

The images come from the renderer of GlyphScenes, but from splits of their own (flatter class frequencies,
another seed), so that no image of the dataset is seen. Captions imitate web text (see `captions`). There are
two stages,
each with a cosine schedule:

1. "icons" at 64 pixels: the image tower predicts the words of the caption (Joulin et al. 2016, "Learning
visual
   features from large weakly supervised data"). From random weights InfoNCE stays at its starting value for
   very long; this stage leaves it within a minute of processor time, and a quarter of the pixels cost a
   quarter of the time (Li et al. 2023, CLIPA).
2. scenes at 128 pixels: the same loss plus symmetric InfoNCE between images and captions (Radford et al.
2021,
   CLIP).

    python -m benchmarks.data.glyphscenes.pretrain_clip --compile --out methods/backbones/glyphclip

The weights are written after every epoch, so that an interrupted run leaves a usable file. Their zero-shot
scores, by which the length of the training is chosen, are measured on scenes of `glyphscenes-dev`; the test
images of `glyphscenes` are never looked at here.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.data.glyphscenes import scenes
from benchmarks.data.glyphscenes.captions import render_pairs
from benchmarks.data.glyphscenes.classes import SEEDS
from benchmarks.data.glyphscenes.clip_model import (
    CONFIG,
    PROMPT,
    ShortVocabulary,
    augment,
    create_model,
    encode_small,
    normalise,
    save,
)


@dataclass(frozen=True)
class StageSettings:
    """Settings of a training stage.

    Attributes:
        contrast: add symmetric InfoNCE between images and captions to the loss.
        epochs: number of passes over the pairs.
        batch: pairs of a step.
        lr: learning rate after the warm-up.
        seed: seed of the order and of the augmentation.
    """

    contrast: bool
    epochs: int
    batch: int
    lr: float
    seed: int


class Stage:
    """One stage, trained with AdamW (warm-up, cosine schedule).

    The loss is the cross-entropy of the caption's words, plus InfoNCE if `settings.contrast`.

    Args:
        model: the open_clip model.
        vocabulary: its short vocabulary.
        encode_image: images (B, 3, S, S) to features (B, d).
        pixels: (N, S, S, 3) uint8.
        captions: N texts.
        settings: see `StageSettings`.
    """

    def __init__(
        self,
        model: Any,
        vocabulary: ShortVocabulary,
        encode_image: Callable[[torch.Tensor], torch.Tensor],
        pixels: np.ndarray,
        captions: list[str],
        settings: StageSettings,
    ) -> None:
        self.model, self.vocabulary, self.encode_image = model, vocabulary, encode_image
        self.pixels, self.settings = pixels, settings
        self.tokens = vocabulary.tokens(captions)
        self.words = word_targets(self.tokens, len(vocabulary.used))
        # Decay only matrices and filters: no decay on norms, biases, embeddings and the temperature.
        decay: list[torch.nn.Parameter] = []
        plain = list(vocabulary.parameters())
        for key, parameter in model.named_parameters():
            if key != "token_embedding.weight":
                (decay if parameter.ndim >= 2 and "embedding" not in key else plain).append(parameter)
        groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        self.parameters = decay + plain
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), eps=1e-6)
        self.steps = len(pixels) // settings.batch
        self.total = settings.epochs * self.steps
        self.losses: list[float] = []

    def train(self, after_epoch: Callable[[], None]) -> None:
        """Train all epochs; `after_epoch` is called after each one."""
        for epoch in range(self.settings.epochs):
            self.model.train()
            started = time.monotonic()
            for step, (rows, images) in enumerate(self._batches(epoch)):
                self._step(epoch * self.steps + step, rows, images)
                if (step + 1) % 100 == 0 or step + 1 == self.steps:
                    self._report(epoch, step, time.monotonic() - started)
            self.vocabulary.put_back(self.model)
            after_epoch()

    def _batches(self, epoch: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Rows and augmented images; the next batch is prepared during the current step."""
        batch = self.settings.batch
        rng = np.random.Generator(np.random.Philox(key=[self.settings.seed, 1 << 32 | epoch]))
        order = rng.permutation(len(self.pixels))[: self.steps * batch].reshape(self.steps, batch)

        def prepare(rows: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
            return rows, augment(self.pixels[rows], rng)

        with ThreadPoolExecutor(1) as thread:  # one thread keeps the order of the draws
            ahead = thread.submit(prepare, np.sort(order[0]))
            for rows in order[1:]:
                ready, ahead = ahead, thread.submit(prepare, np.sort(rows))
                yield ready.result()
            yield ahead.result()

    def _step(self, number: int, rows: np.ndarray, images: torch.Tensor) -> None:
        """One optimiser step, the given number since the start of the stage."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * self._factor(number)
        loss = self._loss(rows, images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        self.losses.append(loss.item())

    def _factor(self, number: int) -> float:
        """Share of the learning rate at a step: linear warm-up, then cosine."""
        warmup = min(200, self.total // 10)
        if number < warmup:
            return (number + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (number - warmup) / (self.total - warmup)))

    def _loss(self, rows: np.ndarray, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            features = self.encode_image(images)
        features = features.float()
        loss = F.cross_entropy(self.vocabulary.words(features), self.words[rows])
        if self.settings.contrast:
            texts = F.normalize(self.vocabulary.encode(self.model, self.tokens[rows]), dim=-1)
            logits = self.model.logit_scale.exp() * F.normalize(features, dim=-1) @ texts.T
            target = torch.arange(self.settings.batch)
            pairs = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
            loss = loss + pairs / 2
        return loss

    def _report(self, epoch: int, step: int, seconds: float) -> None:
        number, batch = epoch * self.steps + step, self.settings.batch
        rate = (step + 1) * batch / seconds
        left = (self.total - number - 1) * batch / rate / 60
        print(
            f"epoch {epoch + 1}/{self.settings.epochs} step {step + 1}/{self.steps} "
            f"loss {np.mean(self.losses[-100:]):.3f} "
            f"scale {self.model.logit_scale.exp().item():.1f} "
            f"{rate:.0f} images/s, {left:.0f} min left in this stage",
            flush=True,
        )


def word_targets(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """A distribution over tokens for each caption: rare tokens weigh more, very frequent ones nothing.

    Args:
        tokens: (N, T) int64 in [0, count).
        count: number of tokens.

    Returns:
        (N, count) float32, rows sum to one: log inverse document frequency, zero for a token in more than
        half of the captions.
    """
    present = torch.zeros(len(tokens), count).scatter_(1, tokens, 1.0)
    frequency = present.mean(dim=0)
    weight = torch.where(frequency > 0.5, 0.0, -frequency.clamp(min=1e-6).log())
    present *= weight
    return present / present.sum(dim=1, keepdim=True)


@torch.no_grad()
def zero_shot(model: Any, count: int) -> dict[str, float]:
    """Zero-shot mAP and chance (mean class frequency), in per cent, on scenes of `glyphscenes-dev`.

    The first `count` test scenes are rendered in memory, without JPEG compression.
    """
    import open_clip
    from sklearn.metrics import average_precision_score

    names = scenes.class_names()
    tokens = open_clip.get_tokenizer("glyphclip")([PROMPT.format(name) for name in names])
    model.eval()
    text = F.normalize(model.encode_text(tokens), dim=-1)
    scores, targets = [], np.zeros((count, len(names)), dtype=np.uint8)
    for start in range(0, count, 100):
        images = []
        for index in range(start, min(start + 100, count)):
            image, objects = scenes.render(SEEDS["glyphscenes-dev"], index, "test")
            images.append(np.asarray(image))
            for item in objects:
                if item.is_label:
                    targets[index, names.index(item.name)] = 1
        features = F.normalize(model.encode_image(normalise(np.stack(images))), dim=-1)
        scores.append((features @ text.T).numpy())
    found = np.concatenate(scores)
    present = targets.any(axis=0)
    ap = [average_precision_score(targets[:, k], found[:, k]) for k in np.flatnonzero(present)]
    return {"mAP": 100 * float(np.mean(ap)), "chance": 100 * float(targets[:, present].mean())}


def main(argv: list[str] | None = None) -> int:
    """Run the pre-training; see the docstring of the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=40_000, help="pairs of the second stage")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of the second stage")
    parser.add_argument("--icons", type=int, default=30_000, help="pairs of the first stage")
    parser.add_argument("--icon-epochs", type=int, default=6, help="epochs of the first stage")
    parser.add_argument("--threads", type=int, default=1, help="of the training itself")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=CONFIG.parent, help="folder of the weights")
    parser.add_argument("--compile", action="store_true", help="torch.compile the image tower")
    args = parser.parse_args(argv)
    if min(args.epochs, args.icon_epochs, args.threads) < 1:
        parser.error("--epochs, --icon-epochs and --threads must be at least 1")
    if min(args.images, args.icons) < 128:
        parser.error("--images and --icons must be at least 128, one batch")
    print(
        f"plan: {args.icons} icons at 64 pixels x {args.icon_epochs} epochs, then {args.images} "
        f"images at 128 pixels x {args.epochs} epochs",
        flush=True,
    )
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    started = time.monotonic()
    model = create_model().to(memory_format=torch.channels_last)
    vocabulary = ShortVocabulary(model)

    def report(count: int) -> None:
        save(model, args.out)
        minutes = round((time.monotonic() - started) / 60, 1)
        print(json.dumps({"minutes": minutes, **zero_shot(model, count)}), flush=True)

    with tempfile.TemporaryDirectory(prefix="glyphclip-") as name, ThreadPoolExecutor(1) as thread:
        folder, seed = Path(name), args.seed
        icons = render_pairs(folder, "icons", args.icons, 64, seed, 2)
        # The large images are rendered by one process while the first stage trains.
        images = thread.submit(render_pairs, folder, "pretrain", args.images, 128, seed, 1)
        first = StageSettings(contrast=False, epochs=args.icon_epochs, batch=64, lr=2e-3, seed=seed)
        Stage(model, vocabulary, lambda pictures: encode_small(model, pictures), *icons, first).train(
            lambda: save(model, args.out)
        )
        tower = torch.compile(model.visual) if args.compile else model.visual
        second = StageSettings(contrast=True, epochs=args.epochs, batch=128, lr=1.5e-3, seed=seed)
        Stage(model, vocabulary, tower, *images.result(), second).train(lambda: report(500))
    report(1500)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
