import dataclasses
import math

import pytest
import timm.layers.ml_decoder
import torch
from torch.nn import functional as F

import methods
from methods.backbones import BackboneSpec, load_backbone
from methods.errors import UserError
from methods.fields import identified
from methods.parts.heads import HEADS, MLDecoder
from methods.parts.linear import LinearHyper


def literal(decoder, local):
    """ML-Decoder image by image, query by query, head by head."""
    heads, dim = decoder.attention.num_heads, decoder.attention.embed_dim
    size = dim // heads
    per_group = decoder.group_weight.shape[2]
    in_q, in_k, in_v = decoder.attention.in_proj_weight.chunk(3)
    bias_q, bias_k, bias_v = decoder.attention.in_proj_bias.chunk(3)

    def norm(x, layer):
        return layer.weight * (x - x.mean()) / torch.sqrt(x.var(correction=0) + layer.eps) + layer.bias

    rows = []
    for image in local:
        memory = [torch.clamp(decoder.embed.weight @ place + decoder.embed.bias, min=0) for place in image]
        logits = []
        for group, query in enumerate(decoder.queries):
            x = norm(query + query, decoder.query_norm)
            seen = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                q = (in_q @ x + bias_q)[part]
                scores = [float(q @ (in_k @ m + bias_k)[part]) / math.sqrt(size) for m in memory]
                weights = [math.exp(score) for score in scores]
                values = [
                    w / sum(weights) * (in_v @ m + bias_v)[part] for w, m in zip(weights, memory, strict=True)
                ]
                seen.append(sum(values))
            out = decoder.attention.out_proj
            x = norm(x + out.weight @ torch.cat(seen) + out.bias, decoder.attention_norm)
            hidden = torch.clamp(decoder.expand.weight @ x + decoder.expand.bias, min=0)
            x = norm(x + decoder.contract.weight @ hidden + decoder.contract.bias, decoder.output_norm)
            logits += [float(x @ decoder.group_weight[group, :, place]) for place in range(per_group)]
        rows.append(logits[: decoder.num_classes])
    return torch.tensor(rows, dtype=local.dtype)


def disturbed(module):
    """Norms and biases away from one and zero, so that leaving one out would be seen."""
    generator = torch.Generator().manual_seed(4)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        assert parameter.requires_grad == (name != "queries")
    return module


@pytest.mark.parametrize(("classes", "groups"), [(5, 100), (7, 3), (6, 3)])
def test_ml_decoder_equals_a_literal_loop(classes, groups):
    torch.manual_seed(0)
    decoder = disturbed(MLDecoder(10, classes, groups, dim=16, heads=4, hidden=12)).double()
    local = torch.randn(2, 6, 10, dtype=torch.float64)
    with torch.no_grad():
        found = decoder(local)
        expected = literal(decoder, local)
    assert found.shape == (2, classes)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("classes", [20, 130])
def test_ml_decoder_equals_that_of_timm(classes):
    # timm has the official code; in evaluation mode its dropout is off.
    torch.manual_seed(0)
    official = timm.layers.ml_decoder.MLDecoder(classes, decoder_embedding=64, initial_num_features=32).eval()
    for parameter in official.parameters():
        if parameter.ndim == 1:  # norms and biases away from one and zero
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    ours = MLDecoder(32, classes, dim=64)
    layer = official.decoder.layers[0]
    official.decoder = layer  # a stack of one; recent versions of torch cannot call it as a stack
    pairs = [
        (ours.embed, official.embed_standart),
        (ours.query_norm, layer.norm1),
        (ours.attention, layer.multihead_attn),
        (ours.attention_norm, layer.norm2),
        (ours.expand, layer.linear1),
        (ours.contract, layer.linear2),
        (ours.output_norm, layer.norm3),
    ]
    for mine, theirs in pairs:
        mine.load_state_dict(theirs.state_dict())
    for mine, theirs in (
        (ours.group_weight, official.duplicate_pooling),
        (ours.queries, official.query_embed.weight),
    ):
        assert mine.shape == theirs.shape
        mine.data.copy_(theirs)
    maps = torch.randn(3, 32, 4, 5)
    with torch.no_grad():
        expected = official(maps)
        found = ours(maps.flatten(2).transpose(1, 2)) + official.duplicate_pooling_bias
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_queries_follow_from_the_seed_and_are_never_trained(load, task):
    first, second = (HEADS["ml_decoder"](load(), task, "match", 20.0).decoder for _ in range(2))
    assert torch.equal(first.queries, second.queries)
    other = dataclasses.replace(task, seed=task.seed + 1)
    assert not torch.equal(HEADS["ml_decoder"](load(), other, "match", 20.0).decoder.queries, first.queries)
    method = methods.create("supervised", backbone=load(), task=task, head="ml_decoder")
    assert "classifier.decoder.queries" in method.frozen_names
    assert "classifier.decoder.queries" not in method.training_state()


BACKBONES = {
    "tiny-rn": None,
    "tiny-vit": None,
    "torchvision/squeezenet1_1": 64,
    "timm/test_vit": 96,
}


