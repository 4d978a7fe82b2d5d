"""Activation, mean and deviation belong to the weights: from the tag, from agreement, or by name."""

from __future__ import annotations

import json
import logging
import warnings

import open_clip
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from benchmarks.data.glyphscenes import clip_model
from methods.backbones import BackboneSpec, load_backbone
from methods.backbones.conventions import conventions
from methods.errors import UserError

TEXTS = ["a photo of a cat.", "x", "a rather longer text about a traffic light at night."]
HALF = (0.5, 0.5, 0.5)
CLIP = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def of(name, weights="", **fields):
    return conventions(BackboneSpec(name, weights, **fields))


# --- open_clip: the table of its tags ---------------------------------------------------------------------


def test_every_tag_of_open_clip_decides():
    quick, other_mean, differing = 0, 0, 0
    for model, tag in open_clip.list_pretrained():
        entry = open_clip.get_pretrained_cfg(model, tag)
        found = of(f"open_clip/{model}", tag)
        assert (found.mean, found.std) == (tuple(entry["mean"]), tuple(entry["std"]))
        config = bool(open_clip.get_model_config(model).get("quick_gelu", False))
        if "quick_gelu" in entry:
            assert found.quick_gelu is entry["quick_gelu"]
        else:
            assert found.quick_gelu is config
        quick += found.quick_gelu
        differing += found.quick_gelu != config
        other_mean += found.mean != CLIP[0]
        assert not found.remark
    assert differing >= 27  # plain names of weights that were trained with QuickGELU
    assert quick > differing
    assert other_mean >= 50


def test_a_file_gets_what_all_tags_of_its_model_agree_on_and_says_so():
    found = of("open_clip/RN101", "mine/RN101.pt")
    assert found.quick_gelu is True  # the configuration of the model says False
    assert (found.mean, found.std) == CLIP
    assert "quick_gelu = true" in found.remark
    assert "mine/RN101.pt" in found.remark
    assert "openai, yfcc15m" in found.remark
    siglip = of("open_clip/ViT-B-16-SigLIP", "mine/siglip.safetensors")
    assert (siglip.quick_gelu, siglip.mean, siglip.std) == (False, HALF, HALF)
    mobile = of("open_clip/MobileCLIP-S1", "mine/mobile.pt")
    assert mobile.mean == (0.0, 0.0, 0.0)
    own = of("open_clip/RN101", "mine/RN101.pt", quick_gelu=False)  # trained by the user
    assert own.quick_gelu is False
    assert "quick_gelu" not in own.remark
    assert not of("open_clip/RN101", "x.pt", quick_gelu=True, mean=HALF, std=HALF).remark


def test_a_file_needs_by_name_what_the_tags_of_its_model_disagree_on():
    with pytest.raises(UserError) as error:
        of("open_clip/ViT-B-32", "x.pt")
    message = str(error.value)
    assert "give quick_gelu in [backbone]" in message
    assert "true for openai" in message
    assert "false for laion2b_e16" in message
    assert "\n" not in message
    assert len(message) < 420
    found = of("open_clip/ViT-B-32", "x.pt", quick_gelu=True)
    assert (found.quick_gelu, found.mean) == (True, CLIP[0])
    with pytest.raises(UserError, match="give quick_gelu and mean and std in"):
        of("open_clip/ViT-L-14", "x.pt")
    with pytest.raises(UserError, match=r"give mean and std in.*for laion2b_s32b_b82k"):
        of("open_clip/ViT-L-14", "x.pt", quick_gelu=False)
    assert of("open_clip/ViT-L-14", "x.pt", quick_gelu=False, mean=HALF, std=HALF).mean == HALF
    with pytest.raises(UserError, match="give quick_gelu in"):
        of("open_clip/ViT-L-14", "x.pt", mean=HALF, std=HALF)


