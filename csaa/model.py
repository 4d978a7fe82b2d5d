"""Label-specific image features and their alignment with label texts.

From the paper: each label's text is matched with *its own* image feature, extracted with a
semantic-aware prompt over CLIP's local features. The equations are our reading (README.md); the
values of `Reading` are the readings that the paper leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones.clip import VisionLanguageModel
from methods.base import at_least_fp32, full_precision
from methods.parts.prompts import LearntPrompts, encode_together

Reading = Literal["semantic+class", "semantic+negative", "semantic+positive+negative"]
Features = Literal["label-specific", "global"]


@dataclass(frozen=True)
class AlignmentSpec:
    """How an `AlignmentClassifier` is built; see there for the symbols.

    Attributes:
        reading: the roles of the prompts.
        features: "label-specific", or "global": v_k is the image's one global feature.
        temperature: τ.
        context_length: learnt tokens in front of the name.
        context_words: words that the learnt tokens start from; empty for N(0, 0.02²).
        class_specific: own learnt tokens for every label instead of shared ones.
    """

    reading: Reading = "semantic+class"
    features: Features = "label-specific"
    temperature: float = 20.0
    context_length: int = 16
    context_words: str = ""
    class_specific: bool = False


class AlignmentClassifier(nn.Module):
    r"""Aligns the text of label k with the image feature of label k.

    With unit local features l̄ⁱ, unit semantic-aware text s_k and temperature τ:

    .. math:: α^i_k = \mathrm{softmax}_i(τ⟨l̄^i, s_k⟩),\quad v_k = Σ_i α^i_k l̄^i

    and, with v̄ the unit vector of v, the logit of label k is, by reading:

    - "semantic+class": κ⟨v̄_k, t_k⟩ + b_k, with a class prompt t_k (two prompts per label; default);
    - "semantic+negative": κ(⟨v̄_k, s_k⟩ − ⟨v̄_k, t⁻_k⟩) + b_k: the semantic-aware prompt is also the
      positive one, as in DualCoOp;
    - "semantic+positive+negative": κ(⟨v̄_k, t⁺_k⟩ − ⟨v̄_k, t⁻_k⟩) + b_k, as in DualCoOp++.

    κ is learnt and starts at exp(3) ≈ 20. b_k absorbs that CLIP's cosines are never near zero.

    Args:
        vlm: the backbone; its image tower is trained through this module.
        names: words for the K labels.
        spec: reading, features, temperature and form of the prompts.
        seed: seed of the learnt tokens.
    """

    def __init__(
        self, vlm: VisionLanguageModel, names: tuple[str, ...], spec: AlignmentSpec, seed: int
    ) -> None:
        super().__init__()
        self.vlm, self.reading, self.features = vlm, spec.reading, spec.features
        self.temperature = spec.temperature
        roles = spec.reading.split("+")
        if spec.features == "global" and spec.reading != "semantic+negative":
            roles.remove("semantic")  # it only weights locations, and a global feature has none
        self.prompts = nn.ModuleDict(
            {
                role: LearntPrompts(
                    vlm,
                    names,
                    length=spec.context_length,
                    class_specific=spec.class_specific,
                    seed=seed + place,
                    words=spec.context_words,
                )
                for place, role in enumerate(roles)
            }
        )
        self.log_scale = nn.Parameter(torch.tensor(3.0))
        self.bias = nn.Parameter(torch.zeros(len(names)))

    def texts(self) -> dict[str, Tensor]:
        """Unit text features (K, d) of every prompt role."""
        features = encode_together([self.prompt(role) for role in self.prompts])
        return {
            role: F.normalize(at_least_fp32(found), dim=-1)
            for role, found in zip(self.prompts, features, strict=True)
        }

    def prompt(self, role: str) -> LearntPrompts:
        """The learnt prompt of a role."""
        return cast(LearntPrompts, self.prompts[role])

    def label_features(self, local: Tensor, semantic: Tensor) -> Tensor:
        """Compute label-specific features.

        Args:
            local: (B, L, d) local features, any length.
            semantic: (K, d) unit semantic-aware texts.

        Returns:
            (B, K, d), v of the class docstring, not normalised.
        """
        with full_precision(local):
            unit = F.normalize(at_least_fp32(local), dim=-1)
            weights = torch.softmax(self.temperature * unit @ semantic.T, dim=1)
            return weights.transpose(1, 2) @ unit

    def forward(
        self, images: Tensor, texts: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute logits and features of a batch.

        Args:
            images: (B, 3, H, W) in [0, 1].
            texts: unit text features if the caller has them; None computes them.

        Returns:
            logits (B, K) float32, global features (B, d), label features (B, K, d) or, for
            features="global", (B, 1, d).
        """
        texts = texts if texts is not None else self.texts()
        if self.features == "global":
            whole = self.vlm.features(images)
            specific = whole[:, None]
        else:
            whole, local = self.vlm.dense_features(images)
            specific = self.label_features(local, texts["semantic"])
        unit = F.normalize(at_least_fp32(specific), dim=-1)

        def similarity(role: str) -> Tensor:
            return (unit * texts[role]).sum(dim=-1)

        if self.reading == "semantic+class":
            score = similarity("class")
        elif self.reading == "semantic+negative":
            score = similarity("semantic") - similarity("negative")
        else:
            score = similarity("positive") - similarity("negative")
        return self.log_scale.exp() * score + self.bias, whole, specific
