"""What open_clip knows of its models: configurations, pretrained tags and their files; no torch at import.

Importing open_clip takes as long as importing torch, so it is done where one of its models is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from methods.backbones.spec import BackboneSpec
from methods.errors import UserError, nearest


def model_config(spec: BackboneSpec) -> dict[str, Any]:
    """Return open_clip's configuration of a model.

    Raises:
        UserError: unknown model.
    """
    import open_clip

    config = open_clip.get_model_config(spec.model) if ":" not in spec.model else None
    if config is None:
        raise UserError(
            f"unknown open_clip model {spec.model!r}{nearest(spec.model, open_clip.list_models())}"
        )
    return config


def tag_of(spec: BackboneSpec) -> str:
    """Return the pretrained tag that a backbone of open_clip names; empty if it names none.

    Raises:
        UserError: the model has no such tag.
    """
    import open_clip

    if spec.file is not None or not spec.weights:
        return ""
    tags = open_clip.list_pretrained_tags_by_model(spec.model)
    if spec.weights not in tags:
        raise UserError(
            f"open_clip model {spec.model!r} has no pretrained tag {spec.weights!r}"
            f"{nearest(spec.weights, tags)}; a local file is given as its path"
        )
    return spec.weights


def has_attention_pool(spec: BackboneSpec) -> bool:
    """Whether the image tower is a ResNet with an attention pool, from the model's configuration.

    Raises:
        UserError: unknown model.
    """
    if spec.name == "glyphclip":
        return True
    # A number of layers means a transformer, a list the blocks of each stage; timm towers have neither.
    return isinstance(model_config(spec)["vision_cfg"].get("layers"), list | tuple)


def tag_file(spec: BackboneSpec) -> Path:
    """Return the local file of a pretrained tag; open_clip downloads it if it is missing.

    Raises:
        UserError: unknown tag, or it cannot be fetched.
    """
    import open_clip

    cfg = open_clip.get_pretrained_cfg(spec.model, tag_of(spec))
    try:
        return Path(open_clip.download_pretrained(cfg))
    except Exception as error:  # urllib, huggingface_hub and requests each have their own
        source = cfg.get("hf_hub") or cfg.get("url")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot fetch the weights {spec.weights!r} of {spec.model} ({reason}); on a machine "
            f"with a network fetch {source!r}, copy the file here and set weights to its path"
        ) from error
