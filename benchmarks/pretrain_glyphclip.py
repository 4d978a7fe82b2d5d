"""Train GlyphCLIP, the small vision-language model shipped in ``methods/glyphclip``.

Contrastive language-image pre-training (Radford et al. 2021: symmetric InfoNCE over a batch of
image-caption pairs) of an ``open_clip`` model on rendered scenes. The scenes come from the same
renderer as GlyphScenes but from a split of its own ("pretrain", flatter class frequencies, another
seed), so none of the data set's images is seen. Captions imitate web text: they name only some of
the objects, in any order, with adjectives, and now and then a word for something not there.

    python benchmarks/pretrain_glyphclip.py --images 120000 --epochs 9 --threads 2 --seed 1 \
        --out methods/glyphclip

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
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

if __package__ in (None, ""):  # started as a script: make the repository importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.data import glyphscenes

CONFIG = Path(__file__).resolve().parents[1] / "methods" / "glyphclip" / "glyphclip.json"
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


def _render_block(path: str, total: int, seed: int, start: int, stop: int) -> list[str]:
    """Render the images [start, stop) into the memory-mapped file; return their captions."""
    size = glyphscenes.SIZE
    pixels = np.memmap(path, np.uint8, "r+", shape=(total, size, size, 3))
    captions = []
    for index in range(start, stop):
        image, objects = glyphscenes.render(seed, index, "pretrain")
        pixels[index] = np.asarray(image)
        labels = list(dict.fromkeys(o.name for o in objects if o.is_label))
        rng = np.random.Generator(np.random.Philox(key=[seed, index]))
        captions.append(caption(rng, labels or [objects[0].name]))
    pixels.flush()
    return captions


def render_pairs(folder: Path, total: int, seed: int, workers: int) -> tuple[np.memmap, list[str]]:
    """Render image-caption pairs; return pixels (total, 128, 128, 3) uint8 and the captions."""
    path, size, block = folder / "pixels.bin", glyphscenes.SIZE, 1000
    pixels = np.memmap(path, np.uint8, "w+", shape=(total, size, size, 3))
    started, captions = time.monotonic(), []
    jobs = [(str(path), total, seed, a, min(a + block, total)) for a in range(0, total, block)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for number, found in enumerate(pool.map(_render_block, *zip(*jobs, strict=True)), 1):
            captions += found
            if number % 10 == 0 or number == len(jobs):
                rate = len(captions) / (time.monotonic() - started)
                print(f"rendered {len(captions)}/{total}, {rate:.0f} images/s", flush=True)
    return pixels, captions


def create_model() -> Any:
    """Create GlyphCLIP with random weights through open_clip."""
    import open_clip

    open_clip.add_model_config(CONFIG)
    return open_clip.create_model("glyphclip")


def encode_text(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Text features (B, d) of tokens (B, T) cut to any length T that holds every end of text.

    The text tower is causal, so what follows the end-of-text token does not matter and short
    captions need not be padded to 77 tokens.
    """
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ model.text_projection


def normalise(pixels: np.ndarray) -> torch.Tensor:
    """Images (B, 128, 128, 3) uint8 to the model's input (B, 3, 128, 128), channels last."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def augment(pixels: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Flip, shift by up to 12 pixels (edges repeated) and change the colours of each image."""
    size, reach = pixels.shape[1], 12
    moved = np.empty_like(pixels)
    flips = rng.random(len(pixels)) < 0.5
    shifts = rng.integers(-reach, reach + 1, (len(pixels), 2))
    grid = np.arange(size)
    for i, (flip, (down, right)) in enumerate(zip(flips, shifts, strict=True)):
        rows = np.clip(grid + down, 0, size - 1)
        columns = np.clip(grid + right, 0, size - 1)
        moved[i] = pixels[i][rows[:, None], columns[::-1] if flip else columns]
    x = normalise(moved)
    gain = torch.from_numpy(rng.uniform(0.75, 1.25, (len(x), 3, 1, 1)).astype(np.float32))
    offset = torch.from_numpy(rng.uniform(-0.3, 0.3, (len(x), 3, 1, 1)).astype(np.float32))
    return x.mul_(gain).add_(offset)


