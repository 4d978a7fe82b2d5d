"""The run specification and its identity.

A run's identity is the SHA-256 of the canonical JSON of everything that can change its number:
the data (by hash), the split, the method with its version and hyper-parameters, the code of a user's
method (by hash), the backbone with its weights' hash, and the part of the recipe that its kind of method
reads. Paths, host, launcher, number of processes and packing are not in it, so moving a folder re-runs
nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from results.columns import seeds_name, subset_name
from results.text import one_line


def canonical(value: Any) -> str:
    """Return canonical JSON: sorted keys, no spaces, no NaN, ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode("ascii")).hexdigest()


@dataclass(frozen=True)
class RunSpec:
    """One (dataset, ratio, seed, method, backbone, recipe).

    Attributes:
        dataset: name shown in tables (the dataset's alias).
        dataset_digest: SHA-256 over classes, ids, labels, the bytes of the pictures, the rule that decodes
            them and the resolution.
        ratio: labelled share p of the training images, in (0, 1].
        seed: seed of the batches, the views and the initialisation, and of the split if that has none of its
            own.
        split_digest: SHA-256 of the labelled subset.
        method: registered name.
        version: the method's version; it grows when its numbers change.
        hyper: every hyper-parameter, defaults included.
        backbone: the fields of its `BackboneSpec` without the path of the weights, and their SHA-256.
        recipe: the part of the recipe that this kind of method reads.
        code: SHA-256 of the source of a method that is not part of this repository; "" for those that
            are, whose identity has no such field.
        label: the row in a table; not part of the identity.
        split_seed: seed of the labelled subset and of the order of the others; None for ``seed``, and then
            no part of the identity.
        budget: how the labelled images were asked for, "" for a ratio; not part of the identity.
    """

    dataset: str
    dataset_digest: str
    ratio: float
    seed: int
    split_digest: str
    method: str
    version: int
    hyper: dict[str, Any]
    backbone: dict[str, Any]
    recipe: dict[str, Any]
    code: str = ""
    label: str = field(default="", compare=False)
    split_seed: int | None = None
    budget: str = field(default="", compare=False)

    def identity(self) -> dict[str, Any]:
        """Return everything that can change the number, as plain JSON values."""
        values = dataclasses.asdict(self)
        del values["label"], values["budget"]
        if self.split_seed in (None, self.seed):
            del values["split_seed"]
        if not self.code:
            del values["code"]
        values["dataset"] = {"alias": self.dataset, "digest": values.pop("dataset_digest")}
        return values

    @cached_property
    def run_id(self) -> str:
        """SHA-256 of the identity, 64 hexadecimal digits."""
        return digest(self.identity())

    def record(self) -> dict[str, Any]:
        """Return the identity with what names the run, as `spec.json` and `result.json` hold it."""
        split_seed = self.seed if self.split_seed is None else self.split_seed
        budget = {"budget": self.budget} if self.budget else {}
        return {**self.identity(), "label": self.label or self.method, "split_seed": split_seed, **budget}

    @property
    def title(self) -> str:
        """A name for people: method, dataset, ratio, seed and the start of the identity."""
        name = self.label or self.method
        return one_line(f"{name} · {self.dataset} {self.subset} [{self.run_id[:8]}]")

    @property
    def subset(self) -> str:
        """Budget and seeds for people: "p=0.05 seed=1", "100 images split=1 seed=2"."""
        return f"{subset_name(self.ratio, self.budget)} {seeds_name(self.seed, self.split_seed)}"
