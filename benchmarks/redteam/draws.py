"""Choices that make an instance: from a seed, from Hypothesis, or from a list that an earlier run recorded."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

Option = TypeVar("Option")


class Draws:
    """Choices from a seed. Every choice is a whole number, and all of them are kept, so that a run can be replayed.

    Args:
        seed: of the whole red team.
        name: of the class; another class gets other numbers from the same seed.
        number: of the instance within its class.
        attempt: of several, where some give nothing.

    Attributes:
        taken: the choices so far.
    """

    def __init__(self, seed: int = 0, name: str = "", number: int = 0, attempt: int = 0) -> None:
        self._source = np.random.default_rng([seed, zlib.crc32(name.encode()), number, attempt])
        self._number = number
        self._arrays: np.random.Generator | None = None
        self.taken: list[int] = []

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        value = self._next(low, high)
        self.taken.append(value)
        return value

    def choice(self, options: Sequence[Option]) -> Option:
        return options[self.integer(0, len(options) - 1)]

    def turn(self, options: Sequence[Option]) -> Option:
        """One option after the other, by the number of the instance: the forms of a class come equally often."""
        place = self._turn(len(options))
        self.taken.append(place)
        return options[place]

    def flag(self, chance: float = 0.5) -> bool:
        """True with about this chance."""
        return self.integer(0, 99) >= round(100 * (1 - chance))

    @property
    def arrays(self) -> np.random.Generator:
        """For weights and points: whole arrays, which nobody needs to see shrink."""
        if self._arrays is None:
            self._arrays = np.random.default_rng(self.integer(0, 2**31))
        return self._arrays

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray[Any, Any]:
        return self.arrays.normal(0.0, scale, shape)

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray[Any, Any]:
        return self.arrays.uniform(low, high, shape)

    def real(self, low: float, high: float) -> float:
        return float(self.arrays.uniform(low, high))

    def _next(self, low: int, high: int) -> int:
        return int(self._source.integers(low, high + 1))

    def _turn(self, count: int) -> int:
        return self._number % count


class Replayed(Draws):
    """The choices of an earlier run; zeros where the list has ended."""

    def __init__(self, taken: Sequence[int]) -> None:
        super().__init__()
        self._left = list(taken)

    def _next(self, low: int, high: int) -> int:
        return min(max(self._left.pop(0) if self._left else low, low), high)

    def _turn(self, count: int) -> int:
        return self._next(0, count - 1)


class Explored(Draws):
    """Choices that Hypothesis makes, varies and shrinks.

    Args:
        data: what `hypothesis.strategies.data()` gives to a test.
    """

    def __init__(self, data: Any) -> None:
        super().__init__()
        self._data = data

    def _next(self, low: int, high: int) -> int:
        from hypothesis import strategies

        return int(self._data.draw(strategies.integers(low, high)))

    def _turn(self, count: int) -> int:
        return self._next(0, count - 1)
