"""Vision-language models: one wrapper over any open_clip model.

open_clip is imported where a model is at hand: its import takes as long as torch's, and planning a
grid does without.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones.base import Backbone
from methods.backbones.spec import GLYPHCLIP, BackboneSpec
from methods.backbones.text_tower import TextTower
from methods.base import seeded_rng
from methods.errors import UserError, nearest
from methods.weights import load_weights, read_state_dict


class VisionLanguageModel(Backbone):
    """Global, per-location and text features of an open_clip model.

    `features` equals the model's ``encode_image`` of the normalised images.
    The text tower and the logit scale are frozen; the image tower is trainable until
    ``requires_grad_(False)``.

    Args:
        model: an open_clip model.
        tokenizer: its tokenizer.
        resolution: side of the images; the positional embedding is interpolated bicubically when
            it differs from the pretraining.
        description: name and weights, for messages and provenance.
        mean: input mean; None: the model's own.
        std: input standard deviation; None: the model's own.
        **options: see `Backbone`.

    Raises:
        UserError: the tower cannot work at this resolution.
    """

    is_vlm = True
    visual: Any

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
        self, images: Tensor, *, positional_embedding: bool = False, mean_token: bool = False
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
            )
            return whole[:0], local[:0]
        if _is_resnet(self.visual):
            return self._pool_features(images, positional_embedding, mean_token)
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
        self, images: Tensor, positional_embedding: bool, mean_token: bool
    ) -> tuple[Tensor, Tensor]:
        visual = self.visual
        x = visual.stem(self.normalise(images))
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)
        pool = visual.attnpool
        tokens = x.flatten(2).transpose(1, 2)
        embedding = pool.positional_embedding[1:]
        if mean_token:
            tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
            embedding = pool.positional_embedding
        if positional_embedding:
            tokens = tokens + embedding
        return pool(x), pool.c_proj(pool.v_proj(tokens))

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

    if spec.name == "glyphclip":
        open_clip.add_model_config(GLYPHCLIP / "glyphclip.json")
    names = open_clip.list_models()
    if spec.model not in names:
        raise UserError(f"unknown open_clip model {spec.model!r}{nearest(spec.model, names)}")
    tag = spec.weights if spec.file is None and spec.weights else None
    if tag:
        tag_file(spec)  # downloads it, or says what to do without a network
    with seeded_rng(0), _quiet():
        if tag:
            model = open_clip.create_model(spec.model, pretrained=tag, device="cpu")
        else:
            model = open_clip.create_model(spec.model, pretrained=None, device="cpu", pretrained_text=False)
        tokenizer = open_clip.get_tokenizer(spec.model)
    if spec.file is not None:
        _load_file(model, spec.file)
    return VisionLanguageModel(
        model,
        tokenizer,
        resolution,
        description=f"{spec.name} ({_weights_name(spec)})",
        mean=spec.mean,
        std=spec.std,
        scale=spec.scale,
        channels=spec.channels,
    )


def has_attention_pool(spec: BackboneSpec) -> bool:
    """Whether the image tower is a ResNet with an attention pool, from the model's configuration.

    Raises:
        UserError: unknown model.
    """
    import open_clip

    if spec.name == "glyphclip":
        return True
    config = open_clip.get_model_config(spec.model)
    if config is None:
        raise UserError(
            f"unknown open_clip model {spec.model!r}{nearest(spec.model, open_clip.list_models())}"
        )
    # A number of layers means a transformer, a list the blocks of each stage; timm towers have neither.
    return isinstance(config["vision_cfg"].get("layers"), list | tuple)


def tag_file(spec: BackboneSpec) -> Path:
    """Return the local file of a pretrained tag; open_clip downloads it if it is missing.

    Raises:
        UserError: unknown tag, or it cannot be fetched.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(spec.model)
    if spec.weights not in tags:
        raise UserError(
            f"open_clip model {spec.model!r} has no pretrained tag {spec.weights!r}"
            f"{nearest(spec.weights, tags)}; a local file is given as its path"
        )
    cfg = open_clip.get_pretrained_cfg(spec.model, spec.weights)
    try:
        with _quiet():
            return Path(open_clip.download_pretrained(cfg))
    except Exception as error:  # urllib, huggingface_hub and requests each have their own
        source = cfg.get("hf_hub") or cfg.get("url")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot fetch the weights {spec.weights!r} of {spec.model} ({reason}); on a machine "
            f"with a network fetch {source!r}, copy the file here and set weights to its path"
        ) from error


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
        first, rest = holder.positional_embedding[:1], holder.positional_embedding[1:]
        side = round(len(rest) ** 0.5)
        square = rest.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        # As open_clip does when it loads a checkpoint at another size.
        square = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True)
        rest = square.permute(0, 2, 3, 1).reshape(grid**2, -1)
        trainable = holder.positional_embedding.requires_grad
        holder.positional_embedding = nn.Parameter(torch.cat([first, rest]), trainable)
    visual.image_size = (resolution, resolution)
    if _is_transformer(visual):
        visual.grid_size = (grid, grid)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence open_clip's progress messages and warnings inside a block."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
