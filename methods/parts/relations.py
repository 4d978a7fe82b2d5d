"""A graph of classes from the similarity of their texts, and a classifier whose texts it refines.

Source: SCPNet (Ding et al., CVPR 2023; code read: github jameslahm/SCPNet, d56341a), see `methods.scpnet`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones.clip import VisionLanguageModel
from methods.base import at_least_fp32, full_precision
from methods.parts.prompts import LearntPrompts, text_classifier


def relation_graphs(
    similarity: Tensor, kept: int, neighbours: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """The two graphs of SCPNet, from the similarity of classes.

    Args:
        similarity: (K, K) cosines of class texts.
        kept: entries of a row that stay, the class itself among them.
        neighbours: weight of the others of them together.
        temperature: of the second graph.

    Returns:
        (K, K) the graph of the convolution, and (K, K) its soft-max over the entries that stay. Rows
        of both add up to 1.
    """
    own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    order = similarity.masked_fill(own, torch.inf).topk(min(kept, len(similarity)), dim=1).indices
    stays = torch.zeros_like(own).scatter(1, order, True)
    others = (similarity.clamp(min=0) * stays).masked_fill(own, 0)
    total = others.sum(dim=1, keepdim=True)
    graph = torch.where(total > 0, neighbours * others / total.clamp(min=1e-12), 0)
    graph = graph + torch.diag(1 - graph.sum(dim=1))  # a class without neighbours keeps all of its weight
    return graph, (graph / temperature).masked_fill(~stays, -torch.inf).softmax(dim=1)


class RelationClassifier(nn.Module):
    """Cosines of image features and of texts that a graph convolution refines.

    Args:
        vlm: its image tower is trained through this module.
        names: words for the K classes.
        seed: of what starts at random.
        words: those that the learnt context starts from.
        scale: factor of the cosines.
        kept: share of the classes that are a class's neighbours, itself among them.
        neighbours: weight of the others of them together.
        temperature: of the graph that averages probabilities.

    Attributes:
        graph: (K, K) of the convolution.
        smoothing: (K, K) averages probabilities.
    """

    graph: Tensor
    smoothing: Tensor

    def __init__(
        self,
        vlm: VisionLanguageModel,
        names: Sequence[str],
        seed: int,
        *,
        words: str,
        scale: float,
        kept: float,
        neighbours: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.vlm, self.scale = vlm, scale
        self.prompt = LearntPrompts(vlm, names, seed=seed, words=words)
        sizes = (vlm.dim, 2 * vlm.dim, 2 * vlm.dim, vlm.dim)
        self.layers = nn.ParameterList(
            torch.empty(size).uniform_(-(size[1] ** -0.5), size[1] ** -0.5)
            for size in itertools.pairwise(sizes)
        )
        texts = text_classifier(vlm, names)
        entries = max(1, round(kept * len(texts)))
        graphs = relation_graphs(texts @ texts.T, entries, neighbours, temperature)
        for name, graph in zip(("graph", "smoothing"), graphs, strict=True):
            self.register_buffer(name, graph, persistent=False)

    def texts(self) -> Tensor:
        """(K, d) unit refined texts."""
        texts = self.prompt()
        with full_precision(texts):
            texts = refined = at_least_fp32(texts)
            for place, layer in enumerate(self.layers):
                refined = self.graph @ (refined @ layer)
                if place < len(self.layers) - 1:
                    refined = F.leaky_relu(refined, 0.2)
            return F.normalize(texts + refined, dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, K) float32 logits of images (B, 3, H, W) in [0, 1]."""
        features = self.vlm.features(images)
        with full_precision(features):
            return self.scale * F.normalize(at_least_fp32(features), dim=-1) @ self.texts().T
