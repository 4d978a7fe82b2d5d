"""A stand-in for the Hugging Face hub: folders as its cache has them, and a server of a few small files.

The cache is laid out as huggingface_hub 2 does it: content in `blobs`, its names in `snapshots/<commit>` as
links, the newest commit in `refs/main`, an empty file in `.no_exist/<commit>` where a library looked for a
file that a repository does not have.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WORDS = ("<pad>", "</s>", "<unk>", "a", "photo", "of", "the", "car", "cat", "dog", ".")
BERT = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
}
"""The config.json of a text encoder of 3,000 parameters."""
MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {
        "hf_model_name": "words/bert",
        "hf_tokenizer_name": "words/bert",
        "hf_proj_type": "linear",
        "context_length": 12,
    },
}
"""An open_clip model whose tokenizer and text encoder lie on the hub, in "words/bert"."""


def tokenizer_files() -> dict[str, bytes]:
    """A tokenizer with one token for each of `WORDS`: what a repository such as SigLIP's holds."""
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", **special}
        ).encode(),
        "special_tokens_map.json": json.dumps(special).encode(),
    }


def bert_files() -> dict[str, bytes]:
    """The files of "words/bert": tokenizer and text configuration."""
    return {**tokenizer_files(), "config.json": json.dumps(BERT).encode()}


def fill(cache: Path, repository: str, files: Mapping[str, bytes], absent: Iterable[str] = ()) -> Path:
    """Put a repository into a cache; returns the folder of its files.

    Args:
        cache: what HF_HUB_CACHE names.
        repository: such as "timm/ViT-B-16-SigLIP".
        files: content by name.
        absent: names that are noted as not in the repository. `hf download` notes none, the loaders of
            transformers all that they looked for.
    """
    place = cache / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    for folder in (place / "refs", place / "blobs", snapshot, place / ".no_exist" / COMMIT):
        folder.mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        blob = place / "blobs" / hashlib.sha1(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    for name in absent:
        (place / ".no_exist" / COMMIT / name).touch()
    return snapshot


class Hub:
    """Serves files as the hub does, on a port of this machine.

    Attributes:
        files: content by repository and name.
        asked: paths of the requests so far, with their method.
        endpoint: its address, for HF_ENDPOINT.
    """

    def __init__(self, files: Mapping[tuple[str, str], bytes]) -> None:
        self.files = dict(files)
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(*hub.answer(self.command, self.path))

            do_HEAD = do_GET  # noqa: N815 - the name is the server's

            def answer(self, code: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response(code)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        """Code, headers and content for a request."""
        self.asked.append(f"{method} {path}")
        parts = path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository = "/".join(parts[2:4])
            names = [name for owner, name in self.files if owner == repository]
            if not names or parts[4:]:  # no such repository, or no such folder in it
                return 404, {"X-Error-Code": "EntryNotFound" if names else "RepoNotFound"}, b"{}"
            listed = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return 200, {"Content-Type": "application/json"}, json.dumps(listed).encode()
        if "resolve" not in parts:
            return 404, {}, b""
        cut = parts.index("resolve")
        content = self.files.get(("/".join(parts[:cut]), "/".join(parts[cut + 2 :])))
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"Entry not found"
        return 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}, content

    def close(self) -> None:
        """Stop; the port is closed."""
        self.server.shutdown()
        self.server.server_close()
