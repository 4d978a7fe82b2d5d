"""What lies in the Hugging Face hub's cache here, and whether there is a way to the hub; no torch."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REACH_SECONDS = 10.0
"""For which a sign of life of the hub is waited; what its library waits for the head of a file."""


def cached(repository: str, name: str) -> Path | None:
    """A file of a repository in the hub's cache, at its newest revision here; the network is not asked."""
    # By its module: the package's own attribute may be a lazy one that imports more.
    lookup = importlib.import_module("huggingface_hub.file_download").try_to_load_from_cache
    found = lookup(repository, name)
    return Path(found) if isinstance(found, str) else None


def is_settled(repository: str, name: str) -> bool:
    """Whether a file is in the cache, or noted there as one that the repository does not have.

    The libraries' own loaders make such notes; a plain download of a repository (`hf download`) makes none.
    """
    lookup = importlib.import_module("huggingface_hub.file_download").try_to_load_from_cache
    return lookup(repository, name) is not None  # the note is an object of its own


def cache_folder() -> Path:
    """The folder of the hub's cache."""
    return Path(importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE)


def folder_name(repository: str) -> str:
    """The name of a repository's folder in the cache."""
    return f"models--{repository.replace('/', '--')}"


def reach() -> None:
    """Ask the hub for a sign of life, once, before something is fetched from it.

    Its library asks for every file six times, and those that use it for several files: on a machine without a
    route minutes would pass before they say so.

    Raises:
        Exception: whatever the library's HTTP client raises where no answer comes, or HF_HUB_OFFLINE is set.
    """
    constants = importlib.import_module("huggingface_hub.constants")
    session = importlib.import_module("huggingface_hub.utils").get_session()
    session.head(constants.ENDPOINT, timeout=REACH_SECONDS)  # any answer is a sign of life


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Have the hub's library, and those that use it, ask no network, as HF_HUB_OFFLINE=1 does.

    Libraries ask the hub whether what is in the cache is still the newest, and for other things; on a node
    without a route each question waits for its answer. The variable itself is read once, at the import.
    """
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
