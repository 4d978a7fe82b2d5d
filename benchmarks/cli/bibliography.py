"""`tables --bib`: the references of what a table shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from methods.references import cited
from results.files import atomic_write_bytes
from results.store import RunStore


def write(store: RunStore, wanted: Sequence[dict[str, Any]], folder: Path) -> str:
    """Write `references.bib` for the finished runs of a table.

    Args:
        store: where the runs are.
        wanted: the runs, as `results.frames.collect` takes them.
        folder: of the table.

    Returns:
        One line: which file, and for what it has no entry.

    Raises:
        OSError: it cannot be written.
    """
    from results.frames import finished_specs

    specs = finished_specs(store, wanted)
    subjects = [f"method:{spec['method']}" for spec in specs]
    subjects += [f"dataset:{spec['dataset']['alias']}" for spec in specs]
    subjects += [f"backbone:{spec['backbone']['name']}" for spec in specs if "backbone" in spec]
    entries, without = cited(subjects)
    used = [
        f"% {subject}: {', '.join(entry.key for entry in entries if entry.is_of(subject))}"
        for subject in dict.fromkeys(subjects)
        if subject not in without
    ]
    text = "\n".join(used) + "\n\n" + "\n\n".join(entry.text for entry in entries) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / "references.bib", text.encode())
    missing = f"; no reference is known for {', '.join(without)}: cite them yourself" if without else ""
    return f"references.bib: {len(entries)} entries{missing}"
