"""Tokenizers and text configurations of the hub, from its cache and without a network."""

from __future__ import annotations

import hashlib
import json

import open_clip
import pytest
import torch
from open_clip import pretrained

from methods.backbones import open_clip_models
from methods.backbones.hub import parts
from methods.backbones.load import bring, load_backbone
from methods.backbones.open_clip_models import cached_tag_file, tag_file
from methods.backbones.spec import BackboneSpec
from methods.errors import UserError
from tests.hub import BERT, MODEL, WORDS, bert_files, fill, tokenizer_files

SIGLIP = BackboneSpec("open_clip/ViT-B-16-SigLIP")
REPOSITORY = "timm/ViT-B-16-SigLIP"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub; a question to any network is an error, and noted in its folder's `asked`."""
    asked = []

    def no_network(*args: object, **options: object) -> None:
        asked.append(args)
        raise OSError("there is no network in this test")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("socket.create_connection", no_network)
    yield tmp_path / "hub"
    assert asked == []


def refused(spec: BackboneSpec) -> str:
    """What `load` says of the first part of a backbone; the same is known beforehand."""
    part = parts(spec)[0]
    assert part.lack()
    with pytest.raises(UserError) as error:
        part.load()
    assert "\n" not in str(error.value)
    assert part.lack() in str(error.value)
    return str(error.value)


def test_what_transformers_leaves_in_the_cache_is_enough(cache):
    fill(cache, REPOSITORY, tokenizer_files(), ["config.json", "added_tokens.json", "tokenizer.model"])
    (part,) = parts(SIGLIP)
    assert part.lack() == ""
    (ids,) = part.load()(["A photo  of the cat."])  # open_clip lowers the case for these models
    words = ["a", "photo", "of", "the", "cat"]
    assert ids.tolist()[:5] == [WORDS.index(word) for word in words]
    assert set(ids.tolist()[5:]) == {WORDS.index("<pad>")}
    bring(SIGLIP)  # nothing is asked for


def test_a_plain_download_is_enough_if_the_repository_has_both_configurations(cache):
    fill(cache, REPOSITORY, bert_files())
    (part,) = parts(SIGLIP)
    assert part.lack() == ""
    assert part.load()(["dog"])[0, 0] == WORDS.index("dog")


def test_a_plain_download_of_a_repository_without_a_configuration_is_not(cache):
    """As `hf download` leaves SigLIP: transformers cannot know that there is no config.json."""
    fill(cache, REPOSITORY, tokenizer_files())
    message = refused(SIGLIP)
    assert "neither config.json nor a note" in message
    assert "AutoTokenizer as A; A.from_pretrained('timm/ViT-B-16-SigLIP')" in message
    assert str(cache) in message


@pytest.mark.parametrize(
    ("missing", "said"),
    [("tokenizer_config.json", "neither tokenizer_config.json nor"), ("tokenizer.json", "is not here;")],
)
def test_a_part_of_a_tokenizer_is_none(cache, missing, said):
    """Without its configuration transformers would load it, with other special tokens, and say nothing."""
    files = {name: content for name, content in tokenizer_files().items() if name != missing}
    fill(cache, REPOSITORY, files, ["config.json"])
    assert said in refused(SIGLIP)


def test_a_configuration_that_the_repository_does_not_have_is_not_missed(cache):
    files = {name: content for name, content in tokenizer_files().items() if name != "tokenizer_config.json"}
    fill(cache, REPOSITORY, files, ["config.json", "tokenizer_config.json"])
    assert parts(SIGLIP)[0].lack() == ""


