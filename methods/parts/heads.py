"""Classification heads: they turn the features of a backbone into the logits of K classes.

`HEADS` lists them by name. A method takes one as an argument and does not inherit from it. (Classifiers whose
class weights are texts behind learnt prompts stand in `methods.parts.prompt_classifiers`.)

- "match": cosines that start at the texts (vision-language), or a linear layer on features of unit
  size (image-only); the default, and the form of the results made before heads could be chosen;
- "linear": `torch.nn.Linear` on the features as they are;
- "cosine": scaled cosines of features and class weights, with any backbone;
- "ml_decoder": ML-Decoder on the local features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones.base import Backbone
from methods.backbones.clip import VisionLanguageModel
from methods.base import Task, at_least_fp32, full_precision, trainable
from methods.errors import UserError
from methods.parts.prompts import text_classifier

TYPICAL_COSINE = 0.2  # between CLIP's image and text features, whether they match or not


class Classifier(nn.Module):
    """A backbone and the parameters of one head; the base class of all heads.

    The text tower of a vision-language backbone is not kept.

    Args:
        backbone: trained in place.

    Attributes:
        bias: (K,) parameter that is added to the logits; required where ``calibrated``.
        reads_map: whether the head reads local features instead of the global one.
        calibrated: whether the biases are shifted to the labelled frequencies before the training.
        decays_vectors: whether the weight decay holds for parameters of one dimension too, of head and
            backbone, such as biases.
    """

    reads_map: bool = False
    calibrated: bool = True
    decays_vectors: bool = True
    bias: nn.Parameter

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        if isinstance(backbone, VisionLanguageModel):
            backbone = backbone.without_text()
        self.backbone: Backbone = backbone
        if self.reads_map:
            self.backbone.freeze_pooling()

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, K) float32 logits of images (B, 3, H, W) in [0, 1]."""
        if self.reads_map:
            return self.classify(self.backbone.feature_map(images))
        return self.classify(self.backbone.features(images))

    def classify(self, features: Tensor) -> Tensor:
        """Return (B, K) float32 logits of features (B, d), or (B, L, C) if ``reads_map``."""
        raise NotImplementedError

    def head(self) -> Classifier:
        """A copy without the backbone: its `classify` works."""
        # Found in the memo, the backbone is replaced by nothing instead of being copied.
        return copy.deepcopy(self, {id(self.backbone): None})

    def head_parameters(self) -> list[nn.Parameter]:
        """The trained parameters outside the backbone."""
        tower = {id(parameter) for parameter in self.backbone.parameters()}
        return [parameter for parameter in trainable(self) if id(parameter) not in tower]


class LinearClassifier(Classifier):
    """One logit per class from the global feature of a trainable backbone.

    Vision-language backbone, ``init="text"`` (or "match"): logit_k = scale · ⟨f̄, W_k⟩ + b_k with f̄
    the unit feature and W_k started from the unit text feature of "a photo of a {name}."; training
    starts from zero-shot ranking. ``init="random"`` has the same form with W_k drawn as in
    `torch.nn.Linear`. Image-only backbone: logit_k = ⟨f √d / ‖f‖, W_k⟩ + b_k on pooled features f;
    networks differ in the size of their features by orders of magnitude (a Caffe SqueezeNet's norm
    is about 5,000), and one learning rate has to serve them all.

    b_k starts where an image with a typical cosine (0.2; image-only: logit 0) has the smoothed
    labelled frequency as its probability; `calibrated_bias` on real logits is better, see
    `LinearMethod.calibrate`. The text tower is not kept.

    Args:
        backbone: trained in place.
        task: classes and labels.
        init: "text", "random", or "match": text if the backbone has a text tower, else random.
        scale: factor of the cosines; not used for an image-only backbone.
    """

    def __init__(self, backbone: Backbone, task: Task, init: str = "match", scale: float = 20.0) -> None:
        super().__init__(backbone)
        weight, typical = _start(backbone, task, init)
        self.cosine = isinstance(backbone, VisionLanguageModel)
        self.scale = scale if self.cosine else 1.0
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.logit(task.prior).float() - self.scale * typical)

    def classify(self, features: Tensor) -> Tensor:
        """Return (B, K) float32 logits of features (B, d)."""
        with full_precision(features):
            features = F.normalize(at_least_fp32(features), dim=-1)
            if not self.cosine:
                features = features * features.shape[-1] ** 0.5
            return self.scale * F.linear(features, self.weight) + self.bias


class PlainLinear(Classifier):
    """`torch.nn.Linear` on the features as the backbone gives them, with its usual random start.

    Nothing is calibrated: this is the head of the published protocols of CAP and D2L. ``init`` and ``scale``
    are not used.
    """

    calibrated = False

    def __init__(self, backbone: Backbone, task: Task, init: str = "match", scale: float = 20.0) -> None:
        super().__init__(backbone)
        self.weight = nn.Parameter(_random_weight(task.num_classes, backbone.dim))
        self.bias = nn.Parameter(_random_weight(task.num_classes, backbone.dim)[:, 0].clone())

    def classify(self, features: Tensor) -> Tensor:
        """Return (B, K) float32 logits of features (B, d)."""
        with full_precision(features):
            return F.linear(at_least_fp32(features), self.weight, self.bias)


