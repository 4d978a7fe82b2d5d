"""What the weights of a backbone demand of its use: activation, input mean and standard deviation.

A network loads weights that were trained with another activation, or on images normalised in another way,
without any complaint, and its numbers are then a little wrong. All three belong to the weights, so they are
looked up where the weights come from: a pretrained tag of open_clip or timm has an entry that says them. Of a
file nothing is known but the model that it is for. What all published weights of that model agree on is taken
and said; where they disagree, the user has to say it. Weights that are random have the model's own.

Nothing here imports torch. The libraries are imported when a backbone of theirs is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from methods.backbones.open_clip_models import model_config, pretrained_tags, tag_entry, tag_of
from methods.backbones.spec import BackboneSpec
from methods.errors import UserError, nearest

Triple = tuple[float, float, float]

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's CLIP, and open_clip's where nothing else is said."""
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

_ROUNDED = 1e-3
"""A mean that is written with three digits is the same mean."""


@dataclass(frozen=True)
class Conventions:
    """What a backbone is built with.

    Attributes:
        quick_gelu: whether transformers use QuickGELU, x·sigmoid(1.702 x), instead of GELU; None: there is no
            such choice (plain networks).
        mean: per channel, in the order of the specification's ``channels``, subtracted after scaling.
        std: per channel, divides after ``mean``.
        remark: what was taken for a weights file because nobody said it, and why; empty otherwise.
    """

    quick_gelu: bool | None
    mean: Triple
    std: Triple
    remark: str = ""


@dataclass(frozen=True)
class _Published:
    """What a library knows of a model.

    Attributes:
        own: the model's own conventions, without any weights.
        tags: those of its published weights, by name.
        named: the weights that the specification names; empty for a file and for random weights.
    """

    own: Conventions
    tags: Mapping[str, Conventions]
    named: str = ""


def conventions(spec: BackboneSpec) -> Conventions:
    """Find what the weights of a backbone demand; no weights are fetched or read.

    Raises:
        UserError: unknown model or tag; the specification contradicts the tag that it names, or does not say
            for a file what the published weights of its model disagree on.
    """
    known = _LOOK_UP[spec.family](spec)
    own = known.own
    if spec.quick_gelu is not None and own.quick_gelu is None:
        raise UserError(f"backbone.quick_gelu: {spec.name} has no such choice; remove the field")
    if known.named:
        taken = known.tags[known.named]
        _refuse_contradictions(spec, taken, known.named)
        found = Conventions(taken.quick_gelu, taken.mean, taken.std)
    elif spec.file is not None:
        found = _of_file(spec, known)
    else:
        quick_gelu = own.quick_gelu if spec.quick_gelu is None else spec.quick_gelu
        mean, std = _given(spec) or (_ordered(spec, own.mean), _ordered(spec, own.std))
        found = Conventions(quick_gelu, mean, std)
    if spec.family == "timm" and found.quick_gelu != own.quick_gelu:
        raise UserError(_other_variant(spec, found.quick_gelu))
    return found


def _of_file(spec: BackboneSpec, known: _Published) -> Conventions:
    """What the published weights of a model agree on, where the specification does not say it."""
    rows = known.tags or {"": known.own}
    missing, taken = [], []
    quick_gelu = spec.quick_gelu
    if quick_gelu is None and known.own.quick_gelu is not None:
        said = _by_value((tag, row.quick_gelu) for tag, row in rows.items())
        if len(said) > 1:
            missing.append(("quick_gelu", {_toml(value): tags for value, tags in said.items()}))
        else:
            (quick_gelu,) = said
            taken.append(f"quick_gelu = {_toml(quick_gelu)}")
    mean, std = _given(spec) or (known.own.mean, known.own.std)
    if spec.mean is None:
        pairs = _by_value((tag, (row.mean, row.std)) for tag, row in rows.items())
        if len(pairs) > 1:
            said = {f"{_short(first)} and {_short(last)}": tags for (first, last), tags in pairs.items()}
            missing.append(("mean and std", said))
        else:
            mean, std = (_ordered(spec, values) for values in next(iter(pairs)))
            taken.append(f"mean = {_short(mean)} and std = {_short(std)}")
    if missing:
        fields = " and ".join(field for field, _ in missing)
        what = "; ".join(
            f"{field}: {', '.join(f'{value} for {_some(tags)}' for value, tags in said.items())}"
            for field, said in missing
        )
        raise UserError(
            f"backbone {spec.name} with the file {spec.weights}: give {fields} in [backbone] as these "
            f"weights were trained; the published weights of the model disagree ({what})"
        )
    remark = ""
    if taken:
        reason = (
            f"all published weights of the model agree on that ({_some(list(rows))})"
            if known.tags
            else "the model's own configuration, which has no published weights to compare with"
        )
        remark = f"{spec.name} with the file {spec.weights}: {', '.join(taken)} taken; {reason}"
    return Conventions(quick_gelu, mean, std, remark)