def test_models_without_tags_and_random_weights_are_as_their_configuration():
    found = of("open_clip/ViT-S-16", "x.pt")
    assert (found.quick_gelu, found.mean, found.std) == (False, *CLIP)
    assert "no published weights to compare with" in found.remark
    assert of("open_clip/ViT-L-14-worldwide-quickgelu", "x.pt").quick_gelu is True
    for name, quick in (("RN101", False), ("RN101-quickgelu", True), ("ViT-L-14", False)):
        assert of(f"open_clip/{name}").quick_gelu is quick
        assert not of(f"open_clip/{name}").remark
    chosen = of("open_clip/RN101", quick_gelu=True, mean=HALF, std=HALF)
    assert (chosen.quick_gelu, chosen.mean, chosen.std) == (True, HALF, HALF)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quick_gelu": False}, r"quick_gelu = false contradicts the weights 'openai'.*quick_gelu = true"),
        (
            {"mean": HALF, "std": CLIP[1]},
            r"backbone.mean = \[0.5, 0.5, 0.5\].*mean = \[0.4815, 0.4578, 0.4082",
        ),
        ({"mean": CLIP[0], "std": HALF}, r"backbone.std = .*std = \[0.2686"),
        ({"channels": "bgr"}, "backbone.channels = 'bgr'.*'rgb'"),
        ({"scale": 255.0, "mean": CLIP[0], "std": CLIP[1]}, "backbone.scale = 255"),
    ],
)
def test_what_is_written_against_a_tag_is_an_error(fields, message):
    with pytest.raises(UserError, match=message):
        of("open_clip/RN101", "openai", **fields)


def test_what_agrees_with_a_tag_may_be_written():
    rounded = tuple(round(value, 3) for value in CLIP[0])
    found = of("open_clip/RN101", "openai", quick_gelu=True, mean=rounded, std=CLIP[1])
    assert found.mean == CLIP[0]  # the tag's


def test_glyphclip_is_what_it_was_trained_with():
    found = of("glyphclip")
    assert (found.quick_gelu, found.mean, found.std) == (False, *CLIP)
    assert (found.mean, found.std) == (clip_model.MEAN, clip_model.STD)
    assert of("glyphclip", "again.safetensors") == found
    with pytest.raises(UserError, match="quick_gelu = true contradicts"):
        of("glyphclip", quick_gelu=True)
    with pytest.raises(UserError, match=r"backbone.mean"):
        of("glyphclip", mean=HALF, std=HALF)


# --- torchvision and timm ---------------------------------------------------------------------------------


def test_published_weights_of_torchvision_decide_for_a_file():
    for model in ("resnet50", "efficientnet_v2_l", "swin_t", "densenet121"):
        found = of(f"torchvision/{model}", "x.pth")
        for entry in torchvision.models.get_model_weights(model):
            views = entry.transforms()
            assert (found.mean, found.std) == (tuple(views.mean), tuple(views.std))
    assert of("torchvision/efficientnet_v2_l", "x.pth").mean == HALF  # the others have ImageNet's
    with pytest.raises(UserError, match=r"give mean and std in.*IMAGENET1K_FEATURES"):
        of("torchvision/vgg16", "x.pth")
    assert of("torchvision/vgg16").mean == IMAGENET[0]
    with pytest.raises(UserError, match=r"backbone.quick_gelu: torchvision/resnet50 has no such choice"):
        of("torchvision/resnet50", "x.pth", quick_gelu=True)


def test_tags_of_timm_decide_for_a_file():
    model = "vit_base_patch16_224"
    with pytest.raises(UserError, match=r"give mean and std in.*for dino, mae"):
        of(f"timm/{model}", "x.pth")
    for tag in ("dino", "augreg_in21k"):  # a tag in the name says which weights the file holds
        entry = timm.models.get_pretrained_cfg(f"{model}.{tag}")
        found = of(f"timm/{model}.{tag}", "x.pth")
        assert (found.mean, found.std) == (entry.mean, entry.std)
    with pytest.raises(UserError, match="contradicts the weights 'dino'"):
        of(f"timm/{model}.dino", "x.pth", mean=HALF, std=HALF)
    with pytest.raises(UserError, match="no pretrained tag 'dinno'; did you mean 'dino'"):
        of(f"timm/{model}.dinno", "x.pth")
    agreed = of("timm/resnet50", "x.pth")
    assert (agreed.quick_gelu, agreed.mean, agreed.std) == (None, *IMAGENET)
    assert "a1_in1k" in agreed.remark


