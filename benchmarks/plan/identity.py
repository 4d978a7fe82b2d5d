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
        seed: seed of the split, the batches, the views and the initialisation.
        split_digest: SHA-256 of the labelled subset.
        method: registered name.
        version: the method's version; it grows when its numbers change.
        hyper: every hyper-parameter, defaults included.
        backbone: the fields of its `BackboneSpec` without the path of the weights, and their SHA-256.
        recipe: the part of the recipe that this kind of method reads.
        code: SHA-256 of the source of a method that is not part of this repository; "" for those that
            are, whose identity has no such field.
        label: the row in a table; not part of the identity.
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

    def identity(self) -> dict[str, Any]:
        """Return everything that can change the number, as plain JSON values."""
        values = dataclasses.asdict(self)
        del values["label"]
        if not self.code:
            del values["code"]
        values["dataset"] = {"alias": self.dataset, "digest": values.pop("dataset_digest")}
        return values

    @cached_property
    def run_id(self) -> str:
        """SHA-256 of the identity, 64 hexadecimal digits."""
        return digest(self.identity())

    def record(self) -> dict[str, Any]:
        """Return the identity with the label, as `spec.json` and `result.json` hold it."""
        return {**self.identity(), "label": self.label or self.method}

    @property
    def title(self) -> str:
        """A name for people: method, dataset, ratio, seed and the start of the identity."""
        name = self.label or self.method
        return one_line(f"{name} · {self.dataset} p={self.ratio:g} seed={self.seed} [{self.run_id[:8]}]")