def _refuse_contradictions(spec: BackboneSpec, taken: Conventions, tag: str) -> None:
    """What stands in a specification must be what the named weights were trained with.

    Raises:
        UserError: it is not; field and value of the weights are named.
    """
    wrong = []
    if spec.quick_gelu is not None and spec.quick_gelu != taken.quick_gelu:
        wrong.append(("quick_gelu", _toml(spec.quick_gelu), _toml(taken.quick_gelu)))
    for field in ("mean", "std"):
        given, right = getattr(spec, field), getattr(taken, field)
        if given is not None and any(abs(a - b) > _ROUNDED for a, b in zip(given, right, strict=True)):
            wrong.append((field, _short(given), _short(right)))
    if spec.scale != 1:
        wrong.append(("scale", f"{spec.scale:g}", "1"))
    if spec.channels != "rgb":
        wrong.append(("channels", repr(spec.channels), "'rgb'"))
    if wrong:
        field, given, right = wrong[0]
        raise UserError(
            f"backbone.{field} = {given} contradicts the weights '{tag}' of {spec.name}, which were trained "
            f"with {field} = {right}; remove the field"
        )


def _given(spec: BackboneSpec) -> tuple[Triple, Triple] | None:
    """The mean and standard deviation of a specification; it has both or neither."""
    return None if spec.mean is None or spec.std is None else (spec.mean, spec.std)


def _ordered(spec: BackboneSpec, values: Triple) -> Triple:
    """Published values, which are in the order red, green, blue, in the order of the channels."""
    return (values[2], values[1], values[0]) if spec.channels == "bgr" else values


# --- where the families publish it ------------------------------------------------------------------------


def _glyphclip(spec: BackboneSpec) -> _Published:
    """GlyphCLIP is trained here, always in the same way, from whatever file it comes."""
    own = Conventions(False, CLIP_MEAN, CLIP_STD)
    return _Published(own, {"glyphclip": own}, "glyphclip")


def _open_clip(spec: BackboneSpec) -> _Published:
    own = Conventions(bool(model_config(spec).get("quick_gelu", False)), CLIP_MEAN, CLIP_STD)
    tags = {}
    for tag in pretrained_tags(spec.model):
        entry = tag_entry(spec.model, tag)
        # An entry names the activation only where it is not GELU, or not at all: roberta-ViT-B-32's is older
        # than that field, and its configuration is the one that it was trained with.
        quick_gelu = bool(entry.get("quick_gelu", own.quick_gelu))
        tags[tag] = Conventions(
            quick_gelu, _triple(entry.get("mean", CLIP_MEAN)), _triple(entry.get("std", CLIP_STD))
        )
    return _Published(own, tags, tag_of(spec))


def _torchvision(spec: BackboneSpec) -> _Published:
    import torchvision.models

    names = torchvision.models.list_models(module=torchvision.models)
    if spec.model not in names:
        raise UserError(f"unknown torchvision model {spec.model!r}{nearest(spec.model, names)}")
    tags = {}
    for entry in torchvision.models.get_model_weights(spec.model):
        views: Any = entry.transforms()
        tags[entry.name] = Conventions(None, _triple(views.mean), _triple(views.std))
    return _Published(Conventions(None, IMAGENET_MEAN, IMAGENET_STD), tags)


def _timm(spec: BackboneSpec) -> _Published:
    import timm

    model, _, tag = spec.model.partition(".")
    if not timm.is_model(model):
        raise UserError(f"unknown timm model {spec.model!r}{nearest(spec.model, timm.list_models())}")
    names = timm.list_pretrained(f"{model}.*")
    entries: dict[str, Any] = {
        name.partition(".")[2]: timm.models.get_pretrained_cfg(name)  # type: ignore[attr-defined]
        for name in names
    }
    if tag and tag not in entries:
        raise UserError(f"timm model {model!r} has no pretrained tag {tag!r}{nearest(tag, entries)}")
    # timm has a second model for these weights, and says of them under either name that they need it.
    native = {name: "QuickGELU" in " ".join(entry.notes or ()) for name, entry in entries.items()}
    quick = "quickgelu" in model
    choice = quick or any(native.values())
    own = timm.models.get_pretrained_cfg(model)  # type: ignore[attr-defined]
    tags = {
        name: Conventions(native[name] if choice else None, _triple(entry.mean), _triple(entry.std))
        for name, entry in entries.items()
    }
    return _Published(
        Conventions(
            quick if choice else None,
            _triple(own.mean if own else IMAGENET_MEAN),
            _triple(own.std if own else IMAGENET_STD),
        ),
        tags,
        tag,
    )


def _other_variant(spec: BackboneSpec, quick_gelu: bool | None) -> str:
    """A timm model has one activation; weights with the other need its twin."""
    small, quick = "_clip_", "_clip_quickgelu_"
    twin = spec.name.replace(small, quick) if quick_gelu else spec.name.replace(quick, small)
    return (
        f"backbone {spec.name}: weights that were trained with quick_gelu = {_toml(quick_gelu)} need another "
        f"model of timm; use {twin!r}"
    )


_LOOK_UP = {"glyphclip": _glyphclip, "open_clip": _open_clip, "torchvision": _torchvision, "timm": _timm}


# --- words ------------------------------------------------------------------------------------------------


def _triple(values: Iterable[float]) -> Triple:
    first, second, third = values
    return float(first), float(second), float(third)


def _by_value(pairs: Iterable[tuple[str, Any]]) -> dict[Any, list[str]]:
    """Names by their (hashable) value, in order."""
    found: dict[Hashable, list[str]] = {}
    for name, value in pairs:
        found.setdefault(value, []).append(name)
    return found


def _toml(flag: bool | None) -> str:
    return "true" if flag else "false"


def _short(values: Triple) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"


def _some(tags: Collection[str]) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(list(tags)[:3])
    return shown if len(tags) <= 3 else f"{shown} and {len(tags) - 3} more"