def test_timm_has_another_model_for_weights_with_quick_gelu():
    model = "vit_base_patch16_clip_224"
    with pytest.raises(UserError, match=r"use 'timm/vit_base_patch16_clip_quickgelu_224.openai'"):
        of(f"timm/{model}.openai", "x.pth")
    with pytest.raises(UserError, match=r"give quick_gelu in.*true for .*openai"):
        of(f"timm/{model}", "x.pth")
    assert of(f"timm/{model}.laion2b", "x.pth").quick_gelu is False
    assert of(f"timm/{model}", "x.pth", quick_gelu=False).quick_gelu is False
    assert of("timm/vit_base_patch16_clip_quickgelu_224", "x.pth").quick_gelu is True
    with pytest.raises(UserError, match="use 'timm/vit_base_patch16_clip_224'"):
        of("timm/vit_base_patch16_clip_quickgelu_224", "x.pth", quick_gelu=False)


def test_published_means_follow_the_order_of_the_channels():
    rgb, bgr = (of("torchvision/resnet50", "x.pth", channels=channels) for channels in ("rgb", "bgr"))
    assert bgr.mean == rgb.mean[::-1]
    assert bgr.std == rgb.std[::-1]
    given = (104.0, 117.0, 123.0)
    caffe = of("torchvision/resnet50", "x.pth", channels="bgr", scale=255.0, mean=given, std=(1.0,) * 3)
    assert caffe.mean == given
    assert not caffe.remark


# --- what is built ----------------------------------------------------------------------------------------


