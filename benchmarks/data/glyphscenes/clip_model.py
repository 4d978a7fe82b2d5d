"""GlyphCLIP as a model: its towers, its short vocabulary during training, its inputs and its weights file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.data.glyphscenes.captions import ADJECTIVES, TEMPLATES
from benchmarks.data.glyphscenes.classes import class_names
from benchmarks.workspace import REPOSITORY

CONFIG = REPOSITORY / "methods" / "backbones" / "glyphclip" / "glyphclip.json"
PROMPT = "a photo of a {}."
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def create_model() -> Any:
    """Create GlyphCLIP with random weights through open_clip.

    open_clip initialises the weight of the last batch norm of every residual branch with zero. In so small a
    tower only the stem and the shortcuts would contribute for a long time; here the weights start at one.
    """
    import open_clip

    open_clip.add_model_config(CONFIG)
    model = open_clip.create_model("glyphclip")
    for name, parameter in model.visual.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.ones_(parameter)
    return model


class ShortVocabulary(torch.nn.Module):
    """Embeddings of the tokens that captions can contain, and a head that predicts these tokens.

    The embeddings are trained instead of the model's table of 49,408 rows; `put_back` copies them into it.
    The order of token ids is kept, so that the end of a text still has the largest number.
    """

    def __init__(self, model: Any) -> None:
        import open_clip

        super().__init__()
        self.tokenizer = open_clip.get_tokenizer("glyphclip")
        words = [*TEMPLATES, *ADJECTIVES, *class_names(), PROMPT, "a, b and c"]
        self.used = torch.unique(self.tokenizer([text.replace("{}", "") for text in words]))
        table = model.token_embedding.weight
        self.embedding = torch.nn.Parameter(table.detach()[self.used].clone())
        self.words = torch.nn.Linear(model.text_projection.shape[1], len(self.used))

    def tokens(self, captions: list[str]) -> torch.Tensor:
        """Captions as positions in the short vocabulary.

        Args:
            captions: N texts.

        Returns:
            (N, 77) int64.

        Raises:
            ValueError: a caption has a token outside the vocabulary.
        """
        tokens = self.tokenizer(captions)
        positions = torch.searchsorted(self.used, tokens).clamp_(max=len(self.used) - 1)
        if not torch.equal(self.used[positions], tokens):
            raise ValueError("a caption has a word that no template, adjective or class has")
        return positions

    def put_back(self, model: Any) -> None:
        """Copy the trained embeddings into the model's table."""
        model.token_embedding.weight.data[self.used] = self.embedding.detach()

    def encode(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Text features (B, d) of rows of `tokens`, cut to the longest one.

        The text tower is causal: tokens after the end of a text do not change its feature.
        """
        ends = tokens.argmax(dim=-1)
        length = int(ends.max()) + 1
        x = F.embedding(tokens[:, :length], self.embedding) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        return x[torch.arange(len(x)), ends] @ model.text_projection


def encode_small(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Image features (B, d) of small images: the mean of the per-location features.

    The attention pool has positions for 4 x 4 locations only. Its value and output projections alone give the
    feature of a location at any resolution.
    """
    visual = model.visual
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
    return visual.attnpool.c_proj(visual.attnpool.v_proj(x.mean(dim=(2, 3))))


def normalise(pixels: np.ndarray) -> torch.Tensor:
    """Convert images (B, S, S, 3) uint8 to the model's input (B, 3, S, S) float32, channels last."""
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
    # One multiplication and one addition combine scaling, jitter and normalisation.
    gain = rng.uniform(0.75, 1.25, (count, 1, 1, 3))
    offset = rng.uniform(-0.3, 0.3, (count, 1, 1, 3)) - gain * np.array(MEAN) / np.array(STD)
    gain = gain / (255 * np.array(STD))
    x = torch.from_numpy(moved).float()
    x.mul_(torch.from_numpy(gain.astype(np.float32)))
    x.add_(torch.from_numpy(offset.astype(np.float32)))
    return x.permute(0, 3, 1, 2)


def save(model: Any, folder: Path) -> None:
    """Write the weights as half-precision safetensors; an older file is replaced atomically."""
    from safetensors.torch import save as serialise

    state = {
        key: value.detach().half().contiguous() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".glyphclip.{os.getpid()}.tmp"
    temporary.write_bytes(serialise(state))  # save_file would make it readable by the owner only
    os.replace(temporary, folder / "glyphclip.safetensors")
