"""Text prompts: templates with a gap for the class name, and learnt contexts in front of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from torch import Tensor, nn
from torch.nn import functional as F

from methods.errors import UserError
from methods.vlm import VisionLanguageModel

# Templates with a gap for the class name: CLIP's own for VOC, the seven that its notes on prompt
# engineering single out for ImageNet, and its full ImageNet ensemble.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "single": ("a photo of a {}.",),
    "simple7": tuple(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES),
    "imagenet80": tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),
}


def text_classifier(
    vlm: VisionLanguageModel, names: Sequence[str], templates: Sequence[str] = TEMPLATES["single"]
) -> Tensor:
    """(K, d) unit text features of the classes: the mean over templates of unit features."""
    mean = torch.zeros(len(names), vlm.dim, device=vlm.text_tower.device)
    for template in templates:
        texts = [template.format(name) for name in names]
        mean += F.normalize(vlm.encode_text(texts).float(), dim=-1)
    return F.normalize(mean, dim=-1)


class LearntPrompts(nn.Module):
    """Learnt context tokens in front of frozen class-name tokens, as in CoOp.

    The tokens of class k are "start, context, name_k, '.', end". Only the context is trained. The
    model is used but not owned: its parameters are not among this module's.

    Args:
        vlm: whose text tower encodes the prompts.
        names: words for the K classes.
        length: number of context tokens n.
        class_specific: a context of its own for every class instead of a shared one.
        seed: seed of the initial context, N(0, 0.02²).
        words: start from the embeddings of these words instead; their number of tokens replaces
            ``length``.

    Attributes:
        context: parameter, (n, w) shared or (K, n, w) class-specific.

    Raises:
        UserError: a prompt does not fit into the text tower's context, or n < 1.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        names: Sequence[str],
        length: int = 16,
        class_specific: bool = False,
        seed: int = 0,
        words: str = "",
    ) -> None:
        super().__init__()
        self._vlm = (vlm,)  # in a tuple, so that it is not registered as a sub-module
        tower = vlm.text_tower
        if not tower.learnable:
            raise UserError(
                f"{vlm.description}: its text tower takes no learnt prompts; choose another model"
            )
        with torch.no_grad():
            initial: Tensor = self._initial(vlm, length, seed, words)
            length = len(initial)
            if class_specific:
                if not words:
                    initial = _normal((len(names), *initial.shape), seed)
                else:
                    initial = initial.expand(len(names), -1, -1).clone()
            ids, end = tower.tokenise([f"{name}." for name in names])
            last = int(end.max()) + 1
            if length + last > tower.context_length:
                longest = names[int(end.argmax())]
                raise UserError(
                    f"{vlm.description}: {length} learnt tokens and the name {longest!r} make a "
                    f"prompt of at least {length + last} tokens, it takes {tower.context_length}; "
                    f"use a shorter context or name"
                )
            tokens = tower.token_embedding(ids[:, :last]).clone()
        self.context = nn.Parameter(initial)
        self.register_buffer("start", tokens[:, :1], persistent=False)
        self.register_buffer("rest", tokens[:, 1:], persistent=False)
        self.register_buffer("end", end + length, persistent=False)
        self._cache: tuple[Tensor, Tensor] | None = None

    start: Tensor
    rest: Tensor
    end: Tensor

    @staticmethod
    def _initial(vlm: VisionLanguageModel, length: int, seed: int, words: str) -> Tensor:
        tower = vlm.text_tower
        if words:
            ids, end = tower.tokenise([words])
            return tower.token_embedding(ids[0, 1 : int(end[0])]).clone()
        if length < 1:
            raise UserError(f"a learnt prompt needs at least 1 context token, got {length}")
        return _normal((length, tower.token_embedding.weight.shape[1]), seed)

    def embeddings(self) -> Tensor:
        """(K, T, w) token embeddings with T the longest prompt in use."""
        context: Tensor = self.context
        if context.ndim == 2:
            context = context.expand(len(self.start), -1, -1)
        return torch.cat([self.start, context, self.rest], dim=1)

    def forward(self) -> Tensor:
        """(K, d) text features, not normalised.

        Without gradients the features are remembered until the context changes, so that scoring
        many batches runs the text tower once.
        """
        if torch.is_grad_enabled():
            return self._vlm[0].encode_prompts(self.embeddings(), self.end)
        cached = self._cache
        if (
            cached is None
            or cached[0].device != self.context.device
            or not torch.equal(cached[0], self.context)
        ):
            # Remembered for all precisions, so computed in the best.
            with torch.autocast(self.context.device.type, enabled=False):
                features = self._vlm[0].encode_prompts(self.embeddings(), self.end)
            cached = self._cache = (self.context.detach().clone(), features)
        return cached[1]


def encode_together(prompts: Sequence[LearntPrompts]) -> list[Tensor]:
    """Text features of several `LearntPrompts` of one model in a single pass of the text tower.

    Returns:
        One (K_i, d) tensor for each, not normalised, equal to calling them one by one.
    """
    if not torch.is_grad_enabled():
        return [prompt() for prompt in prompts]
    rows = [prompt.embeddings() for prompt in prompts]
    longest = max(row.shape[1] for row in rows)
    padded = [F.pad(row, (0, 0, 0, longest - row.shape[1])) for row in rows]
    end = torch.cat([prompt.end for prompt in prompts])
    features = prompts[0]._vlm[0].encode_prompts(torch.cat(padded), end)
    return list(features.split([len(row) for row in rows]))


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02
