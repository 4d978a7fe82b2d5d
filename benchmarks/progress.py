"""Progress: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

LOG_SECONDS = 15.0


class Progress:
    """Shows long work and the lines that workers print.

    Args:
        interactive: bars (True) or plain lines (False); by default whether stderr is a terminal.
    """

    def __init__(self, interactive: bool | None = None) -> None:
        self.interactive = sys.stderr.isatty() if interactive is None else interactive
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        """Print one line without breaking a bar."""
        with self._lock:
            if self.interactive:
                tqdm.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr, flush=True)

    def counter(self, title: str) -> Callable[[int, int], None]:
        """A callback (done, total) that shows how far `title` is, with rate and time left."""
        state: dict[str, float] = {}
        bar: list[tqdm] = []

        def show(done: int, total: int) -> None:
            now = time.monotonic()
            if not state:
                state.update(start=now, shown=now, first=done)
                if done >= total:
                    return  # it was all there before
            if self.interactive:
                if not bar:
                    bar.append(tqdm(total=total, initial=done, desc=title, unit="", leave=False))
                bar[0].update(done - bar[0].n)
                if done >= total:
                    bar[0].close()
            elif done >= total or now - state["shown"] >= LOG_SECONDS:
                state["shown"] = now
                rate = (done - state["first"]) / max(now - state["start"], 1e-9)
                left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
                self.line(f"{title}: {done}/{total} ({rate:.0f}/s{left})")

        return show
