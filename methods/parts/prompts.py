"""Text prompts: templates with a gap for the class name, and learnt contexts in front of it.

A learnt context that all classes share is encoded once, not once for every class; see `NameTree`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones.clip import VisionLanguageModel
from methods.errors import UserError

SINGLE = ("a photo of a {}.",)
"""CLIP's own template for VOC."""


def templates_of(name: str) -> tuple[str, ...]:
    """Templates with a gap for the class name.

    Args:
        name: "single" (CLIP's for VOC), "simple7" (the seven that CLIP's notes on prompt engineering
            single out for ImageNet) or "imagenet80" (its full ImageNet ensemble).
    """
    import open_clip  # here, because planning a grid does without it

    if name == "single":
        return SINGLE
    simple7, imagenet80 = open_clip.SIMPLE_IMAGENET_TEMPLATES, open_clip.OPENAI_IMAGENET_TEMPLATES
    texts = {"simple7": simple7, "imagenet80": imagenet80}[name]
    return tuple(template("{}") for template in texts)


def text_classifier(
    vlm: VisionLanguageModel, names: Sequence[str], templates: Sequence[str] = SINGLE
) -> Tensor:
    """Return (K, d) unit text features of the classes: the mean over templates of unit features."""
    mean = torch.zeros(len(names), vlm.dim, device=vlm.text_tower.device)
    for template in templates:
        texts = [template.format(name) for name in names]
        mean += F.normalize(vlm.encode_text(texts).float(), dim=-1)
    return F.normalize(mean, dim=-1)


LONGEST_ROW = 1024
"""Maximum number of tokens of a `NameTree`. Attention is over whole rows, so further names get a row
of their own."""


class NameTree(nn.Module):
    """K texts with a common beginning as one sequence: "beginning, name_1, name_2, …, name_K".

    Each token has the position of its own text, and a mask lets it attend to the beginning and to
    its own name only. A causal tower then computes for each name what it would for the text by
    itself, and the beginning once: 17 + 257 tokens instead of 80 × 22 for COCO's names behind 16
    learnt tokens. (SpecInfer, Miao et al., ASPLOS 2024, verifies guessed tokens with the same mask.)

    Args:
        beginning: number of tokens that the texts share, the start token included.
        names: for every text, (l_k, w) embeddings of the further tokens up to the end token.

    Attributes:
        names: (Σ l_k, w) embeddings, text after text.
        positions: (N,) int64 positions of the sequence's tokens, N = beginning + Σ l_k.
        mask: (N, N) float, 0 where a token may attend and −∞ elsewhere.
        ends: (K,) int64 indices of the end tokens in the sequence.
    """

    names: Tensor
    positions: Tensor
    mask: Tensor
    ends: Tensor

    def __init__(self, beginning: int, names: Sequence[Tensor]) -> None:
        super().__init__()
        lengths = torch.tensor([len(name) for name in names])
        # Text 0 is the beginning; place is the index within a text.
        text = torch.arange(len(names) + 1).repeat_interleave(torch.cat([torch.tensor([beginning]), lengths]))
        ends = beginning + lengths.cumsum(0)
        first = torch.cat([torch.tensor([0, beginning]), ends[:-1]])
        place = torch.arange(len(text)) - first[text]
        positions = place + beginning * (text > 0)
        earlier = positions <= positions[:, None]
        seen = earlier & ((text == 0) | (text == text[:, None]))
        mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
        values = {"names": torch.cat(list(names)), "positions": positions, "mask": mask, "ends": ends - 1}
        for name, value in values.items():
            self.register_buffer(name, value.to(names[0].device), persistent=False)

    @property
    def tokens(self) -> int:
        """Length N of the sequence."""
        return len(self.positions)

    @classmethod
    def several(cls, beginning: int, names: Sequence[Tensor]) -> list[NameTree]:
        """Return trees of at most `LONGEST_ROW` tokens that hold the names in their order."""
        parts: list[list[Tensor]] = []
        room = 0
        for name in names:
            if not parts or len(name) > room:
                parts.append([])
                room = LONGEST_ROW - beginning
            parts[-1].append(name)
            room -= len(name)
        return [cls(beginning, part) for part in parts]