@pytest.fixture
def words_model(tmp_path):
    """Name of a small model of open_clip whose tokenizer and text encoder lie in repository "words/bert"."""
    (tmp_path / "words-bert.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(tmp_path / "words-bert.json")
    yield "open_clip/words-bert"
    del open_clip.factory._MODEL_CONFIGS["words-bert"]


def test_a_text_tower_of_the_hub_is_built_from_the_cache(cache, words_model):
    fill(cache, "words/bert", bert_files())
    spec = BackboneSpec(words_model)
    assert [(part.what, part.lack()) for part in parts(spec)] == [
        ("tokenizer", ""),
        ("text configuration", ""),
    ]
    model = load_backbone(spec, 64)
    encoder = model.text_tower.inner
    assert encoder.config.hidden_size == BERT["hidden_size"]
    assert encoder.transformer.embeddings.word_embeddings.weight.shape == (len(WORDS), BERT["hidden_size"])
    features = model.encode_text(["a photo of the cat", "dog"])
    ids = torch.tensor([[3, 4, 5, 6, 8], [9, 0, 0, 0, 0]])
    assert torch.allclose(features, encoder(ids), atol=1e-6)


def test_what_is_absent_of_a_text_tower_is_named(cache, words_model):
    tokenizer, text = parts(BackboneSpec(words_model))
    fill(cache, "words/bert", tokenizer_files(), ["config.json"])
    assert tokenizer.lack() == ""
    assert text.lack() == "is not here"
    with pytest.raises(UserError, match="the text configuration 'words/bert' of open_clip/words-bert is not"):
        text.load()


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_damaged_file_is_named_before_anything_starts(cache, words_model, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    content = bert_files()
    fill(cache, "words/bert", {**content, name: content[name][:20]})
    assert [part.lack() for part in parts(BackboneSpec(words_model))] == ["", ""]
    with pytest.raises(
        UserError, match=r"'words/bert' of open_clip/words-bert in .* cannot be loaded"
    ) as error:
        bring(BackboneSpec(words_model))
    assert "delete its folder models--words--bert there" in str(error.value)


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_one_question_is_enough(tmp_path, monkeypatch, offline):
    """The hub's library asks six times for each file, with growing pauses: a minute for a tokenizer."""
    asked = []

    def no_network(*args: object, **options: object) -> None:
        asked.append(args[0])
        raise OSError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("socket.create_connection", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(
        UserError, match=r"'timm/ViT-B-16-SigLIP' of .* is not here, and cannot be fetched \("
    ):
        bring(SIGLIP)
    with pytest.raises(UserError, match=r"cannot fetch the weights 'openai' of RN101 \("):
        bring(BackboneSpec("open_clip/RN101", "openai"))
    assert len(asked) == (0 if offline else 2)


# -- weights that a tag names by an address ----------------------------------------------------------


def addresses() -> list[str]:
    entries = [pretrained.get_pretrained_cfg(*each) for each in open_clip.list_pretrained()]
    return sorted({entry["url"] for entry in entries if entry.get("url")})


def test_the_checksum_of_an_address_is_the_one_that_open_clip_compares(tmp_path, monkeypatch):
    """Its own function is asked, with a hash that is ours, and with another one."""

    class FetchedError(Exception):
        pass

    def fetch(url: str) -> None:
        raise FetchedError

    monkeypatch.setattr("urllib.request.urlopen", fetch)
    found = addresses()
    assert len({open_clip_models._sha256_in(url) for url in found}) > 20
    for url in found:
        said = open_clip_models._sha256_in(url)
        (tmp_path / url.rpartition("/")[2]).touch()
        for digest, fetches in ((said.ljust(64, "0"), False), ("x" * 64, bool(said))):
            fake = type("Sha", (), {"hexdigest": lambda self, digest=digest: digest})
            with monkeypatch.context() as patch:
                patch.setattr("open_clip.pretrained.hashlib.sha256", lambda content, fake=fake: fake())
                patch.setattr("warnings.warn", lambda *args: None)
                try:
                    pretrained.download_pretrained_from_url(url, str(tmp_path))
                    assert not fetches, url
                except FetchedError:
                    assert fetches, url


def test_a_file_with_another_checksum_is_not_here_and_is_fetched_by_who_may(tmp_path, monkeypatch):
    content = b"weights"
    digest = "0ae34d2b8b5bd2bb3b4cbcbd4e4b85b3ee1a6ecf5a5f8df4e3fd7e5d2a5cde84"
    asked = []

    def fetch(url: str) -> None:
        asked.append(url)
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", fetch)
    monkeypatch.setenv("HOME", str(tmp_path))
    url = f"https://openaipublic.azureedge.net/clip/models/{digest}/RN101.pt"
    monkeypatch.setattr(open_clip_models, "tag_entry", lambda model, tag: {"url": url})
    spec = BackboneSpec("open_clip/RN101", "openai")
    place = tmp_path / ".cache" / "clip" / "RN101.pt"
    assert cached_tag_file(spec) is None
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    assert cached_tag_file(spec) is None
    assert asked == []
    with pytest.warns(UserWarning, match="does not match"), pytest.raises(UserError, match="no route"):
        tag_file(spec)
    assert asked == [url]
    url = url.replace(digest, hashlib.sha256(content).hexdigest())
    assert tag_file(spec) == cached_tag_file(spec) == place
    assert len(asked) == 1
