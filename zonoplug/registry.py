"""An extension point: a noun, the names known under it, and the entry-point group where third parties add more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from zonoplug.errors import UnknownNameError, ZonoplugError

T = TypeVar("T")


class Registry(Generic[T]):
    """Named members of one kind.

    Args:
        noun: what a member is called in messages, for example "reduction".
        group: entry-point group whose entries are loaded at the first look-up, for example "zonoplug.reductions".
    """

    def __init__(self, noun: str, group: str) -> None:
        self.noun = noun
        self.group = group
        self._members: dict[str, T] = {}
        self._entry_points_loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files a member under `name`, which is found in capital and small letters.

        Raises:
            ZonoplugError: the name is taken by another member.
        """

        def file(member: T) -> T:
            if (taken := self._found(name)) is not None and taken is not member:
                raise ZonoplugError(f"The {self.noun} {name!r} exists already: choose another name.")
            self._members[name] = member
            return member

        return file

    def get(self, name: str) -> T:
        """The member called `name`, whatever the case. Raises UnknownNameError, which lists the known names."""
        self._load_entry_points()
        member = self._found(name)
        if member is None:
            raise UnknownNameError(self.noun, name, self._members)
        return member

    def _found(self, name: str) -> T | None:
        return next((member for known, member in self._members.items() if known.casefold() == name.casefold()), None)

    def names(self) -> list[str]:
        """All known names, sorted."""
        self._load_entry_points()
        return sorted(self._members)

    def items(self) -> Iterator[tuple[str, T]]:
        """Names and members, sorted by name."""
        return iter([(name, self._members[name]) for name in self.names()])

    def _load_entry_points(self) -> None:
        if not self._entry_points_loaded:
            self._entry_points_loaded = True
            for point in entry_points(group=self.group):
                self.register(point.name)(point.load())