def true_model(name, quick_gelu):
    """A model with large weights in its blocks, where the activations differ, built by open_clip alone."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = open_clip.create_model(name, pretrained=None, quick_gelu=quick_gelu).eval()
        for key, value in model.named_parameters():
            if "resblocks" in key and value.ndim == 2:
                value.data.mul_(6)
            if key.endswith("bn3.weight"):
                value.data.normal_(1, 0.2)
    return model


@pytest.fixture
def tags(tmp_path, monkeypatch):
    """Tags "quick" and "plain" of the tiny models, as open_clip lists its own, and their true models."""

    def publish(name):
        models, entries = {}, {}
        for tag, quick, mean in (("quick", True, CLIP[0]), ("plain", False, HALF)):
            models[tag] = true_model(name, quick)
            file = tmp_path / f"{name}-{tag}.safetensors"
            save_file({k: v.contiguous() for k, v in models[tag].state_dict().items()}, file)
            said = {"quick_gelu": True} if quick else {}
            entries[tag] = {"file": str(file), "mean": mean, "std": CLIP[1], **said}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, entries)
        return models

    return publish


def features(model, mean, images):
    with torch.no_grad():
        shaped = [torch.tensor(values).view(3, 1, 1) for values in (mean, CLIP[1])]
        texts = model.encode_text(open_clip.get_tokenizer("tiny-rn")(TEXTS))
        return model.encode_image((images - shaped[0]) / shaped[1]), texts


@pytest.mark.parametrize("name", ["tiny-rn", "tiny-vit", "tiny-timm"])
def test_towers_with_a_tag_are_those_that_were_trained(name, tags):
    models = tags(name)
    images = torch.rand(2, 3, 64, 64)
    found = {}
    for tag, mean in (("quick", CLIP[0]), ("plain", HALF)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # open_clip warns where it builds another activation
            backbone = load_backbone(BackboneSpec(f"open_clip/{name}", tag), 64)
        image, text = features(models[tag], mean, images)
        with torch.no_grad():
            assert torch.allclose(backbone.features(images), image, atol=1e-5)
        assert torch.allclose(backbone.encode_text(TEXTS), text, atol=1e-5)
        found[tag] = image, text
    for quick, plain in zip(found["quick"], found["plain"], strict=True):
        assert not torch.allclose(quick, plain, atol=1e-4)  # the test would see a wrong one


def test_a_file_is_built_as_the_tags_agree_or_as_it_is_said(tags, tmp_path, monkeypatch):
    models = tags("tiny-vit")
    file = str(tmp_path / "tiny-vit-quick.safetensors")
    images = torch.rand(2, 3, 64, 64)
    image, text = features(models["quick"], CLIP[0], images)
    with pytest.raises(UserError, match="give quick_gelu and mean and std"):
        load_backbone(BackboneSpec("open_clip/tiny-vit", file), 64)
    said = BackboneSpec("open_clip/tiny-vit", file, quick_gelu=True, mean=CLIP[0], std=CLIP[1])
    monkeypatch.delitem(open_clip.pretrained._PRETRAINED["tiny-vit"], "plain")
    for spec in (said, BackboneSpec("open_clip/tiny-vit", file)):
        backbone = load_backbone(spec, 64)
        with torch.no_grad():
            assert torch.allclose(backbone.features(images), image, atol=1e-5)
        assert torch.allclose(backbone.encode_text(TEXTS), text, atol=1e-5)


def test_a_library_that_ignores_the_activation_is_noticed(tags, monkeypatch):
    tags("tiny-vit")
    create = open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", lambda *args, quick_gelu, **rest: create(*args, **rest))
    with pytest.raises(UserError, match="built without QuickGELU, which these weights need"):
        load_backbone(BackboneSpec("open_clip/tiny-vit", "quick"), 64)

    def one_tower(*args, quick_gelu, **rest):
        model = create(*args, quick_gelu=quick_gelu, **rest)
        model.visual.transformer.resblocks[1].mlp.gelu = nn.GELU()
        return model

    monkeypatch.setattr(open_clip, "create_model", one_tower)
    with pytest.raises(UserError, match=r"1 blocks, visual.transformer.resblocks.1 first"):
        load_backbone(BackboneSpec("open_clip/tiny-vit", "quick"), 64)


def test_a_damaged_file_of_a_tag_says_how_to_get_it_again(tags, tmp_path):
    tags("tiny-vit")
    save_file({"x": torch.zeros(1)}, tmp_path / "tiny-vit-quick.safetensors")
    with pytest.raises(UserError, match=r"quick\.safetensors cannot be loaded .*delete it"):
        load_backbone(BackboneSpec("open_clip/tiny-vit", "quick"), 64)
    (tmp_path / "tiny-vit-quick.safetensors").write_text("<!DOCTYPE html>")
    with pytest.raises(UserError, match="an HTML page"):
        load_backbone(BackboneSpec("open_clip/tiny-vit", "quick"), 64)


def test_messages_of_the_library_are_shown_but_the_expected_one(monkeypatch, caplog):
    load_backbone(BackboneSpec("open_clip/tiny-rn"), 64)
    assert not caplog.records  # "Model initialized randomly" is what was asked for
    create = open_clip.create_model

    def talkative(*args, **rest):
        logging.warning("the pooling has changed")
        warnings.warn("the tokenizer is another one", stacklevel=1)
        return create(*args, **rest)

    monkeypatch.setattr(open_clip, "create_model", talkative)
    with pytest.warns(UserWarning, match="the tokenizer is another one"):
        load_backbone(BackboneSpec("open_clip/tiny-rn"), 64)
    assert [record.getMessage() for record in caplog.records] == ["the pooling has changed"]
    logging.getLogger().warning("No pretrained weights loaded for model x")
    assert len(caplog.records) == 2  # only while a model is built


def test_quick_gelu_of_a_model_without_own_transformers_is_refused(tmp_path, monkeypatch):
    # A timm tower and a text tower from Hugging Face: neither reads the field.
    config = {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "resnet10t", "image_size": 64, "timm_pool": "avg"},
        "text_cfg": {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny-foreign.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    create = open_clip.create_model

    def foreign(*args, **rest):
        model = create(*args, **rest)
        model.transformer = nn.Identity()  # as where the text tower is another library's
        return model

    monkeypatch.setattr(open_clip, "create_model", foreign)
    with pytest.raises(UserError, match="quick_gelu = true has no effect"):
        load_backbone(BackboneSpec("open_clip/tiny-foreign", quick_gelu=True), 64)
