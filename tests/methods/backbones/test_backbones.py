import hashlib

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from methods.backbones import BackboneSpec, load_backbone
from methods.backbones.load import weights_digest
from methods.errors import UserError


@pytest.fixture
def squeezenet(tmp_path):
    """A torchvision SqueezeNet and its weights as a half-precision safetensors file."""
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1().eval()
    file = tmp_path / "squeezenet.safetensors"
    save_file({name: value.half() for name, value in model.state_dict().items()}, file)
    model.load_state_dict({name: value.half().float() for name, value in model.state_dict().items()})
    return model, file


@pytest.mark.parametrize("pool", ["avg", "max", "mean+max"])
def test_caffe_style_input_and_pooling(squeezenet, pool):
    model, file = squeezenet
    spec = BackboneSpec(
        "torchvision/squeezenet1_1",
        weights=str(file),
        channels="bgr",
        scale=255.0,
        mean=(104.0, 117.0, 123.0),
        std=(1.0, 1.0, 1.0),
        pool=pool,
    )
    backbone = load_backbone(spec, 67)
    images = torch.rand(2, 3, 67, 67)
    blue, green, red = images[:, 2] * 255 - 104, images[:, 1] * 255 - 117, images[:, 0] * 255 - 123
    with torch.no_grad():
        maps = model.features(torch.stack([blue, green, red], dim=1))
        found = backbone.features(images)
    mean, largest = maps.flatten(2).mean(dim=2), maps.flatten(2).max(dim=2).values
    expected = {"avg": mean, "max": largest, "mean+max": torch.cat([mean, largest], dim=1)}[pool]
    assert backbone.dim == expected.shape[1]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert not backbone.is_vlm


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small"])
def test_torchvision_features_are_those_before_the_classifier(name, tmp_path):
    torch.manual_seed(1)
    model = getattr(torchvision.models, name)().eval()
    file = tmp_path / f"{name}.pth"
    torch.save(model.state_dict(), file)
    backbone = load_backbone(BackboneSpec(f"torchvision/{name}", weights=str(file)), 64)
    seen = []
    head = model.fc if name == "resnet18" else model.classifier
    head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = torch.rand(2, 3, 64, 64)
    normalise = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        model(normalise(images))
        found = backbone.features(images)
    assert torch.allclose(found, seen[0], rtol=1e-4, atol=1e-4)


def test_no_normalisation_is_said_explicitly(squeezenet):
    model, file = squeezenet
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    spec = BackboneSpec("torchvision/squeezenet1_1", weights=str(file), mean=zero, std=one)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.features(images).mean(dim=(2, 3))
        assert torch.allclose(load_backbone(spec, 64).features(images), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "pool", "factor"), [("resnet10t", "avg", 1), ("resnet10t", "mean+max", 2)])
def test_timm_networks(name, pool, factor, tmp_path):
    torch.manual_seed(2)
    model = timm.create_model(name, pretrained=False).eval()
    file = tmp_path / "timm.safetensors"
    save_file(model.state_dict(), file)
    backbone = load_backbone(BackboneSpec(f"timm/{name}", weights=str(file), pool=pool), 64)
    assert backbone.dim == factor * model.num_features
    cfg = model.pretrained_cfg
    normalise = torchvision.transforms.Normalize(cfg["mean"], cfg["std"])
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = model.forward_features(normalise(images))
        found = backbone.features(images)
    assert torch.allclose(found[:, : model.num_features], maps.mean(dim=(2, 3)), atol=1e-4)


def test_timm_transformer_pools_as_it_was_trained():
    backbone = load_backbone(BackboneSpec("timm/test_vit"), 96)
    model = backbone.trunk
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        tokens = model.forward_features(backbone.normalise(images))
        expected = model.forward_head(tokens, pre_logits=True)
        assert torch.allclose(backbone.features(images), expected, atol=1e-5)


