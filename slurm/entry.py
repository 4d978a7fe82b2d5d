"""Lets submitit work in a folder of any name, as it submits and in jobs (`python -m slurm.entry FOLDER`).

submitit 1.5 puts the job's number for `%j`, `%A`, `%a` and `%t` wherever they stand in a path, in the name
of the folder too. So patterns are looked for in the names of the files only. SLURM does the same with the
names of logs, where `%%` is one `%`: sbatch is given that. srun (22.05) replaces some of them twice, once
itself and once on the node, so in a folder with a `%` it gets no name, and each task opens its log by itself.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from methods.errors import UserError

_FOLDER = "/ssmll-folder"
"""Stands for the folder while submitit puts its patterns in place."""
_SUBMITIT = "-m submitit.core._submit "
_OURS = "-m slurm.entry "
_LOG_FLAG = "--own-log"
_OWN_LOG = f"{_OURS}{_LOG_FLAG} "


def check(folder: Path) -> None:
    """Refuse a folder that SLURM cannot take a log's name from.

    Raises:
        UserError: it has a backslash, which SLURM drops, or a control character, at which its scripts break.
    """
    if "\\" in str(folder) or re.search(r"[\x00-\x1f\x7f]", str(folder)):
        raise UserError(
            f"{str(folder)!r}: SLURM cannot write logs into a folder with a backslash or a control character "
            "in its path; choose another one with --runs"
        )


def importable(folder: Path | str) -> str:
    """A folder of code as an entry of PYTHONPATH.

    Raises:
        UserError: its path has the sign that separates the entries, so that other code would be found.
    """
    if os.pathsep in str(folder):
        raise UserError(
            f"{folder}: processes find the code by PYTHONPATH, where {os.pathsep!r} ends a path; rename the "
            f"folder, or choose another one without {os.pathsep!r} (--runs, for what SLURM executes)"
        )
    return str(folder)


@contextmanager
def any_folder(folder: Path) -> Iterator[None]:
    """Let submitit submit from a folder inside the block.

    Args:
        folder: absolute; as it is given to submitit's executor.

    Raises:
        RuntimeError: this version of submitit makes its scripts in another way.
    """
    from submitit import SlurmExecutor

    theirs, made = SlurmExecutor._make_submission_file_text, 0
    escaped = str(folder).replace("%", "%%")

    def script(self: SlurmExecutor, command: str, uid: str) -> str:
        nonlocal made
        kept, self.folder = self.folder, Path(_FOLDER)
        try:
            text = theirs(self, command.replace(_SUBMITIT, _OURS), uid)
        finally:
            self.folder = kept
        if escaped != str(folder):
            text = re.sub(rf"^(srun .*?) --output '?{_FOLDER}/[^\s']*'?", r"\1", text, flags=re.MULTILINE)
        text, count = re.subn(
            rf"'?{_FOLDER}(/[^\s']*)'?", lambda found: shlex.quote(escaped + found[1]), text
        )
        if escaped != str(folder):
            text = text.replace(_OURS, _OWN_LOG)
        made += bool(count and _OURS in text)  # `_OWN_LOG` begins with it
        return text

    restore = _plain_paths()
    # On the class: submitit makes another executor for an array.
    SlurmExecutor._make_submission_file_text = script  # type: ignore[method-assign]
    try:
        yield
    finally:
        SlurmExecutor._make_submission_file_text = theirs  # type: ignore[method-assign]
        restore()
    if not made:
        raise RuntimeError("submitit makes the scripts of its jobs in another way now: see slurm/entry.py")


def _plain_paths() -> Any:
    """Have submitit look for patterns in the names of files only; returns what undoes it."""
    from submitit.core.utils import JobPaths

    kept = JobPaths._format_id, JobPaths.__dict__["get_first_id_independent_folder"]

    def formatted(self: JobPaths, path: Path | str) -> Path:
        path = Path(path)
        return path if path == self._folder else self._folder / kept[0](self, path.name)

    def independent(folder: Path | str) -> Path:
        return Path(folder).expanduser().absolute()

    JobPaths._format_id = formatted  # type: ignore[method-assign]
    JobPaths.get_first_id_independent_folder = staticmethod(independent)  # type: ignore[method-assign]

    def restore() -> None:
        JobPaths._format_id = kept[0]  # type: ignore[method-assign]
        JobPaths.get_first_id_independent_folder = kept[1]  # type: ignore[method-assign]

    return restore


def _open_log(folder: str) -> None:
    """Have this process and its children write into the task's log, as srun would have it."""
    import submitit

    os.environ["SUBMITIT_FOLDER"] = folder
    log = os.open(submitit.JobEnvironment().paths.stdout, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)


def main() -> None:
    """What a job's tasks start: submitit's own entry, with the paths that it was submitted with."""
    from submitit.core.submission import submitit_main

    _plain_paths()
    if sys.argv[1:2] == [_LOG_FLAG]:
        del sys.argv[1]
        _open_log(sys.argv[1])
    submitit_main()


if __name__ == "__main__":
    main()
