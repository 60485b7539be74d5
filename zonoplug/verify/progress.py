"""A line on a terminal that says how far a search is."""

from __future__ import annotations

import time
from typing import TextIO

from zonoplug.verify.statistics import Statistics

EVERY_SECONDS = 0.2
WIDTH = 79
CLEAR = "\r\x1b[K"


class ProgressLine:
    """Overwrites one line of a terminal, a few times a second.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._start = time.monotonic()
        self._next = self._start

    def show(self, stage: str, seen: Statistics) -> None:
        """Show the counts, unless that was done a moment ago."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY_SECONDS
        self._stream.write(CLEAR + progress_text(stage, seen, now - self._start)[:WIDTH])
        self._stream.flush()

    def clear(self) -> None:
        """Take the line away."""
        self._stream.write(CLEAR)
        self._stream.flush()


def progress_text(stage: str, seen: Statistics, seconds: float) -> str:
    """Seconds, open subdomains, worst margin, fraction proved and the stage."""
    parts = [f"{seconds:.1f} s"]
    if seen.worst_margin is not None:
        parts += [f"{seen.open} open", f"worst margin {seen.worst_margin:.3g}", f"{seen.volume_proved:.1%} proved"]
    return ", ".join([*parts, stage])
