"""Vision-language models: one wrapper over any open_clip model.

open_clip is imported where a model is at hand: its import takes as long as torch's, and planning a
grid does without.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones.base import Backbone
from methods.backbones.conventions import conventions
from methods.backbones.formats import weights_format
from methods.backbones.hub import tokenizer_of
from methods.backbones.hub_cache import offline
from methods.backbones.open_clip_models import tag_file, tag_of
from methods.backbones.spec import GLYPHCLIP, BackboneSpec
from methods.backbones.text_tower import TextTower
from methods.base import seeded_rng
from methods.errors import UserError, first_line
from methods.weights import load_weights, read_state_dict


class VisionLanguageModel(Backbone):
    """Global, per-location and text features of an open_clip model.

    `features` equals the model's ``encode_image`` of the normalised images.
    The text tower and the logit scale are frozen; the image tower is trainable until
    ``requires_grad_(False)``.

    Args:
        model: an open_clip model.
        tokenizer: its tokenizer.
        resolution: side of the images. Where it differs from the pretraining, the tower's positional
            embedding is interpolated as open_clip does it, bicubically with antialiasing; the one of an
            attention pool is kept as it was too (``native_positions``), for methods that resize it otherwise.
        description: name and weights, for messages and provenance.
        mean: input mean; None: the model's own.
        std: input standard deviation; None: the model's own.
        **options: see `Backbone`.

    Raises:
        UserError: the tower cannot work at this resolution.
    """

    is_vlm = True
    visual: Any
    native_positions: Tensor | None

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        resolution: int,
        description: str,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        **options: Any,
    ) -> None:
        visual = model.visual
        super().__init__(
            dim=0,
            resolution=resolution,
            mean=mean or tuple(visual.image_mean),
            std=std or tuple(visual.image_std),
            description=description,
            **options,
        )
        native = visual.attnpool.positional_embedding.detach().clone() if _is_resnet(visual) else None
        self.register_buffer("native_positions", native, persistent=False)
        _set_resolution(visual, resolution, description)
        self.visual = visual.to(memory_format=torch.channels_last)
        self.text: TextTower | None = TextTower(model, tokenizer, description)
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.eval()
        with torch.no_grad():
            self.dim = self.features(torch.zeros(1, 3, resolution, resolution)).shape[1]

    def without_text(self) -> VisionLanguageModel:
        """Return a view that shares the image tower and has no text tower.

        For methods that need texts only while they are built: a state without the text tower is
        much smaller. Move either the view or the original to a device, not both.
        """
        view = copy.copy(self)
        view._modules = {**self._modules, "text": None}
        view._buffers = dict(self._buffers)
        return view

    # -- images --------------------------------------------------------------------------------

    @property
    def has_dense_features(self) -> bool:
        """Whether `dense_features` works for this image tower."""
        visual = self.visual
        return _is_resnet(visual) or (_is_transformer(visual) and visual.attn_pool is None)

    def _features(self, images: Tensor) -> Tensor:
        output = self.visual(self.normalise(images))
        return output[0] if isinstance(output, tuple) else output

    def _feature_map(self, images: Tensor) -> Tensor:
        """The local features of `dense_features` without its options: the value path, in text space."""
        return self.dense_features(images)[1]

    def dense_features(
        self,
        images: Tensor,
        *,
        positional_embedding: bool = False,
        mean_token: bool = False,
        antialias: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Global and local features from one forward pass of the trunk; neither is normalised.

        Attention-pool (ResNet-type) towers: at every location of the last map, the value and output
        projections of the attention pool, without query and key (DualCoOp, TaI-DPT). Transformer
        towers: the last block with every token attending to itself only, then the final norm and
        projection, of the patch tokens (MaskCLIP, Zhou et al., ECCV 2022).

        Args:
            images: (B, 3, H, W) in [0, 1].
            positional_embedding: attention-pool towers: add the pool's positional embedding, as
                DualCoOp's code does; TaI-DPT and DualCoOp++ leave it out.
            mean_token: attention-pool towers: put the mean token first, as one more location, as
                DualCoOp's code does.
            antialias: False: at another resolution than the pretraining's, ``positional_embedding`` is
                interpolated by plain bicubic from the pretrained one, as DualCoOp's code does; for frozen
                towers, whose embedding is still the pretrained one.

        Returns:
            global (B, d), untouched by the options, and local (B, L, d).

        Raises:
            UserError: the tower has no such features, or no such options.
        """
        if len(images) == 0:
            whole, local = self.dense_features(
                self._placeholder(images),
                positional_embedding=positional_embedding,
                mean_token=mean_token,
                antialias=antialias,
            )
            return whole[:0], local[:0]
        if _is_resnet(self.visual):
            return self._pool_features(images, positional_embedding, mean_token, antialias)
        if not self.has_dense_features:
            raise UserError(
                f"{self.description}: no per-location features for a {type(self.visual).__name__} "
                f"tower with its pooling; use an attention-pool ResNet (RN50, RN101, glyphclip) or "
                f"a plain ViT"
            )
        if positional_embedding or mean_token:
            raise UserError(
                f"{self.description}: positional_embedding and mean_token are options of "
                f"attention-pool towers; a transformer's patches have neither"
            )
        return self._patch_features(images)

    def _pool_features(
        self, images: Tensor, positional_embedding: bool, mean_token: bool, antialias: bool
    ) -> tuple[Tensor, Tensor]:
        visual = self.visual
        x = visual.stem(self.normalise(images))
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)
        pool = visual.attnpool
        tokens = x.flatten(2).transpose(1, 2)
        if mean_token:
            tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        if positional_embedding:
            embedding = pool.positional_embedding if antialias else self._plainly_resized()
            tokens = tokens + (embedding if mean_token else embedding[1:])
        return pool(x), pool.c_proj(pool.v_proj(tokens))

    def _plainly_resized(self) -> Tensor:
        """The attention pool's positional embedding at this resolution, (1 + L, C), by plain bicubic."""
        pool = self.visual.attnpool
        if pool.positional_embedding.requires_grad:
            raise ValueError("the plainly resized positional embedding is that of a frozen tower")
        if self.native_positions is None or len(self.native_positions) == len(pool.positional_embedding):
            return pool.positional_embedding
        return _resized(self.native_positions, self.resolution // 32, antialias=False)

    def _patch_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        visual = self.visual
        x = visual._embeds(self.normalise(images))
        *first, last = visual.transformer.resblocks
        for block in first:
            x = block(x)
        pooled, _ = visual._pool(last(x))
        length = x.shape[1]
        # Self-attention restricted to the token itself: softmax gives it weight 1, which leaves the
        # value path, whatever kind of attention the block has.
        alone = x.new_full((length, length), -torch.inf).fill_diagonal_(0)
        local = visual.ln_post(last(x, attn_mask=alone))[:, 1:]
        if visual.proj is not None:
            pooled, local = pooled @ visual.proj, local @ visual.proj
        return pooled, local

    # -- texts ---------------------------------------------------------------------------------

    @property
    def text_tower(self) -> TextTower:
        """The text tower.

        Raises:
            UserError: this is a view made by `without_text`.
        """
        if self.text is None:
            raise UserError(f"{self.description}: this view of the model has no text tower")
        return self.text

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(K, d) features, not normalised, of K strings; no gradients."""
        return self.text_tower.encode_text(texts)

    def encode_prompts(self, embeddings: Tensor, eot: Tensor) -> Tensor:
        """(K, d) features of token embeddings; see `TextTower.encode_embeddings`."""
        return self.text_tower.encode_embeddings(embeddings, eot)


def load_open_clip(spec: BackboneSpec, resolution: int) -> VisionLanguageModel:
    """Build the vision-language model that ``spec`` names.

    Raises:
        UserError: unknown model or tag, a file that is absent or does not fit, no network.
    """
    import open_clip

    demands = conventions(spec)
    if spec.name == "glyphclip":
        open_clip.add_model_config(GLYPHCLIP / "glyphclip.json")
    tag = tag_of(spec) if spec.family == "open_clip" else ""
    file = tag_file(spec) if tag else spec.file  # downloads it, or says what to do without a network
    description = f"{spec.name} ({_weights_name(spec)})"
    tokenizer = tokenizer_of(spec)  # with the configuration of a text tower that lies on the hub
    with seeded_rng(0), _random_is_expected(), offline():
        # The weights are loaded afterwards: with a tag, open_clip takes the activation from its configuration
        # of the model, warns where the tag has another, and goes on.
        model = open_clip.create_model(
            spec.model, pretrained=None, device="cpu", pretrained_text=False, quick_gelu=demands.quick_gelu
        )
    _check_activation(model, bool(demands.quick_gelu), description)
    if tag:
        _load_tag(model, Path(str(file)), description)
    elif file is not None:
        _load_file(model, file)
    return VisionLanguageModel(
        model,
        tokenizer,
        resolution,
        description=description,
        mean=demands.mean,
        std=demands.std,
        scale=spec.scale,
        channels=spec.channels,
    )


def _is_resnet(visual: nn.Module) -> bool:
    """Whether an image tower is a ResNet with an attention pool."""
    from open_clip.modified_resnet import ModifiedResNet

    return isinstance(visual, ModifiedResNet)


def _is_transformer(visual: nn.Module) -> bool:
    """Whether an image tower is open_clip's own transformer."""
    from open_clip.transformer import VisionTransformer

    return isinstance(visual, VisionTransformer)


def _weights_name(spec: BackboneSpec) -> str:
    default = "embedded weights" if spec.name == "glyphclip" else "random weights"
    return spec.weights or default


def _load_tag(model: nn.Module, path: Path, description: str) -> None:
    """Load the file of a pretrained tag, with open_clip's own conversions of older layouts.

    Raises:
        UserError: the file is damaged; it is in a cache, where it can be fetched anew.
    """
    from open_clip.factory import load_checkpoint

    weights_format(path)
    try:
        load_checkpoint(model, str(path), strict=True)  # type: ignore[arg-type]
    except Exception as error:  # safetensors, pickle and torch raise a dozen unrelated types
        reason = first_line(error)
        raise UserError(
            f"{description}: {path} cannot be loaded ({reason}); delete it, so that it is fetched again"
        ) from error


def _check_activation(model: nn.Module, quick_gelu: bool, description: str) -> None:
    """Make sure that the blocks of open_clip's own transformers have the activation of the weights.

    Towers from timm and Hugging Face have their own, which comes with their name.

    Raises:
        UserError: a block has another one, or there is no such block and QuickGELU is asked for.
    """
    from open_clip.hf_model import HFTextEncoder
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import CustomResidualAttentionBlock, QuickGELU, ResidualAttentionBlock

    wanted, other = (QuickGELU, nn.GELU) if quick_gelu else (nn.GELU, QuickGELU)
    named = dict(model.named_modules())
    foreign = tuple(f"{k}." for k, module in named.items() if isinstance(module, TimmModel | HFTextEncoder))
    blocks = {
        name: list(module.modules())
        for name, module in named.items()
        if isinstance(module, ResidualAttentionBlock | CustomResidualAttentionBlock)
        and not name.startswith(foreign)
    }
    wrong = [
        name
        for name, parts in blocks.items()
        if {type(part) for part in parts if isinstance(part, wanted | other)} != {wanted}
    ]
    if wrong:
        raise UserError(
            f"{description}: {len(wrong)} blocks, {wrong[0]} first, are built without {wanted.__name__}, "
            "which these weights need; another version of open_clip may build them with it"
        )
    if quick_gelu and not blocks:
        raise UserError(
            f"{description}: quick_gelu = true has no effect, because both towers come from timm or Hugging "
            "Face with their own activation; remove the field"
        )


def _load_file(model: nn.Module, path: Path) -> None:
    """Load a local checkpoint in any layout that open_clip can convert."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = dict(read_state_dict(path))
    for name in ("input_resolution", "context_length", "vocab_size"):  # OpenAI's archives
        state.pop(name, None)
    state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        if name in state and getattr(model, name) is not None:
            state[name] = state[name].reshape(getattr(model, name).shape)
    load_weights(model, state, str(path))


def _set_resolution(visual: Any, resolution: int, description: str) -> None:
    """Interpolate the positional embedding of ``visual`` for square images of ``resolution``."""
    native = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    if _is_resnet(visual):
        step, holder = 32, visual.attnpool
    elif _is_transformer(visual):
        step, holder = visual.patch_size[0], visual
    elif resolution == native:
        return
    else:
        raise UserError(
            f"{description}: a {type(visual).__name__} tower only takes its pretraining resolution "
            f"of {native} pixels, not {resolution}"
        )
    if resolution % step or resolution < step:
        low = max(step, resolution // step * step)
        raise UserError(
            f"{description}: {resolution} pixels is not a multiple of {step}; use {low} or {low + step}"
        )
    grid = resolution // step
    if grid**2 + 1 == len(holder.positional_embedding):
        return
    with torch.no_grad():
        # As open_clip does when it loads a checkpoint at another size.
        embedding = _resized(holder.positional_embedding, grid, antialias=True)
        holder.positional_embedding = nn.Parameter(embedding, holder.positional_embedding.requires_grad)
    visual.image_size = (resolution, resolution)
    if _is_transformer(visual):
        visual.grid_size = (grid, grid)


def _resized(embedding: Tensor, grid: int, *, antialias: bool) -> Tensor:
    """A positional embedding (1 + side², C), the first of the class or mean token, at (1 + grid², C)."""
    first, rest = embedding[:1], embedding[1:]
    side = round(len(rest) ** 0.5)
    square = rest.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=antialias)
    return torch.cat([first, square.permute(0, 2, 3, 1).reshape(grid**2, -1)])


@contextlib.contextmanager
def _random_is_expected() -> Iterator[None]:
    """Leave out open_clip's message that a model starts from random weights; all others are shown.

    It is said of every model that gets its weights afterwards, and loading them checks that none is missing.
    """

    def unexpected(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No pretrained weights loaded for model")

    root = logging.getLogger()
    root.addFilter(unexpected)
    try:
        yield
    finally:
        root.removeFilter(unexpected)
