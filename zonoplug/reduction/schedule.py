"""When to reduce, and to how many symbols: apart from how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from zonoplug.domain.zonotope import Zonotope
from zonoplug.errors import SettingError


class Schedule(ABC):
    """Decides after each operator that introduces symbols whether the zonotope is reduced."""

    @abstractmethod
    def budget(self, zonotope: Zonotope) -> int | None:
        """The number of symbols to reduce to, or None to leave the zonotope alone."""


@dataclass(frozen=True, slots=True)
class Never(Schedule):
    """Keep every symbol."""

    def budget(self, zonotope: Zonotope) -> int | None:
        return None


@dataclass(frozen=True, slots=True)
class AboveSymbols(Schedule):
    """Reduce to `max_symbols` whenever there are more. Raises SettingError if it is negative."""

    max_symbols: int

    def __post_init__(self) -> None:
        if self.max_symbols < 0:
            raise SettingError(f"AboveSymbols: max_symbols is {self.max_symbols}, and must be at least 0.")

    def budget(self, zonotope: Zonotope) -> int | None:
        return self.max_symbols if zonotope.num_symbols > self.max_symbols else None
