import open_clip
import pytest
import torch
from torch.nn import functional as F

from methods.backbones import BackboneSpec, load_backbone
from methods.backbones.clip import VisionLanguageModel
from methods.errors import UserError

TEXTS = ["a photo of a cat.", "x", "a rather longer text about a traffic light at night."]


def reference(name):
    """The same random model, built by open_clip alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.create_model(name, pretrained=None).eval()


def wrap(name, model, resolution=64):
    return VisionLanguageModel(model, open_clip.get_tokenizer(name), resolution, name)


def clip_input(images):
    return (images - torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)) / torch.tensor(
        open_clip.OPENAI_DATASET_STD
    ).view(3, 1, 1)


@pytest.mark.parametrize("name", ["tiny-rn", "tiny-vit", "tiny-vit-qk", "tiny-timm", "tiny-coca"])
def test_features_equal_encode_image(name):
    model = reference(name)
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        expected = model.encode_image(clip_input(images), normalize=False)
        found = wrap(name, model).features(images)
    assert found.shape == (3, 24)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-rn", "tiny-vit", "tiny-vit-qk", "tiny-bidirectional", "tiny-coca"])
def test_cut_text_equals_the_full_length(name):
    model = reference(name)
    ids = open_clip.get_tokenizer(name)(TEXTS)
    with torch.no_grad():
        expected = model.encode_text(ids, normalize=False)
    found = wrap(name, model).encode_text(TEXTS)
    assert found.shape == (3, 24)
    assert torch.allclose(found, expected, atol=1e-5)


def test_causal_towers_run_on_the_longest_text_in_use_only(load, monkeypatch):
    lengths = []
    for name in ("tiny-rn", "tiny-bidirectional"):
        vlm = load(name)
        block = vlm.text.transformer.resblocks[0]
        block.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
        vlm.encode_text(["a cat", "two dogs here"])
    assert lengths == [5, 32]  # start, three words, end; and the full length where it is not exact


@pytest.mark.parametrize("name", ["tiny-rn", "tiny-vit-qk", "tiny-bidirectional"])
def test_prompt_embeddings_of_words_equal_their_text(name, load):
    vlm = load(name)
    ids, end = vlm.text_tower.tokenise(TEXTS)
    embeddings = vlm.text_tower.token_embedding(ids)[:, : int(end.max()) + 3]
    if name == "tiny-bidirectional":
        embeddings = embeddings[:, : int(end.max()) + 1]
    found = vlm.encode_prompts(embeddings, end)
    assert torch.allclose(found, vlm.encode_text(TEXTS), atol=1e-5)


def test_class_token_towers_take_no_learnt_prompts(load):
    with pytest.raises(UserError, match="learnt prompts"):
        load("tiny-coca").encode_prompts(torch.zeros(1, 5, 32), torch.tensor([4]))


def attention_pool_values(pool, tokens):
    """Value and output projection per location, one by one."""
    rows = [
        F.linear(
            F.linear(token, pool.v_proj.weight, pool.v_proj.bias),
            pool.c_proj.weight,
            pool.c_proj.bias,
        )
        for token in tokens
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("mean", [False, True])
def test_dense_features_of_an_attention_pool(load, positional, mean):
    vlm = load("tiny-rn", 96)
    images = torch.rand(2, 3, 96, 96)
    maps = []
    vlm.visual.layer4.register_forward_hook(lambda *args: maps.append(args[2].detach()))
    with torch.no_grad():
        whole, local = vlm.dense_features(images, positional_embedding=positional, mean_token=mean)
        assert len(maps) == 1  # one pass of the trunk
        assert torch.allclose(whole, vlm.features(images), atol=1e-5)
        for i in range(2):
            tokens = [maps[0][i, :, r, c] for r in range(3) for c in range(3)]
            places = vlm.visual.attnpool.positional_embedding[1:]
            if mean:
                tokens = [torch.stack(tokens).mean(dim=0), *tokens]
                places = vlm.visual.attnpool.positional_embedding
            if positional:
                tokens = [token + place for token, place in zip(tokens, places, strict=True)]
            expected = attention_pool_values(vlm.visual.attnpool, tokens)
            assert torch.allclose(local[i], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-vit-qk"])
def test_dense_features_of_a_vit_are_each_patch_attending_to_itself(load, name):
    vlm = load(name)
    images = torch.rand(2, 3, 64, 64)
    visual = vlm.visual
    with torch.no_grad():
        whole, local = vlm.dense_features(images)
        assert torch.allclose(whole, vlm.features(images), atol=1e-5)
        assert local.shape == (2, 16, 24)
        # A sequence of one token attends to itself: run the last block on every token alone.
        x = visual._embeds(vlm.normalise(images))
        for block in visual.transformer.resblocks[:-1]:
            x = block(x)
        alone = visual.transformer.resblocks[-1](x.reshape(-1, 1, x.shape[-1])).reshape(x.shape)
        expected = visual.ln_post(alone)[:, 1:] @ visual.proj
    assert torch.allclose(local, expected, atol=1e-5)
    _, double = vlm.double().dense_features(images.double())  # precision "fp64"
    assert double.dtype == torch.float64
    assert torch.allclose(local.double(), double, atol=1e-5)


def test_dense_features_say_when_they_do_not_exist(load):
    images = torch.rand(1, 3, 64, 64)
    for name in ("tiny-timm", "tiny-coca"):
        vlm = load(name)
        assert not vlm.has_dense_features
        with pytest.raises(UserError, match="per-location"):
            vlm.dense_features(images)
    with pytest.raises(UserError, match="attention-pool"):
        load("tiny-vit").dense_features(images, mean_token=True)


@pytest.mark.parametrize(("name", "count"), [("tiny-rn", 9), ("tiny-vit", 36)])
def test_other_resolutions_interpolate_the_positional_embedding(name, count):
    native = load_backbone(BackboneSpec(f"open_clip/{name}"), 64)
    larger = load_backbone(BackboneSpec(f"open_clip/{name}"), 96)
    holder = {"tiny-rn": lambda v: v.visual.attnpool, "tiny-vit": lambda v: v.visual}[name]
    before, after = (holder(v).positional_embedding.detach() for v in (native, larger))
    assert torch.equal(before[0], after[0])
    side, new = round((len(before) - 1) ** 0.5), round(count**0.5)
    grid = before[1:].T.reshape(1, -1, side, side)
    expected = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    assert torch.allclose(after[1:].T.reshape(expected[0].shape), expected[0], atol=1e-6)
    assert larger.features(torch.rand(1, 3, 96, 96)).shape == (1, 24)
    assert larger.dense_features(torch.rand(1, 3, 96, 96))[1].shape == (1, count, 24)


def test_impossible_resolutions_are_refused_with_the_nearest_ones():
    with pytest.raises(UserError, match="use 64 or 96"):
        load_backbone(BackboneSpec("open_clip/tiny-rn"), 80)
    with pytest.raises(UserError, match="only takes its pretraining resolution"):
        load_backbone(BackboneSpec("open_clip/tiny-timm"), 96)


def test_text_tower_is_frozen_and_image_tower_is_not(load):
    vlm = load().train()
    assert not any(p.requires_grad for p in vlm.text.parameters())
    assert all(p.requires_grad for p in vlm.visual.parameters())
    assert not vlm.text.training
    assert vlm.visual.training
    assert isinstance(vlm.logit_scale, float)
    assert vlm.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)


def test_view_without_text_shares_the_image_tower(load):
    vlm = load()
    view = vlm.without_text()
    assert view.visual is vlm.visual
    assert not any(name.startswith("text") for name in view.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(view.features(images), vlm.features(images))
    with pytest.raises(UserError, match="no text tower"):
        view.encode_text(["a cat"])
    assert vlm.encode_text(["a cat"]).shape == (1, 24)  # the original keeps its own


def test_local_checkpoint_of_the_same_model(tmp_path, load):
    vlm = load()
    model = reference("tiny-rn")
    file = tmp_path / "other.pt"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    torch.save({"state_dict": {f"module.{k}": v.half() for k, v in model.state_dict().items()}}, file)
    found = load_backbone(BackboneSpec("open_clip/tiny-rn", weights=str(file)), 64)
    for name, value in found.visual.state_dict().items():
        expected = model.visual.state_dict()[name].half().float()
        assert torch.allclose(value.float(), expected, atol=1e-6), name
    assert next(found.parameters()).dtype == torch.float32
    del vlm


def test_checkpoint_of_another_model_is_one_line(tmp_path):
    file = tmp_path / "other.pt"
    torch.save(reference("tiny-vit").state_dict(), file)
    with pytest.raises(UserError) as error:
        load_backbone(BackboneSpec("open_clip/tiny-rn", weights=str(file)), 64)
    assert "\n" not in str(error.value)
    assert "missing" in str(error.value)
    assert "and" in str(error.value)


def test_unknown_model_and_tag_name_the_nearest():
    with pytest.raises(UserError, match="did you mean 'RN101'"):
        load_backbone(BackboneSpec("open_clip/RN1O1"), 224)
    with pytest.raises(UserError, match="did you mean 'openai'"):
        load_backbone(BackboneSpec("open_clip/RN101", weights="openal"), 224)


def test_tag_without_a_network_says_how_to_go_on(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("Network is unreachable\nmore lines")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", fail)
    with pytest.raises(UserError) as error:
        load_backbone(BackboneSpec("open_clip/RN101", weights="openai"), 224)
    message = str(error.value)
    assert "\n" not in message
    assert "clip.openai" in message or "openaipublic" in message  # the source to download from
    assert "set weights to its path" in message
