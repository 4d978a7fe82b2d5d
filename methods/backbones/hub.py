"""Files of the Hugging Face hub that a backbone reads besides its weights: tokenizer and text configuration.

Some models of open_clip (SigLIP, those with a Hugging Face text encoder) have a tokenizer that is no part of
the package. It is fetched when the model is built, which on a node without a network is too late. So planning
looks whether it is here, and `prepare --weights` fetches it. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from methods.backbones.hub_cache import cache_folder, cached, folder_name
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


@dataclass(frozen=True)
class HubPart:
    """What a backbone needs from one repository of the hub.

    Attributes:
        what: "tokenizer" or "text configuration".
        model: the backbone's name.
        repository: on the hub, such as "timm/ViT-B-16-SigLIP".
    """

    what: str
    model: str
    repository: str

    def files(self) -> tuple[Path, ...]:
        """Its files in the hub's cache; empty if it is not here."""
        if self.what == "tokenizer":
            names = (*TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "merges.txt")
            found = {name: cached(self.repository, name) for name in names}
            if not any(found[name] for name in TOKENIZER_FILES):
                return ()
        else:
            found = {"config.json": cached(self.repository, "config.json")}
        return tuple(path for path in found.values() if path is not None)

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

    def fetch(self) -> None:
        """Load it, from the cache or else from the hub.

        Raises:
            UserError: it cannot be fetched, or what is in the cache cannot be loaded.
        """
        import transformers

        loader = transformers.AutoTokenizer if self.what == "tokenizer" else transformers.AutoConfig
        here = bool(self.files())
        try:
            loader.from_pretrained(self.repository, local_files_only=here)
        except Exception as error:  # requests, huggingface_hub, tokenizers and transformers have their own
            reason = first_line(error)
            problem = f"in {cache_folder()} cannot be loaded" if here else "cannot be fetched"
            raise UserError(
                f"the {self.what} {self.repository!r} of {self.model} {problem} ({reason}); {self.bring()}"
            ) from error


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
        found.append(HubPart("tokenizer", spec.name, text["hf_tokenizer_name"]))
    if text.get("hf_model_name"):
        found.append(HubPart("text configuration", spec.name, text["hf_model_name"]))
    return tuple(found)


def tokenizer_options(spec: BackboneSpec) -> dict[str, bool]:
    """Options of `open_clip.get_tokenizer`: of what is in the hub's cache the hub is not asked.

    Without a route to it, each question would wait for its answer.
    """
    wanted = [part for part in parts(spec) if part.what == "tokenizer"]
    return {"local_files_only": True} if wanted and wanted[0].files() else {}
