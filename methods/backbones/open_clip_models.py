"""What open_clip knows of its models: configurations, pretrained tags and their files; no torch at import.

Importing open_clip takes three times as long as importing torch. Its table of pretrained tags and its
configurations are files of their own, and are read without it where nothing else has imported it.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

from methods.backbones.digests import file_digest
from methods.backbones.hub_cache import cached, reach
from methods.backbones.spec import BackboneSpec
from methods.errors import UserError, first_line, nearest

_TABLES = "_ssmll_bench_open_clip"
"""Name in `sys.modules` of open_clip's folder as a package that executes nothing when it is imported."""


def model_names() -> list[str]:
    """Names of open_clip's models."""
    loaded = sys.modules.get("open_clip")
    return loaded.list_models() if loaded is not None else sorted(_configurations())


def pretrained_tags(model: str) -> list[str]:
    """Names of the pretrained tags of a model."""
    return list(_pretrained().list_pretrained_tags_by_model(model))


def tag_entry(model: str, tag: str) -> dict[str, Any]:
    """Open_clip's entry of a pretrained tag: where its file is, and what it was trained with."""
    return dict(_pretrained().get_pretrained_cfg(model, tag))


def _folder() -> Path:
    found = importlib.util.find_spec("open_clip")  # finds it without importing it
    if found is None or not found.submodule_search_locations:
        raise UserError("open_clip is not installed: pip install open_clip_torch")
    return Path(next(iter(found.submodule_search_locations)))


def _pretrained() -> Any:
    """The module `open_clip.pretrained`."""
    if "open_clip" in sys.modules:
        return importlib.import_module("open_clip.pretrained")
    if _TABLES not in sys.modules:
        package = types.ModuleType(_TABLES)
        package.__path__ = [str(_folder())]
        sys.modules[_TABLES] = package
    return importlib.import_module(f"{_TABLES}.pretrained")


@functools.cache
def _configurations() -> dict[str, Path]:
    """The files of the configurations, by the model's name."""
    return {path.stem: path for path in (_folder() / "model_configs").glob("*.json")}


def model_config(spec: BackboneSpec) -> dict[str, Any]:
    """Return open_clip's configuration of a model.

    Raises:
        UserError: unknown model.
    """
    loaded = sys.modules.get("open_clip")
    config = None
    if loaded is not None:
        config = loaded.get_model_config(spec.model) if ":" not in spec.model else None
    elif spec.model in _configurations():
        config = json.loads(_configurations()[spec.model].read_text(encoding="utf-8"))
    if config is None:
        raise UserError(f"unknown open_clip model {spec.model!r}{nearest(spec.model, model_names())}")
    return config


def tag_of(spec: BackboneSpec) -> str:
    """Return the pretrained tag that a backbone of open_clip names; empty if it names none.

    Raises:
        UserError: the model has no such tag.
    """
    if spec.file is not None or not spec.weights:
        return ""
    tags = pretrained_tags(spec.model)
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


def has_dense_features(spec: BackboneSpec) -> bool:
    """Whether the image tower has features of locations here (`VisionLanguageModel.dense_features`).

    Raises:
        UserError: unknown model.
    """
    if spec.name == "glyphclip":
        return True
    vision = model_config(spec)["vision_cfg"]
    return "timm_model_name" not in vision and not vision.get("attentional_pool")


def tag_source(spec: BackboneSpec) -> str:
    """Where open_clip fetches a pretrained tag: its file on the hub, or an address."""
    entry = tag_entry(spec.model, tag_of(spec))
    return str(entry.get("hf_hub") or entry.get("url") or entry.get("file"))


def cached_tag_file(spec: BackboneSpec) -> Path | None:
    """Return the local file of a pretrained tag, where `tag_file` would find it; None if it is not here.

    Nothing is fetched, and the network is not asked. A file whose address says the start of its SHA-256 is
    here only if it has that: open_clip downloads another one anew, such as one that was cut off.

    Raises:
        UserError: unknown tag.
    """
    entry = tag_entry(spec.model, tag_of(spec))
    if "file" in entry:
        return Path(entry["file"]) if Path(entry["file"]).is_file() else None
    if entry.get("hf_hub"):
        repository, name = os.path.split(entry["hf_hub"])
        module = _pretrained()
        name = name or module.HF_WEIGHTS_NAME
        for each in (*module._get_safe_alternatives(name), name):
            found = cached(repository, each)
            if found is not None:
                return found
        return None
    place = Path("~/.cache/clip").expanduser() / os.path.basename(entry["url"])
    if not place.is_file() or not file_digest(place).startswith(_sha256_in(entry["url"])):
        return None
    return place


def _sha256_in(url: str) -> str:
    """The SHA-256 that an address says of its file, or its start; "" where it says none.

    As `open_clip.pretrained.download_pretrained_from_url` reads it: OpenAI's addresses have it as a folder,
    those of open_clip's own releases at the end of the name.
    """
    folder, name = url.rpartition("/")[::2]
    if "openaipublic" in url:
        return folder.rpartition("/")[2]
    return os.path.splitext(name)[0].rpartition("-")[2] if "mlfoundations" in url else ""


def tag_file(spec: BackboneSpec) -> Path:
    """Return the local file of a pretrained tag; open_clip downloads it if it is missing.

    A file that is here is taken without asking anybody, so that a machine without a route to the hub does not
    wait for its answer.

    Raises:
        UserError: unknown tag, or it cannot be fetched.
    """
    found = cached_tag_file(spec)
    if found is not None:
        return found
    entry = tag_entry(spec.model, tag_of(spec))
    try:
        if entry.get("hf_hub"):
            reach()
        return Path(_pretrained().download_pretrained(copy.deepcopy(entry)))
    except Exception as error:  # urllib, huggingface_hub and requests each have their own
        reason = first_line(error)
        raise UserError(
            f"cannot fetch the weights {spec.weights!r} of {spec.model} ({reason}); on a machine "
            f"with a network fetch {tag_source(spec)!r}, copy the file here and set weights to its path"
        ) from error
