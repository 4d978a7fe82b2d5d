"""Classifiers of a vision-language backbone whose class weights are texts behind learnt prompts.

- `AlignmentClassifier`: label-specific image features, each matched with the text of its label. It is CSAA's
  (arXiv 2412.18842), from whose paper it has this much: each label's text is matched with *its own* image
  feature, extracted with a semantic-aware prompt over CLIP's local features. The equations are our reading
  (csaa/README.md); the values of `Reading` are the readings that the paper leaves open.
- `DualPromptClassifier`: DualCoOp's pair of prompts (NeurIPS 2022).

Any method with a classifier takes one by `methods.parts.hypers.ClassifierHyper.classifier`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones.base import Backbone
from methods.backbones.clip import VisionLanguageModel
from methods.base import at_least_fp32, full_precision
from methods.parts.heads import Classifier
from methods.parts.prompts import LearntPrompts, encode_together, prompt_pair
from methods.parts.regions import region_logits

Reading = Literal["semantic+class", "semantic+negative", "semantic+positive+negative"]
Features = Literal["label-specific", "global"]


class PromptClassifier(Classifier):
    """A vision-language backbone and learnt prompts; the base class of the classifiers of this module.

    The text tower is kept, because each step reads the prompts anew; it is frozen.

    Args:
        vlm: the backbone; its image tower is trained through this module.
        prompts: learnt prompts by role, of the same classes.

    Attributes:
        prompts: `LearntPrompts` by role.
    """

    decays_vectors = False  # as in CSAA: neither biases nor the scale decay

    def __init__(self, vlm: VisionLanguageModel, prompts: dict[str, LearntPrompts]) -> None:
        nn.Module.__init__(self)  # the base class would part with the text tower
        self.vlm = vlm
        self.prompts = nn.ModuleDict(dict(prompts))

    @property
    def backbone(self) -> Backbone:  # type: ignore[override]  # saved states name it `vlm`
        """The vision-language model."""
        return self.vlm

    def prompt(self, role: str) -> LearntPrompts:
        """The learnt prompt of a role."""
        return cast(LearntPrompts, self.prompts[role])

    def encoded(self) -> dict[str, Tensor]:
        """Text features (K, d) of every prompt role, not normalised."""
        features = encode_together([self.prompt(role) for role in self.prompts])
        return dict(zip(self.prompts, features, strict=True))

    def head(self) -> PromptClassifier:
        """A copy of the prompts and their scale; it shares the text tower, which encodes them."""
        copied = copy.deepcopy(self, {id(self.vlm): self.vlm})
        copied._modules["vlm"] = None
        return copied


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


class AlignmentClassifier(PromptClassifier):
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
        roles = spec.reading.split("+")
        if spec.features == "global" and spec.reading != "semantic+negative":
            roles.remove("semantic")  # it only weights locations, and a global feature has none
        prompts = {
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
        super().__init__(vlm, prompts)
        self.reading, self.features = spec.reading, spec.features
        self.reads_map = spec.features == "label-specific"
        self.temperature = spec.temperature
        self.log_scale = nn.Parameter(torch.tensor(3.0))
        self.bias = nn.Parameter(torch.zeros(len(names)))

    def texts(self) -> dict[str, Tensor]:
        """Unit text features (K, d) of every prompt role."""
        return {role: F.normalize(at_least_fp32(text), dim=-1) for role, text in self.encoded().items()}

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

    def aligned(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits, and the features that are matched with the texts.

        Args:
            features: (B, L, d) local features, or for features="global" (B, d) global ones.

        Returns:
            logits (B, K) float32, label features (B, K, d) or, for features="global", (B, 1, d).
        """
        texts = self.texts()
        specific = self.label_features(features, texts["semantic"]) if self.reads_map else features[:, None]
        unit = F.normalize(at_least_fp32(specific), dim=-1)

        def similarity(role: str) -> Tensor:
            return (unit * texts[role]).sum(dim=-1)

        if self.reading == "semantic+class":
            score = similarity("class")
        elif self.reading == "semantic+negative":
            score = similarity("semantic") - similarity("negative")
        else:
            score = similarity("positive") - similarity("negative")
        return self.log_scale.exp() * score + self.bias, specific

    def classify(self, features: Tensor) -> Tensor:
        """Return (B, K) float32 logits of features (B, L, d), or for features="global" (B, d)."""
        return self.aligned(features)[0]

    def described(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute logits and features of a batch.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Returns:
            logits (B, K) float32, global features (B, d), label features (B, K, d) or, for
            features="global", (B, 1, d).
        """
        if self.reads_map:
            whole, local = self.vlm.dense_features(images)
            logits, specific = self.aligned(local)
        else:
            whole = self.vlm.features(images)
            logits, specific = self.aligned(whole)
        return logits, whole, specific


class DualPromptClassifier(PromptClassifier):
    """A positive and a negative prompt for each label; the logit is their pair's difference.

    Source: DualCoOp (Sun, Hu, Saenko, NeurIPS 2022; github sunxm2357/DualCoOp, 49e71d7), whose pair of
    logits `methods.parts.regions.region_logits` computes. There the probability of presence is the soft-max
    of the pair, e^{z⁺}/(e^{z⁺} + e^{z⁻}) = σ(z⁺ − z⁻): so the one logit that methods ask for is z⁺ − z⁻, and
    a loss of σ(z) is that loss of the pair's probability. There is no bias: nothing is calibrated.

    What differs: the locations have neither mean token nor positional embedding (``locations = "plain"`` of
    `methods.dualcoop`, as DualCoOp++ and TaI-DPT), so that any tower that has local features can be trained.

    Args:
        vlm: the backbone; its image tower is trained through this module, unless it is frozen as there.
        names: words for the K labels.
        seed: of the learnt tokens; those of the prompts differ.
        length: learnt tokens in front of a name.
        class_specific: own learnt tokens for every label instead of shared ones.
        words: those that the positive and the negative context start from; empty for N(0, 0.02²).
    """

    reads_map = True
    calibrated = False

    def __init__(
        self,
        vlm: VisionLanguageModel,
        names: tuple[str, ...],
        seed: int,
        length: int = 16,
        class_specific: bool = False,
        words: tuple[str, str] = ("", ""),
    ) -> None:
        positive, negative = prompt_pair(vlm, names, seed, length, class_specific, words)
        super().__init__(vlm, {"positive": positive, "negative": negative})

    def classify(self, features: Tensor) -> Tensor:
        """Return (B, K) float32 positive minus negative logits of local features (B, L, d)."""
        texts = self.encoded()
        positive, negative = region_logits(features, texts["positive"], texts["negative"])
        return positive - negative