class LearntPrompts(nn.Module):
    """Learnt context tokens in front of frozen class-name tokens, as in CoOp.

    The tokens of class k are "start, context, name_k, '.', end". Only the context is trained. The
    model is used but not owned: its parameters are not among this module's.

    Args:
        vlm: its text tower encodes the prompts.
        names: words for the K classes.
        length: number of context tokens n.
        class_specific: one context for each class instead of a shared one.
        seed: seed of the initial context, N(0, 0.02²).
        words: start from the embeddings of these words instead; their number of tokens replaces
            ``length``.

    Attributes:
        context: parameter, (n, w) shared or (K, n, w) class-specific.
        trees: the texts as they are encoded, for a shared context and a causal text tower; otherwise
            empty.
        layout: lengths of the context and of the names. Prompts of equal layout are encoded in one
            pass. None without trees.

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
        self.trees = nn.ModuleList()
        self.layout: tuple[int, ...] | None = None
        if tower.cuttable and not class_specific:
            names_tokens = [row[: int(k)] for row, k in zip(tokens[:, 1:], end, strict=True)]
            self.trees.extend(NameTree.several(1 + length, names_tokens))
            self.layout = (length, *map(len, names_tokens))
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

        Without gradients the features are cached until the context changes, so that scoring many
        batches runs the text tower once.
        """
        if torch.is_grad_enabled():
            return _encode([self])[0]
        cached = self._cache
        if (
            cached is None
            or cached[0].device != self.context.device
            or cached[0].dtype != self.context.dtype
            or not torch.equal(cached[0], self.context)
        ):
            # The cache serves all precisions, so it is filled in the highest one.
            with torch.autocast(self.context.device.type, enabled=False):
                features = _encode([self])[0]
            cached = self._cache = (self.context.detach().clone(), features)
        return cached[1]


def prompt_pair(
    vlm: VisionLanguageModel,
    names: Sequence[str],
    seed: int,
    length: int,
    class_specific: bool,
    words: tuple[str, str],
) -> tuple[LearntPrompts, LearntPrompts]:
    """Two learnt prompts of the same classes that start apart, as of DualCoOp and TaI-DPT.

    Args:
        vlm: see `LearntPrompts`.
        names: see there.
        seed: of a run; the prompts have seeds of their own.
        length: see there.
        class_specific: see there.
        words: of the first and of the second prompt; see there.
    """
    first, second = (
        LearntPrompts(
            vlm, names, length=length, class_specific=class_specific, seed=2 * seed + place, words=start
        )
        for place, start in enumerate(words)
    )
    return first, second


def encode_together(prompts: Sequence[LearntPrompts]) -> list[Tensor]:
    """Encode several `LearntPrompts` of one model, in one pass if their layouts are equal.

    Returns:
        One (K_i, d) tensor for each, not normalised, equal to calling them one by one.
    """
    if not torch.is_grad_enabled():
        return [prompt() for prompt in prompts]
    return _encode(prompts)


def _encode(prompts: Sequence[LearntPrompts]) -> list[Tensor]:
    vlm = prompts[0]._vlm[0]
    layouts = {prompt.layout for prompt in prompts}
    if layouts == {None}:
        rows = [prompt.embeddings() for prompt in prompts]
        longest = max(row.shape[1] for row in rows)
        padded = [F.pad(row, (0, 0, 0, longest - row.shape[1])) for row in rows]
        end = torch.cat([prompt.end for prompt in prompts])
        features = vlm.encode_prompts(torch.cat(padded), end)
        return list(features.split([len(row) for row in rows]))
    if len(layouts) > 1:
        return [_encode([prompt])[0] for prompt in prompts]
    parts = []
    for trees in zip(*(prompt.trees for prompt in prompts), strict=True):
        rows = [
            torch.cat([prompt.start[0], prompt.context, tree.names])
            for prompt, tree in zip(prompts, trees, strict=True)
        ]
        tree = trees[0]  # the trees differ in their names only
        found = (torch.stack(rows), tree.positions, tree.mask, tree.ends)
        parts.append(vlm.text_tower.encode_tree(*found))
    return list(torch.cat(parts, dim=1))


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02