def save(model: Any, folder: Path) -> None:
    """Write the weights as half-precision safetensors; an older file is replaced as a whole."""
    from safetensors.torch import save_file

    state = {
        key: value.detach().half().contiguous() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".glyphclip.{os.getpid()}.tmp"
    save_file(state, temporary)
    os.replace(temporary, folder / "glyphclip.safetensors")


@torch.no_grad()
def zero_shot(model: Any, count: int, threads: int, seed: int = 0) -> dict[str, float]:
    """Zero-shot mAP and chance (mean class frequency), in per cent, on GlyphScenes test images.

    The scenes are rendered in memory, before JPEG compression.
    """
    import open_clip
    from sklearn.metrics import average_precision_score

    torch.set_num_threads(threads)
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
    pixels: np.ndarray,
    captions: list[str],
    *,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    compiled: bool,
    out: Path,
    evaluate: int,
    threads: int,
) -> None:
    """Train with AdamW (cosine schedule, warm-up) and write the weights after every epoch."""
    import open_clip

    tokens = open_clip.get_tokenizer("glyphclip")(captions)
    ends = tokens.argmax(dim=-1)
    model.to(memory_format=torch.channels_last)
    visual = torch.compile(model.visual) if compiled else model.visual
    # Decay only matrices and filters: no decay on norms, biases, embeddings and the temperature.
    decay, plain = [], []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and "embedding" not in name
        (decay if matrix else plain).append(parameter)
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6)
    steps = len(pixels) // batch
    total, warmup = epochs * steps, min(200, epochs * steps // 10)
    for epoch in range(epochs):
        model.train()
        rng = np.random.Generator(np.random.Philox(key=[seed, 1 << 32 | epoch]))
        order = rng.permutation(len(pixels))
        started, running = time.monotonic(), 0.0
        for step in range(steps):
            number = epoch * steps + step
            if number < warmup:
                factor = (number + 1) / warmup
            else:
                factor = 0.5 * (1 + math.cos(math.pi * (number - warmup) / (total - warmup)))
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            chosen = np.sort(order[step * batch : (step + 1) * batch])
            images = augment(np.asarray(pixels[chosen]), rng)
            texts = tokens[chosen, : int(ends[chosen].max()) + 1]
            with torch.autocast("cpu", torch.bfloat16):
                image_features = visual(images)
            image_features = F.normalize(image_features.float(), dim=-1)
            text_features = F.normalize(encode_text(model, texts), dim=-1)
            logits = model.logit_scale.exp() * image_features @ text_features.T
            target = torch.arange(batch)
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            running += float(loss)
            if (step + 1) % 50 == 0 or step + 1 == steps:
                rate = (step + 1) * batch / (time.monotonic() - started)
                left = (total - number - 1) * batch / rate / 60
                print(
                    f"epoch {epoch + 1}/{epochs} step {step + 1}/{steps} "
                    f"loss {running / (step + 1):.3f} scale {model.logit_scale.exp():.1f} "
                    f"{rate:.0f} images/s, {left:.0f} min left",
                    flush=True,
                )
        save(model, out)
        if evaluate:
            print(json.dumps({"epoch": epoch + 1, **zero_shot(model, evaluate, threads)}))


def main(argv: list[str] | None = None) -> int:
    """Run the pre-training; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=120_000, help="image-caption pairs")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=CONFIG.parent, help="folder of the weights")
    parser.add_argument("--evaluate", type=int, default=500, help="test images after each epoch")
    parser.add_argument("--compile", action="store_true", help="torch.compile (needs g++), faster")
    args = parser.parse_args(argv)
    if min(args.images, args.epochs, args.batch, args.threads) < 1 or args.images < args.batch:
        parser.error("--images, --epochs, --batch and --threads must be >= 1; --images >= --batch")
    print(f"plan: {args.images} pairs x {args.epochs} epochs, batch {args.batch}, lr {args.lr}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="glyphclip-") as folder:
        pixels, captions = render_pairs(Path(folder), args.images, args.seed, args.threads)
        print("captions:", *captions[:5], sep="\n  ")
        model = create_model()
        train(
            model,
            pixels,
            captions,
            epochs=args.epochs,
            batch=args.batch,
            lr=args.lr,
            seed=args.seed,
            compiled=args.compile,
            out=args.out,
            evaluate=args.evaluate,
            threads=args.threads,
        )
    minutes = (time.monotonic() - started) / 60
    result = {"images_seen": args.images // args.batch * args.batch * args.epochs}
    print(json.dumps({**result, "minutes": round(minutes, 1), **zero_shot(model, 1500, 1)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