class CosineClassifier(Classifier):
    """logit_k = scale · ⟨f̄, W̄_k⟩ + b_k with unit features f̄ and unit weights W̄_k, any backbone.

    Unlike "match", the size of W_k has no effect at any time of the training. ``init`` is as in
    `LinearClassifier`.
    """

    def __init__(self, backbone: Backbone, task: Task, init: str = "match", scale: float = 20.0) -> None:
        super().__init__(backbone)
        weight, typical = _start(backbone, task, init)
        self.scale = scale
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.logit(task.prior).float() - scale * typical)

    def classify(self, features: Tensor) -> Tensor:
        """Return (B, K) float32 logits of features (B, d)."""
        with full_precision(features):
            features = F.normalize(at_least_fp32(features), dim=-1)
            return self.scale * F.linear(features, F.normalize(self.weight, dim=-1)) + self.bias


class DecoderClassifier(Classifier):
    """`MLDecoder` on the backbone's local features; b_k as in `PlainLinear`.

    Parameters that only the backbone's own pooling reads are frozen. ``init`` and ``scale`` are not
    used.
    """

    reads_map = True

    def __init__(self, backbone: Backbone, task: Task, init: str = "match", scale: float = 20.0) -> None:
        super().__init__(backbone)
        self.decoder = MLDecoder(backbone.map_dim, task.num_classes, seed=task.seed)
        self.bias = nn.Parameter(torch.logit(task.prior).float())

    def classify(self, features: Tensor) -> Tensor:
        """Return (B, K) float32 logits of local features (B, L, C)."""
        return self.decoder(features) + self.bias


class MLDecoder(nn.Module):
    """ML-Decoder of Ridnik et al., WACV 2023 (arXiv 2111.12933), without its final bias.

    Local features (B, L, C) go through a linear layer to ``dim`` and a ReLU. G fixed random queries,
    one for each group of classes, attend to them in one decoder layer without self-attention: layer
    norm of the queries, cross-attention, feed-forward; a residual sum and a layer norm follow each of
    the last two. Group-wise fully-connected: the logits of a group's classes are linear in
    its own query's output.

    What differs from the official code (github Alibaba-MIIL/ML_Decoder): no dropout (there: 0.1),
    because a step has to be a function of seed, epoch and sample alone. Class k belongs to group
    k // ⌈K / G⌉, as there.

    Args:
        channels: C.
        num_classes: K.
        groups: G; at most K, so that up to 100 classes have a query each.
        dim: width of the decoder.
        heads: of the cross-attention.
        hidden: width of the feed-forward.
        seed: of the queries.

    Attributes:
        queries: (G, dim) frozen parameter, N(0, 1). It is not saved with a training state: the same
            seed draws it again.
        group_weight: (G, dim, ⌈K / G⌉) parameter.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        groups: int = 100,
        dim: int = 768,
        heads: int = 8,
        hidden: int = 2048,
        seed: int = 0,
    ) -> None:
        super().__init__()
        groups = min(groups, num_classes)
        self.num_classes = num_classes
        self.embed = nn.Linear(channels, dim)
        queries = torch.randn(groups, dim, generator=torch.Generator().manual_seed(seed))
        self.queries = nn.Parameter(queries, requires_grad=False)
        self.query_norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.attention_norm = nn.LayerNorm(dim)
        self.expand, self.contract = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.output_norm = nn.LayerNorm(dim)
        self.group_weight = nn.Parameter(torch.empty(groups, dim, -(-num_classes // groups)))
        nn.init.xavier_normal_(self.group_weight)

    def queried(self, local: Tensor) -> Tensor:
        """Return (B, G, dim), each group's view of the image, of local features (B, L, C)."""
        memory = F.relu(self.embed(local))
        # The residual sum in front of the first norm is the official layer's, without its dropout.
        x = self.query_norm(2 * self.queries).expand(len(local), -1, -1)
        x = self.attention_norm(x + self.attention(x, memory, memory, need_weights=False)[0])
        return self.output_norm(x + self.contract(F.relu(self.expand(x))))

    def forward(self, local: Tensor) -> Tensor:
        """Return (B, K) float32 logits of local features (B, L, C)."""
        x = self.queried(local)
        with full_precision(x):
            logits = torch.einsum("bgd,gdf->bgf", at_least_fp32(x), self.group_weight)
        return logits.flatten(1)[:, : self.num_classes]


HEADS: Mapping[str, Callable[[Backbone, Task, str, float], Classifier]] = {
    "match": LinearClassifier,
    "linear": PlainLinear,
    "cosine": CosineClassifier,
    "ml_decoder": DecoderClassifier,
}


def _random_weight(classes: int, dim: int) -> Tensor:
    """(K, d), drawn as in `torch.nn.Linear`."""
    return nn.init.uniform_(torch.empty(classes, dim), -(dim**-0.5), dim**-0.5)


def _start(backbone: Backbone, task: Task, init: str) -> tuple[Tensor, float]:
    """Class weights (K, d), and the cosine that a typical image has with them."""
    text = isinstance(backbone, VisionLanguageModel)
    if init == "text" and not text:
        raise UserError(f"init='text' needs a text tower, {backbone.description} has none; use 'random'")
    weight = _random_weight(task.num_classes, backbone.dim)
    if isinstance(backbone, VisionLanguageModel) and init != "random":
        return text_classifier(backbone, task.prompts).cpu(), TYPICAL_COSINE
    return weight, 0.0
