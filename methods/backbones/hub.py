"""Files of the Hugging Face hub that a backbone reads besides its weights: tokenizer and text configuration.

Some models of open_clip (SigLIP, those with a Hugging Face text encoder) have a tokenizer that is no part of
the package. It is fetched when the model is built, which on a node without a network is too late. So planning
looks whether it is here, and `prepare --weights` fetches it and loads it as a run will. A run takes both from
the hub's cache and never asks the hub for what is there: without a route to it, each question would wait for
its answer. Nothing here imports torch before something is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.backbones.hub_cache import cache_folder, cached, folder_name, is_settled, offline, reach
from methods.backbones.open_clip_models import model_config
from methods.backbones.spec import BackboneSpec
from methods.errors import UserError, first_line

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
"""Files one of which holds a tokenizer's vocabulary, whatever its kind."""
DECIDING = ("config.json", "tokenizer_config.json")
"""Files that decide which kind of tokenizer reads the vocabulary, and with which special tokens.

Of each the cache must say whether the repository has it. Without a network transformers loads nothing while
that is open for the first, and another tokenizer, without a word, if only the second is missing.
"""


@dataclass(frozen=True)
class HubPart:
    """What a backbone needs from one repository of the hub.

    Attributes:
        what: "tokenizer" or "text configuration".
        spec: the backbone.
        repository: on the hub, such as "timm/ViT-B-16-SigLIP".
    """

    what: str
    spec: BackboneSpec
    repository: str

    def files(self) -> tuple[Path, ...]:
        """Its files in the hub's cache; empty if it is not here."""
        if self.what == "tokenizer":
            names = (
                *TOKENIZER_FILES,
                *DECIDING,
                "special_tokens_map.json",
                "added_tokens.json",
                "merges.txt",
            )
            found = {name: cached(self.repository, name) for name in names}
            if not any(found[name] for name in TOKENIZER_FILES):
                return ()
        else:
            found = {"config.json": cached(self.repository, "config.json")}
        return tuple(path for path in found.values() if path is not None)

    def lack(self) -> str:
        """What keeps a run without a network from loading it, by the names in the cache; "" for nothing."""
        if not self.files():
            return "is not here"
        asked = DECIDING if self.what == "tokenizer" else ()
        unknown = [name for name in asked if not is_settled(self.repository, name)]
        if unknown:
            return (
                f"is not here as a whole: the cache has neither {' nor '.join(unknown)} nor a note that the "
                "repository has none"
            )
        return ""

    def bring(self) -> str:
        """One line: how to get it here."""
        # Not `hf download`: transformers asks for files that a repository lacks, and offline it must find
        # noted in the cache that they do not exist, which only its own loader does.
        loader = "AutoTokenizer" if self.what == "tokenizer" else "AutoConfig"
        load = f"from transformers import {loader} as A; A.from_pretrained('{self.repository}')"
        return (
            f'where there is a network, `python -c "{load}"`; then copy its whole folder '
            f"{folder_name(self.repository)} into {cache_folder()} here (HF_HUB_CACHE names that folder)"
        )

    def load(self) -> Any:
        """Load it from the cache, as a run does; the hub is not asked.

        Returns:
            open_clip's tokenizer; or the text configuration of transformers.

        Raises:
            UserError: it is not here, or cannot be loaded.
        """
        lack = self.lack()
        if lack:
            raise UserError(f"{self} {lack}; {self.bring()}")
        try:
            with offline():
                if self.what == "tokenizer":
                    import open_clip

                    tokenizer = open_clip.get_tokenizer(self.spec.model)
                    tokenizer(["a photo"])  # pads, for which it needs a token
                    return tokenizer
                import transformers

                return transformers.AutoConfig.from_pretrained(self.repository)
        except Exception as error:  # tokenizers, transformers and open_clip have their own
            raise UserError(
                f"{self} in {cache_folder()} cannot be loaded ({first_line(error)}); delete its folder "
                f"{folder_name(self.repository)} there, and {self.bring()}"
            ) from error

    def fetch(self) -> Any:
        """Have it here so that a run without a network can load it: from the cache, or else from the hub.

        Returns:
            As `load`.

        Raises:
            UserError: it cannot be fetched; or what is here, fetched or not, cannot be loaded.
        """
        try:
            return self.load()
        except UserError as error:
            problem = error
        lack = self.lack()
        import transformers

        loader = transformers.AutoTokenizer if self.what == "tokenizer" else transformers.AutoConfig
        try:
            reach()
            loader.from_pretrained(self.repository)
        except Exception as error:  # requests, huggingface_hub, tokenizers and transformers have their own
            if not lack:  # it is the same damaged file
                raise problem from error
            raise UserError(
                f"{self} {lack}, and cannot be fetched ({first_line(error)}); {self.bring()}"
            ) from error
        return self.load()

    def __str__(self) -> str:
        return f"the {self.what} {self.repository!r} of {self.spec.name}"


def parts(spec: BackboneSpec) -> tuple[HubPart, ...]:
    """What a backbone needs from the hub besides its weights; for most models nothing.

    Raises:
        UserError: unknown model.
    """
    if spec.family != "open_clip":
        return ()
    text = model_config(spec)["text_cfg"]
    found = []
    if text.get("hf_tokenizer_name"):
        found.append(HubPart("tokenizer", spec, text["hf_tokenizer_name"]))
    if text.get("hf_model_name"):
        found.append(HubPart("text configuration", spec, text["hf_model_name"]))
    return tuple(found)


def tokenizer_of(spec: BackboneSpec) -> Any:
    """Open_clip's tokenizer of a model; what the model needs from the hub is fetched if it is not here.

    Raises:
        UserError: see `HubPart.fetch`.
    """
    found = {part.what: part.fetch() for part in parts(spec)}
    if "tokenizer" in found:
        return found["tokenizer"]
    import open_clip

    return open_clip.get_tokenizer(spec.model)