def test_file_that_does_not_fit_names_the_first_tensors(tmp_path, squeezenet):
    model, _ = squeezenet
    state = dict(model.state_dict())
    del state["features.0.weight"]
    state["features.99.weight"] = torch.zeros(1)
    state["features.3.squeeze.bias"] = torch.zeros(7)
    file = tmp_path / "broken.safetensors"
    save_file(state, file)
    with pytest.raises(UserError) as error:
        load_backbone(BackboneSpec("torchvision/squeezenet1_1", weights=str(file)), 64)
    message = str(error.value)
    assert "\n" not in message
    assert "missing: features.0.weight" in message
    assert "unknown: features.99.weight" in message
    assert "features.3.squeeze.bias (7,) instead of (16,)" in message


def test_unreadable_and_absent_files(tmp_path):
    file = tmp_path / "weights.pth"
    with pytest.raises(UserError, match="does not exist"):
        load_backbone(BackboneSpec("torchvision/resnet18", weights=str(file)), 64)
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(BackboneSpec("torchvision/resnet18", weights=str(file)), 64)
    torch.save({"a": 1}, file)
    with pytest.raises(UserError, match="does not hold a state dict"):
        load_backbone(BackboneSpec("torchvision/resnet18", weights=str(file)), 64)


def test_files_with_code_in_them_are_refused(tmp_path):
    file = tmp_path / "model.pth"
    torch.save(nn.Linear(2, 2), file)  # a pickled module
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(BackboneSpec("torchvision/resnet18", weights=str(file)), 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "glyphclp"}, "unknown backbone 'glyphclp'; did you mean 'glyphclip'"),
        ({"name": "torchvison/resnet50"}, "did you mean 'torchvision/<model>'"),
        ({"name": "open_clip"}, "write one of"),
        ({"name": "timm/x", "channels": "bgrr"}, "did you mean 'bgr'"),
        ({"name": "timm/x", "pool": "mean"}, "backbone.pool: unknown value 'mean'"),
        ({"name": "timm/x", "scale": 255.0}, "mean and std"),
        ({"name": "timm/x", "mean": (0.0, 0.0, 0.0)}, "mean and std together"),
        ({"name": "timm/x", "mean": (0.0,), "std": (1.0,)}, "three numbers"),
        ({"name": "glyphclip", "pool": "max"}, "own pooling"),
    ],
)
def test_bad_specs(options, message):
    with pytest.raises(UserError, match=message):
        BackboneSpec(**options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnet5O", "did you mean 'resnet50'"),
        ("torchvision/vit_b_16", "use timm/<model>"),
        ("timm/resnet10x", "did you mean 'resnet10t'"),
    ],
)
def test_unknown_networks_name_the_nearest(name, message):
    with pytest.raises(UserError, match=message):
        load_backbone(BackboneSpec(name), 64)


def test_resolution_that_does_not_work_is_one_line():
    with pytest.raises(UserError, match="does not work at 8 pixels"):
        load_backbone(BackboneSpec("torchvision/squeezenet1_1"), 8)


def test_digest_is_that_of_the_file_and_follows_it(squeezenet):
    _, file = squeezenet
    spec = BackboneSpec("torchvision/squeezenet1_1", weights=str(file))
    assert weights_digest(spec) == hashlib.sha256(file.read_bytes()).hexdigest()
    save_file({"x": torch.zeros(3)}, file)
    assert weights_digest(spec) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert weights_digest(BackboneSpec("torchvision/squeezenet1_1")) == "random"


def test_random_weights_are_always_the_same_and_are_named():
    first, second = (load_backbone(BackboneSpec("torchvision/squeezenet1_1"), 64) for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert "random weights" in first.description


def test_batch_norm_keeps_its_statistics_in_training(load):
    backbone = load()
    images = torch.rand(4, 3, 64, 64)
    expected = backbone.features(images)
    backbone.train()
    assert backbone.visual.training
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)
    before = [m.running_mean.clone() for m in norms]
    assert torch.allclose(backbone.features(images), expected, atol=1e-6)
    assert all(torch.equal(m.running_mean, b) for m, b in zip(norms, before, strict=True))
    assert all(m.weight.requires_grad for m in norms)  # scale and shift are trained
    backbone.freeze_bn = False
    backbone.train()
    backbone.features(images)
    assert not any(torch.equal(m.running_mean, b) for m, b in zip(norms, before, strict=True))


