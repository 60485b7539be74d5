"""The time limit of one verification."""

from __future__ import annotations

import time


class Deadline:
    """Counts from its creation.

    Args:
        seconds: the limit.
        spent: seconds that had passed already when it was made.
    """

    def __init__(self, seconds: float, spent: float = 0.0) -> None:
        self._start = time.monotonic() - spent
        self._seconds = seconds

    @property
    def elapsed_seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def left_seconds(self) -> float:
        return self._seconds - self.elapsed_seconds

    @property
    def passed(self) -> bool:
        return self.left_seconds <= 0

    def part(self, fraction: float) -> Deadline:
        """A deadline at a fraction of what is left now."""
        return Deadline(max(self.left_seconds, 0.0) * fraction)