def tower(name, load):
    size = BACKBONES[name]
    return load(name) if size is None else load_backbone(BackboneSpec(name), size)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_every_kind_of_backbone(head, backbone, load, task, make_batch):
    vision = tower(backbone, load)
    batch = make_batch(labelled=2, unlabelled=2, size=vision.resolution)
    method = methods.create("fixmatch", backbone=vision, task=task, head=head).train()
    output = method(batch)
    loss = output.losses["labelled"] + output.losses["unlabelled"]
    assert torch.isfinite(loss)
    loss.backward()
    grouped = [p for group in method.param_groups() for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in method.parameters() if p.requires_grad}
    assert all(p.grad is not None for p in grouped)  # else DistributedDataParallel would wait for it
    assert (
        sum(float(p.grad.abs().sum()) for p in method.classifier.backbone.parameters() if p.requires_grad) > 0
    )
    logits = torch.randn(8, 4)
    before = method.classifier.bias.detach().clone()
    method.calibrate(logits)
    assert torch.equal(method.classifier.bias, before) == (head == "linear")  # as in CAP's code


@pytest.mark.parametrize("head", [head for head in HEADS if head != "match"])
def test_heads_keep_the_contract(head, load, task, make_batch):
    # "match" is what the contract test runs; float64 shows that losses of parts add up.
    method = methods.create("fixmatch", backbone=load(), task=task, head=head).double().train()
    batch = make_batch(labelled=3, unlabelled=2)
    floats = {
        field.name: getattr(batch, field.name).double()
        for field in dataclasses.fields(batch)
        if torch.is_tensor(getattr(batch, field.name)) and getattr(batch, field.name).is_floating_point()
    }
    batch = dataclasses.replace(batch, **floats)
    whole = method(batch)
    again = method(batch)
    assert torch.equal(whole.losses["labelled"], again.losses["labelled"])

    def rows(index):
        names = ("weak_labelled", "strong_labelled", "targets", "labelled")
        none = {n: getattr(batch, n)[:0] for n in ("unlabelled", "weak_unlabelled", "strong_unlabelled")}
        return dataclasses.replace(batch, **{n: getattr(batch, n)[index] for n in names}, **none)

    parts = [method(rows(torch.tensor(index))).losses["labelled"] for index in ([0, 2], [1])]
    assert whole.losses["labelled"].dtype == torch.float64
    torch.testing.assert_close(whole.losses["labelled"], sum(parts), rtol=1e-10, atol=0)
    empty = method(rows(torch.tensor([], dtype=torch.long)))
    sum(empty.losses.values()).backward()
    assert all(p.grad is not None for group in method.param_groups() for p in group["params"])
    method = methods.create("fixmatch", backbone=load(), task=task, head=head).eval()
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert method.predict(images).dtype == torch.float32


def test_plain_heads_are_what_their_names_say(load, task):
    backbone = load_backbone(BackboneSpec("torchvision/squeezenet1_1"), 64)
    images = torch.rand(2, 3, 64, 64)
    linear = HEADS["linear"](backbone, task, "match", 20.0)
    features = backbone.features(images)
    assert torch.allclose(linear(images), F.linear(features, linear.weight, linear.bias), atol=1e-5)
    reach = features.shape[1] ** -0.5  # torch.nn.Linear's start, and nothing is calibrated
    assert float(linear.bias.detach().abs().max()) <= reach
    assert float(linear.weight.detach().abs().max()) <= reach
    assert not linear.calibrated
    cosine = HEADS["cosine"](backbone, task, "match", 7.0)
    angle = F.cosine_similarity(features[:, None], cosine.weight[None], dim=-1)
    assert torch.allclose(cosine(images), 7 * angle + cosine.bias, atol=1e-5)
    with torch.no_grad():
        cosine.weight *= 3
    assert torch.allclose(cosine(images), 7 * angle + cosine.bias, atol=1e-5)


def test_cosine_starts_at_the_texts_like_match(load, task):
    vlm = load()
    images = torch.rand(2, 3, 64, 64)
    match, cosine = (HEADS[head](vlm, task, "match", 20.0) for head in ("match", "cosine"))
    assert torch.allclose(match(images), cosine(images), atol=1e-4)


@pytest.mark.parametrize("head", ["linear", "ml_decoder"])
@pytest.mark.parametrize("options", [{"init": "text"}, {"init": "random"}, {"scale": 10.0}])
def test_options_that_a_head_does_not_have_are_refused_by_name(head, options):
    (name,) = options
    message = f"^{name} = .* belongs to the heads 'match' and 'cosine'; leave it out with head = '{head}'$"
    with pytest.raises(UserError, match=message):
        methods.hyper("fixmatch", head=head, **options)
    methods.hyper("fixmatch", head="cosine", **options)


def test_unknown_heads_name_the_nearest():
    with pytest.raises(UserError, match="did you mean 'ml_decoder'"):
        methods.hyper("supervised", head="mldecoder")
    with pytest.raises(UserError, match="did you mean 'ml_decoder'"):
        LinearHyper(head="mldecoder")


@pytest.mark.parametrize("name", ["supervised", "fixmatch"])
def test_the_head_of_earlier_results_is_left_out_of_the_identity(name):
    assert "head" not in identified(methods.hyper(name))
    assert identified(methods.hyper(name, head="match")) == identified(methods.hyper(name))
    assert identified(methods.hyper(name, head="linear"))["head"] == "linear"


@pytest.mark.parametrize("name", methods.available())
def test_later_fields_default_to_the_value_of_earlier_results(name):
    # A run is built from its identity: what is left out there takes the default.
    hyper = methods.get(name).Hyper()
    for field, value in getattr(hyper, "later", {}).items():
        assert getattr(hyper, field) == value


def test_methods_with_the_same_head_share_their_warm_up():
    fixmatch = methods.get("fixmatch")
    decoder = fixmatch.warmup_hyper(methods.hyper("fixmatch", head="ml_decoder", positive=0.8))
    assert decoder == methods.hyper("supervised", head="ml_decoder")
    assert decoder != fixmatch.warmup_hyper(methods.hyper("fixmatch"))
