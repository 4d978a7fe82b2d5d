"""Low-rank adaptation (LoRA) of the attention weights of a frozen tower.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, as CLIP-LoRA's code has it
(github MaxZanella/CLIP-LoRA, 358f0d7, `loralib/layers.py`): query, key and value projections, each with its
own pair of matrices, and the factor α/√r, where the paper of LoRA has α/r.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from methods.backbones.open_clip_models import model_config
from methods.backbones.spec import BackboneSpec

PROJECTIONS = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "q": 1, "kv": 2, "qkv": 3}
"""Names of the linear layers of an attention, with the number of projections that a weight stacks."""


class LowRank(nn.Module):
    """A weight (P · o, i) plus factor · B_p A_p for each of its P stacked projections.

    Args:
        weight: the frozen weight.
        projections: P.
        rank: r.
        factor: of the products.

    Attributes:
        down: (P, r, i) parameter A, drawn as the weight of `torch.nn.Linear`.
        up: (P, o, r) parameter B, zeros.
    """

    def __init__(self, weight: Tensor, projections: int, rank: int, factor: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.factor = factor
        bound = 1 / math.sqrt(columns)
        self.down = nn.Parameter(torch.empty(projections, rank, columns).uniform_(-bound, bound))
        self.up = nn.Parameter(torch.zeros(projections, rows // projections, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight, of the shape of ``weight``."""
        return weight + self.factor * (self.up @ self.down).flatten(0, 1)


def attention_weights(tower: nn.Module) -> Iterator[tuple[nn.Module, str, int]]:
    """Find the query, key and value weights of all attentions of a tower, attention pools included.

    Yields:
        A module, the name of its weight, and how many projections the weight stacks.
    """
    for module in tower.modules():
        if isinstance(getattr(module, "in_proj_weight", None), Tensor):
            yield module, "in_proj_weight", 3
        elif isinstance(module, nn.MultiheadAttention):  # keys of another length than queries
            for letter in "qkv":
                yield module, f"{letter}_proj_weight", 1
        for name, projections in PROJECTIONS.items():
            layer = module._modules.get(name)
            if isinstance(layer, nn.Linear):
                yield layer, "weight", projections


def adapt(tower: nn.Module, rank: int, factor: float) -> int:
    """Put a `LowRank` onto each attention weight of a tower, in place; what it computes stays the same.

    Args:
        tower: frozen.
        rank: r.
        factor: of the products.

    Returns:
        How many weights were found.
    """
    found = list(attention_weights(tower))
    for module, name, projections in found:
        weight = getattr(module, name)
        parametrize.register_parametrization(module, name, LowRank(weight, projections, rank, factor))
    return len(found)


@functools.cache
def has_attention(spec: BackboneSpec) -> bool:
    """Whether the image tower of a vision-language backbone has attentions, of blocks or of a pool.

    A tower of timm is built for the answer, without memory for its weights.

    Raises:
        UserError: unknown model.
    """
    name = None if spec.name == "glyphclip" else model_config(spec)["vision_cfg"].get("timm_model_name")
    if name is None:
        return True
    import timm  # here: it takes as long as torch

    with torch.device("meta"):
        return any(True for _ in attention_weights(timm.create_model(name, num_classes=0)))
