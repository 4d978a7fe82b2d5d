"""Progress: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

LOG_SECONDS = 15.0


class Progress:
    """Shows the progress of long work, and the lines that workers print.

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
        """A callback (done, total) that shows the progress of `title`, its rate and the time left.

        What is done at the first call was done before: rate and time left do not count it. A new
        count begins when `done` falls or `total` changes.
        """
        return _Count(self, title)


class _Count:
    """One count, from its value at the first call to its total."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress, self.title = progress, title
        self.total, self.last = -1, -1
        self.bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if total != self.total or done < self.last:
            self._close()
            self.total, self.last, self.first = total, done, done
            self.start = self.shown = now
            if self.progress.interactive and done < total:
                self.bar = tqdm(total=total, initial=done, desc=self.title, unit="", leave=False)
            return
        moved, self.last = done > self.last, done
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
            if done >= total:
                self._close()
        elif moved and not self.progress.interactive and (done >= total or now - self.shown >= LOG_SECONDS):
            self.shown = now
            self.progress.line(f"{self.title}: {done}/{total} ({self._pace(now)})")

    def _pace(self, now: float) -> str:
        rate = (self.last - self.first) / max(now - self.start, 1e-9)
        text = f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s"
        left = self.total - self.last
        return f"{text}, {duration(left / rate)} left" if rate and left > 0 else text

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def duration(seconds: float) -> str:
    """A duration as text: "45 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def silent(title: str) -> Callable[[int, int], None]:
    """Replaces `Progress.counter` where no progress is shown."""
    return lambda done, total: None
