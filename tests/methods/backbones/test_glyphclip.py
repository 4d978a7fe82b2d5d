"""GlyphCLIP: the shipped weights fit the configuration and rank above chance; parts of its trainer."""

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.data.glyphscenes import captions, clip_model, scenes
from benchmarks.data.glyphscenes import pretrain_clip as pretrain
from benchmarks.data.glyphscenes.classes import SEEDS
from tests.conftest import ROOT

FOLDER = ROOT / "methods" / "backbones" / "glyphclip"


@pytest.fixture(scope="module")
def model():
    """The shipped model, loaded through open_clip alone."""
    torch.set_num_threads(1)
    open_clip.add_model_config(FOLDER / "glyphclip.json")
    return open_clip.create_model("glyphclip", pretrained=str(FOLDER / "glyphclip.safetensors")).eval()


def test_weights_are_small_half_precision_and_have_exactly_the_models_keys(model):
    path = FOLDER / "glyphclip.safetensors"
    assert path.stat().st_size <= 10_000_000
    state = load_file(path)
    model.load_state_dict(state, strict=True)
    floating = [value for value in state.values() if value.is_floating_point()]
    assert {value.dtype for value in floating} == {torch.float16}
    assert all(value.isfinite().all() for value in floating)
    assert next(model.parameters()).dtype == torch.float32


def test_shapes_and_preprocessing(model):
    with torch.no_grad():
        image = model.encode_image(torch.zeros(2, 3, 128, 128))
        tokens = open_clip.get_tokenizer("glyphclip")(["a photo of a sun.", "rain"])
        text = model.encode_text(tokens)
    assert tokens.shape == (2, 77)
    assert image.shape == text.shape == (2, 128)
    assert model.visual.preprocess_cfg["mean"] == clip_model.MEAN
    assert model.visual.preprocess_cfg["std"] == clip_model.STD
    assert model.visual.attnpool.positional_embedding.shape == (17, 256)


def test_zero_shot_is_above_three_times_chance(model):
    result = pretrain.zero_shot(model, 300)
    assert result["mAP"] > 3 * result["chance"]


def test_pre_training_is_judged_on_other_scenes_than_the_test_images(model, monkeypatch):
    render, seen = scenes.render, set()

    def recorded(seed, index, split):
        seen.add((seed, split))
        return render(seed, index, split)

    monkeypatch.setattr(scenes, "render", recorded)
    pretrain.zero_shot(model, 100)
    assert seen == {(SEEDS["glyphscenes-dev"], "test")}
    assert SEEDS["glyphscenes-dev"] != SEEDS["glyphscenes"]


def test_short_texts_have_the_features_of_padded_ones(model):
    vocabulary = clip_model.ShortVocabulary(model)
    texts = ["a photo of a sun.", "there is a big chess king and old moon here."]
    with torch.no_grad():
        short = vocabulary.encode(model, vocabulary.tokens(texts))
        full = model.encode_text(open_clip.get_tokenizer("glyphclip")(texts))
    torch.testing.assert_close(short, full, atol=1e-5, rtol=1e-5)


def test_a_word_outside_the_short_vocabulary_is_an_error(model):
    with pytest.raises(ValueError, match="a word that no template"):
        clip_model.ShortVocabulary(model).tokens(["a photo of a zebra."])


def test_captions_name_some_objects_and_rarely_others():
    rng = np.random.default_rng(0)
    names = ["sun", "cloud", "dice"]
    texts = [captions.caption(rng, names) for _ in range(2000)]
    named = np.mean([[name in text for name in names] for text in texts])
    wrong = np.mean([any(o in text for o in ("anchor", "skull", "comet")) for text in texts])
    assert 0.55 < named < 0.72  # 0.6, and never none of them
    assert 0 < wrong < 0.05
    assert all(any(c in text for c in scenes.class_names()) for text in texts)


def test_word_targets_are_distributions_that_ignore_common_words():
    tokens = torch.tensor([[0, 1, 2], [0, 1, 1], [0, 3, 3], [0, 1, 3]])
    targets = pretrain.word_targets(tokens, 4)
    torch.testing.assert_close(targets.sum(dim=1)[[0, 2, 3]], torch.ones(3))
    assert targets[0].tolist() == [0, 0, 1, 0]
    assert targets[3, 1] == 0
    assert targets[3, 3] == 1


def test_augmented_images_stay_aligned_with_normalised_ones():
    pixels = np.full((4, 64, 64, 3), 128, dtype=np.uint8)
    plain = clip_model.normalise(pixels)
    changed = clip_model.augment(pixels, np.random.default_rng(0))
    assert changed.shape == plain.shape
    # gain within 25 per cent and offset within 0.3 of the normalised value
    assert ((changed - plain).abs() <= 0.25 * plain.abs() + 0.3 + 1e-5).all()


def test_training_writes_weights_that_the_model_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "zero_shot", lambda model, count: {"mAP": 0.0})
    arguments = ["--images", "128", "--icons", "128", "--epochs", "1", "--icon-epochs", "1"]
    assert pretrain.main([*arguments, "--out", str(tmp_path)]) == 0
    assert "stage" in capsys.readouterr().out
    fresh = clip_model.create_model()
    fresh.load_state_dict(load_file(tmp_path / "glyphclip.safetensors"), strict=True)
    assert [p.name for p in tmp_path.iterdir()] == ["glyphclip.safetensors"]
