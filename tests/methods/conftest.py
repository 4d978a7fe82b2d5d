"""Tiny randomly initialised open_clip models, tasks and batches for the tests of methods/."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch

from methods.backbones import BackboneSpec, load_backbone
from methods.base import Batch, Task

torch.set_num_threads(1)

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
RN = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None}
VIT = {"image_size": 64, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16}
MODELS = {
    "tiny-rn": {"embed_dim": 24, "vision_cfg": RN, "text_cfg": TEXT},
    "tiny-rn-224": {"embed_dim": 24, "vision_cfg": {**RN, "image_size": 224}, "text_cfg": TEXT},
    "tiny-vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT, "custom_text": True},
    "tiny-vit-qk": {
        "embed_dim": 24,
        "vision_cfg": {**VIT, "qk_norm": True, "pool_type": "avg"},
        "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 49407, "qk_norm": True},
        "custom_text": True,
    },
    "tiny-bidirectional": {
        "embed_dim": 24,
        "vision_cfg": VIT,
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last", "context_length": 32},
        "custom_text": True,
    },
    "tiny-timm": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "resnet10t", "image_size": 64, "timm_pool": "avg"},
        "text_cfg": TEXT,
    },
    "tiny-coca": {
        "embed_dim": 24,
        "vision_cfg": {
            **VIT,
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "attn_pooler_queries": 4,
            "output_tokens": True,
        },
        "text_cfg": {**TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {
            "context_length": 76,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
            "attn_pooler_heads": 2,
        },
        "custom_text": True,
    },
}
NAMES = ("cat", "traffic light", "dog", "hair drier")


@pytest.fixture(scope="session", autouse=True)
def _tiny_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_clip")
    for name, config in MODELS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture
def load():
    """Function from a tiny model's name (and a resolution) to a fresh backbone."""

    def build(name="tiny-rn", resolution=64):
        return wake_up(load_backbone(BackboneSpec(f"open_clip/{name}"), resolution))

    return build


def wake_up(backbone):
    """Undo initialisations that make a random network constant (zero residuals, BN at identity)."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in backbone.named_parameters():
        if name.endswith(("bn3.weight", "positional_embedding", "class_embedding")):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
    return backbone


@pytest.fixture
def task():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(8, len(NAMES), generator=generator) < 0.4).float()
    labels[0], labels[1] = 1, 0  # every class occurs, with both values
    return Task(NAMES, NAMES, labels, num_unlabelled=10, seed=3)


@pytest.fixture
def make_batch(task):
    """Function to a fixed random batch."""

    def build(labelled=4, unlabelled=6, size=64):
        generator = torch.Generator().manual_seed(7)

        def images(count):
            return torch.rand(count, 3, size, size, generator=generator)

        return Batch(
            epoch=0,
            step=0,
            labelled=torch.arange(labelled),
            weak_labelled=images(labelled),
            strong_labelled=images(labelled),
            targets=task.labels[:labelled],
            unlabelled=torch.arange(unlabelled),
            weak_unlabelled=images(unlabelled),
            strong_unlabelled=images(unlabelled),
            global_labelled=labelled,
            global_unlabelled=unlabelled,
        )

    return build
