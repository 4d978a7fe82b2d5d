"""What lies in the Hugging Face hub's cache here; nothing imports torch or asks the network."""

from __future__ import annotations

import importlib
from pathlib import Path


def cached(repository: str, name: str) -> Path | None:
    """A file of a repository in the hub's cache, at its newest revision here; the network is not asked."""
    # By its module: the package's own attribute may be a lazy one that imports more.
    lookup = importlib.import_module("huggingface_hub.file_download").try_to_load_from_cache
    found = lookup(repository, name)
    return Path(found) if isinstance(found, str) else None


def cache_folder() -> Path:
    """The folder of the hub's cache."""
    return Path(importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE)


def folder_name(repository: str) -> str:
    """The name of a repository's folder in the cache."""
    return f"models--{repository.replace('/', '--')}"