def test_frozen_backbone_stays_in_evaluation_mode(load):
    backbone = load().requires_grad_(False).train()
    assert not any(module.training for module in backbone.visual.modules())


def test_empty_batches_give_empty_features(load):
    # With several processes a rank can be left without a labelled image in a step.
    for backbone in (load("tiny-rn"), load("tiny-vit")):
        assert backbone.features(torch.zeros(0, 3, 64, 64)).shape == (0, 24)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "torchvision/densenet121", "timm/resnet10t"])
def test_the_map_of_a_convolutional_network_is_what_it_pools(name):
    backbone = load_backbone(BackboneSpec(name), 64)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found = backbone.feature_map(images)
        assert found.shape == (2, 4, backbone.map_dim)
        assert torch.allclose(found.mean(dim=1), backbone.features(images), atol=1e-5)
        assert backbone.feature_map(images[:0]).shape == (0, 4, backbone.map_dim)


def test_locations_of_a_map_are_counted_row_by_row(squeezenet):
    model, file = squeezenet
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    spec = BackboneSpec("torchvision/squeezenet1_1", str(file), mean=zero, std=one, pool="mean+max")
    backbone = load_backbone(spec, 64)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.features(images)
        found = backbone.feature_map(images)
    assert backbone.dim == 2 * backbone.map_dim == 1024
    width = expected.shape[3]
    for row in range(expected.shape[2]):
        for column in range(width):
            assert torch.allclose(found[0, row * width + column], expected[0, :, row, column], atol=1e-4)


@pytest.mark.parametrize(("name", "prefix"), [("test_vit", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_the_map_of_a_transformer_is_its_patch_tokens(name, prefix):
    backbone = load_backbone(BackboneSpec(f"timm/{name}"), 96)
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        tokens = backbone.trunk.forward_features(backbone.normalise(images))
        found = backbone.feature_map(images)
    patches = (96 // backbone.trunk.patch_embed.patch_size[0]) ** 2
    assert found.shape == (1, patches, backbone.map_dim)
    assert tokens.shape[1] == patches + prefix
    assert torch.allclose(found, tokens[:, prefix:], atol=1e-5)


def test_channels_of_a_map_come_last_whatever_the_network_says():
    backbone = load_backbone(BackboneSpec("timm/swin_tiny_patch4_window7_224"), 224)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        found = backbone.feature_map(images)
        assert found.shape == (1, 49, 768)
        assert torch.allclose(found.mean(dim=1), backbone.features(images), atol=1e-5)


def test_a_network_without_one_map_says_so():
    backbone = load_backbone(BackboneSpec("timm/coat_tiny"), 64)
    with pytest.raises(UserError, match=r"^timm/coat_tiny \(random weights\) has no single map"):
        backbone.feature_map(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["tiny-rn", "tiny-vit"])
def test_the_map_of_clip_is_its_value_path(load, name):
    backbone = load(name)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        _, local = backbone.dense_features(images)
        assert torch.equal(backbone.feature_map(images), local)
    assert backbone.map_dim == backbone.dim


def test_only_what_the_map_does_not_need_is_frozen(load):
    backbone = load("tiny-rn").train()
    backbone.freeze_pooling()
    frozen = {key for key, value in backbone.visual.named_parameters() if not value.requires_grad}
    pool = "attnpool."
    assert frozen == {f"{pool}positional_embedding"} | {
        f"{pool}{part}_proj.{kind}" for part in "qk" for kind in ("weight", "bias")
    }
    assert backbone.training
    assert all(value.grad is None for value in backbone.parameters())
    plain = load_backbone(BackboneSpec("torchvision/resnet18"), 64)
    plain.freeze_pooling()
    assert all(value.requires_grad for value in plain.parameters())
    frozen_tower = load("tiny-rn").requires_grad_(False)
    frozen_tower.freeze_pooling()  # nothing to do
