"""Train GlyphCLIP, the small vision-language model shipped in ``methods/backbones/glyphclip``.

The images come from the same renderer as GlyphScenes but from splits of their own (flatter class
frequencies, another seed), so none of the data set's images is seen. Captions imitate web text:
they name only some of the objects, in any order, with adjectives, and now and then a word for
something not there. Two stages, each with a cosine schedule:

1. "icons" at 64 pixels: the image tower predicts the words of the caption (Joulin et al. 2016,
   "Learning visual features from large weakly supervised data"). From random weights InfoNCE stays
   at its starting value for very long; this leaves it within a minute of processor time, and a
   quarter of the pixels cost a quarter of the time (Li et al. 2023, CLIPA).
2. scenes at 128 pixels: the same loss plus symmetric InfoNCE between images and captions (Radford
   et al. 2021, CLIP).

    python benchmarks/data/glyphscenes/pretrain_clip.py --compile --out methods/backbones/glyphclip

The weights are written after every epoch, so an interrupted run leaves a usable file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

if __package__ in (None, ""):  # started as a script: make the repository importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.data.glyphscenes import scenes as glyphscenes
from benchmarks.workspace import REPOSITORY

CONFIG = REPOSITORY / "methods" / "backbones" / "glyphclip" / "glyphclip.json"
PROMPT = "a photo of a {}."
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

_NAMED = 0.6  # probability that a caption names an object
_WRONG = 0.1  # probability that a caption also names a class drawn at random
_TEMPLATES = (
    "a photo of {}.",
    "a photo of {}.",
    "a picture of {}.",
    "{} on a colourful background.",
    "an image with {}.",
    "{}.",
    "my favourite {}!",
    "clip art: {}",
    "{} | free download",
    "there is {} here.",
)
_ADJECTIVES = ("small", "big", "old", "nice", "simple", "modern", "funny", "beautiful")


def caption(rng: np.random.Generator, names: list[str]) -> str:
    """Write a caption that names some of the objects.

    Args:
        rng: source of randomness.
        names: class names in the image, without repetitions; at least one.
    """
    kept = [name for name in names if rng.random() < _NAMED]
    if not kept:
        kept = [names[rng.integers(len(names))]]
    if rng.random() < _WRONG:
        classes = glyphscenes.class_names()
        kept.append(classes[rng.integers(len(classes))])
    words = []
    for position in rng.permutation(len(kept)):
        name = kept[position]
        if rng.random() < 0.25:
            name = f"{_ADJECTIVES[rng.integers(len(_ADJECTIVES))]} {name}"
        words.append(f"a {name}" if rng.random() < 0.7 else name)
    joined = words[0]
    if len(words) > 1:
        glue = " and " if rng.random() < 0.7 else ", "
        joined = ", ".join(words[:-1]) + glue + words[-1]
    return _TEMPLATES[rng.integers(len(_TEMPLATES))].format(joined)


def _render_block(
    path: str, shape: tuple[int, ...], split: str, seed: int, start: int, stop: int
) -> list[str]:
    """Render the images [start, stop) into the memory-mapped file; return their captions."""
    pixels = np.memmap(path, np.uint8, "r+", shape=shape)
    captions = []
    for index in range(start, stop):
        image, objects = glyphscenes.render(seed, index, split)
        pixels[index] = np.asarray(image.reduce(glyphscenes.SIZE // shape[1]))
        labels = list(dict.fromkeys(o.name for o in objects if o.is_label))
        rng = np.random.Generator(np.random.Philox(key=[seed, index]))
        captions.append(caption(rng, labels or [objects[0].name]))
    pixels.flush()
    return captions


def render_pairs(
    folder: Path, split: str, total: int, size: int, seed: int, workers: int
) -> tuple[np.memmap, list[str]]:
    """Render image-caption pairs; return pixels (total, size, size, 3) uint8 and the captions."""
    path, shape, block = folder / f"{split}.bin", (total, size, size, 3), 1000
    pixels = np.memmap(path, np.uint8, "w+", shape=shape)
    started = time.monotonic()
    captions: list[str] = []
    jobs = [(str(path), shape, split, seed, a, min(a + block, total)) for a in range(0, total, block)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for number, found in enumerate(pool.map(_render_block, *zip(*jobs, strict=True)), 1):
            captions += found
            if number % 20 == 0 or number == len(jobs):
                rate = len(captions) / (time.monotonic() - started)
                print(f"{split}: rendered {len(captions)}/{total}, {rate:.0f}/s", flush=True)
    return pixels, captions


def create_model() -> Any:
    """Create GlyphCLIP with random weights through open_clip.

    open_clip starts the last batch norm of every residual branch at zero, which silences all but
    the stem and the shortcuts of so small a tower for a long time; here they start at one.
    """
    import open_clip

    open_clip.add_model_config(CONFIG)
    model = open_clip.create_model("glyphclip")
    for name, parameter in model.visual.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.ones_(parameter)
    return model


class ShortVocabulary(torch.nn.Module):
    """Token embeddings of the tokens that captions can have, and a head that predicts them.

    The embeddings are trained in place of the model's table of 49,408 rows; :meth:`put_back`
    copies them into it. The order of token ids is kept, so the end of a text is still its largest
    number.
    """

    def __init__(self, model: Any) -> None:
        import open_clip

        super().__init__()
        self.tokenizer = open_clip.get_tokenizer("glyphclip")
        words = [*_TEMPLATES, *_ADJECTIVES, *glyphscenes.class_names(), PROMPT, "a, b and c"]
        self.used = torch.unique(self.tokenizer([text.replace("{}", "") for text in words]))
        table = model.token_embedding.weight
        self.embedding = torch.nn.Parameter(table.detach()[self.used].clone())
        self.words = torch.nn.Linear(model.text_projection.shape[1], len(self.used))

    def tokens(self, captions: list[str]) -> torch.Tensor:
        """Captions as positions in the short vocabulary, (N, 77) int64."""
        tokens = self.tokenizer(captions)
        positions = torch.searchsorted(self.used, tokens).clamp_(max=len(self.used) - 1)
        if not torch.equal(self.used[positions], tokens):
            raise ValueError("a caption has a word that no template, adjective or class has")
        return positions

    def put_back(self, model: Any) -> None:
        """Copy the trained embeddings into the model's table."""
        model.token_embedding.weight.data[self.used] = self.embedding.detach()

    def encode(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Text features (B, d) of rows of :meth:`tokens`, cut to the longest of them.

        The text tower is causal: what follows the end of a text does not change its feature.
        """
        ends = tokens.argmax(dim=-1)
        length = int(ends.max()) + 1
        x = F.embedding(tokens[:, :length], self.embedding) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        return x[torch.arange(len(x)), ends] @ model.text_projection


def word_targets(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Distribution over tokens for each caption: rare tokens weigh more, frequent ones nothing.

    Args:
        tokens: (N, T) int64 in [0, count).
        count: number of tokens.

    Returns:
        (N, count) float32, rows sum to one: inverse document frequency (log), zero for a token
        that more than half of the captions have.
    """
    present = torch.zeros(len(tokens), count).scatter_(1, tokens, 1.0)
    frequency = present.mean(dim=0)
    weight = torch.where(frequency > 0.5, 0.0, -frequency.clamp(min=1e-6).log())
    present *= weight
    return present / present.sum(dim=1, keepdim=True)


def encode_small(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Image features (B, d) of small images: the mean of the per-location features.

    The attention pool has positions for 4 x 4 locations only; its value and output projections
    alone give the feature that a location has, at any resolution.
    """
    visual = model.visual
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
    return visual.attnpool.c_proj(visual.attnpool.v_proj(x.mean(dim=(2, 3))))


def normalise(pixels: np.ndarray) -> torch.Tensor:
    """Images (B, 128, 128, 3) uint8 to the model's input (B, 3, 128, 128), channels last."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def augment(pixels: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Flip, shift by up to a tenth (edges repeated) and change the colours of each image.

    Args:
        pixels: (B, S, S, 3) uint8.
        rng: source of randomness.

    Returns:
        The model's input (B, 3, S, S), channels last.
    """
    count, size = pixels.shape[:2]
    reach = size // 10
    moved = np.empty_like(pixels)
    flips = rng.random((count,)) < 0.5
    shifts = rng.integers(-reach, reach + 1, (count, 2))
    grid = np.arange(size)
    for i in range(count):
        down, right = int(shifts[i, 0]), int(shifts[i, 1])
        rows = np.clip(grid + down, 0, size - 1)
        columns = np.clip(grid + right, 0, size - 1)
        moved[i] = pixels[i].take(rows, axis=0).take(columns[::-1] if flips[i] else columns, axis=1)
    # One multiplication and one addition do the scaling, the jitter and the normalisation.
    gain = rng.uniform(0.75, 1.25, (count, 1, 1, 3))
    offset = rng.uniform(-0.3, 0.3, (count, 1, 1, 3)) - gain * np.array(MEAN) / np.array(STD)
    gain = gain / (255 * np.array(STD))
    x = torch.from_numpy(moved).float()
    x.mul_(torch.from_numpy(gain.astype(np.float32)))
    x.add_(torch.from_numpy(offset.astype(np.float32)))
    return x.permute(0, 3, 1, 2)


def save(model: Any, folder: Path) -> None:
    """Write the weights as half-precision safetensors; an older file is replaced as a whole."""
    from safetensors.torch import save as serialise

    state = {
        key: value.detach().half().contiguous() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".glyphclip.{os.getpid()}.tmp"
    temporary.write_bytes(serialise(state))  # save_file would leave it readable by the owner only
    os.replace(temporary, folder / "glyphclip.safetensors")


@torch.no_grad()
def zero_shot(model: Any, count: int, seed: int = 0) -> dict[str, float]:
    """Zero-shot mAP and chance (mean class frequency), in per cent, on GlyphScenes test images.

    The scenes are rendered in memory, before JPEG compression.
    """
    import open_clip
    from sklearn.metrics import average_precision_score

    names = glyphscenes.class_names()
    tokens = open_clip.get_tokenizer("glyphclip")([PROMPT.format(name) for name in names])
    model.eval()
    text = F.normalize(model.encode_text(tokens), dim=-1)
    scores, targets = [], np.zeros((count, len(names)), dtype=np.uint8)
    for start in range(0, count, 100):
        images = []
        for index in range(start, min(start + 100, count)):
            image, objects = glyphscenes.render(seed, index, "test")
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


def train(
    model: Any,
    vocabulary: ShortVocabulary,
    encode_image: Callable[[torch.Tensor], torch.Tensor],
    pixels: np.ndarray,
    captions: list[str],
    *,
    contrast: bool,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    after_epoch: Callable[[], None],
) -> None:
    """Train one stage with AdamW (warm-up, cosine schedule).

    The loss is the cross-entropy of the caption's words, plus InfoNCE if ``contrast``.
    ``after_epoch`` is called after each epoch.
    """
    tokens = vocabulary.tokens(captions)
    words = word_targets(tokens, len(vocabulary.used))
    # Decay only matrices and filters: no decay on norms, biases, embeddings and the temperature.
    decay: list[torch.nn.Parameter] = []
    plain = list(vocabulary.parameters())
    for key, parameter in model.named_parameters():
        if key != "token_embedding.weight":
            (decay if parameter.ndim >= 2 and "embedding" not in key else plain).append(parameter)
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6)
    steps = len(pixels) // batch
    total = epochs * steps
    warmup = min(200, total // 10)
    target = torch.arange(batch)
    losses: list[float] = []

    def batches(epoch: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Rows and augmented images; the next batch is prepared while one is trained on."""
        rng = np.random.Generator(np.random.Philox(key=[seed, 1 << 32 | epoch]))
        order = rng.permutation(len(pixels))[: steps * batch].reshape(steps, batch)

        def prepare(rows: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
            return rows, augment(pixels[rows], rng)

        with ThreadPoolExecutor(1) as thread:  # one thread: the draws keep their order
            ahead = thread.submit(prepare, np.sort(order[0]))
            for rows in order[1:]:
                ready, ahead = ahead, thread.submit(prepare, np.sort(rows))
                yield ready.result()
            yield ahead.result()

    for epoch in range(epochs):
        model.train()
        started = time.monotonic()
        for step, (rows, images) in enumerate(batches(epoch)):
            number = epoch * steps + step
            if number < warmup:
                factor = (number + 1) / warmup
            else:
                factor = 0.5 * (1 + math.cos(math.pi * (number - warmup) / (total - warmup)))
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            with torch.autocast("cpu", torch.bfloat16):
                features = encode_image(images)
            features = features.float()
            loss = F.cross_entropy(vocabulary.words(features), words[rows])
            if contrast:
                texts = F.normalize(vocabulary.encode(model, tokens[rows]), dim=-1)
                logits = model.logit_scale.exp() * F.normalize(features, dim=-1) @ texts.T
                pairs = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
                loss = loss + pairs / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(decay + plain, 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            losses.append(loss.item())
            if (step + 1) % 100 == 0 or step + 1 == steps:
                rate = (step + 1) * batch / (time.monotonic() - started)
                left = (total - number - 1) * batch / rate / 60
                print(
                    f"epoch {epoch + 1}/{epochs} step {step + 1}/{steps} "
                    f"loss {np.mean(losses[-100:]):.3f} "
                    f"scale {model.logit_scale.exp().item():.1f} "
                    f"{rate:.0f} images/s, {left:.0f} min left in this stage",
                    flush=True,
                )
        vocabulary.put_back(model)
        after_epoch()


def main(argv: list[str] | None = None) -> int:
    """Run the pre-training; see the module's docstring."""
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
        train(
            model,
            vocabulary,
            lambda pictures: encode_small(model, pictures),
            *icons,
            contrast=False,
            epochs=args.icon_epochs,
            batch=64,
            lr=2e-3,
            seed=seed,
            after_epoch=lambda: save(model, args.out),
        )
        train(
            model,
            vocabulary,
            torch.compile(model.visual) if args.compile else model.visual,
            *images.result(),
            contrast=True,
            epochs=args.epochs,
            batch=128,
            lr=1.5e-3,
            seed=seed,
            after_epoch=lambda: report(500),
        )
    report(1500)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
