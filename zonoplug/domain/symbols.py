"""Identity and origin of noise symbols.

A symbol id is an integer, unique within one propagation and growing with time. Two zonotopes of one propagation may
share a symbol; they are aligned by id, never by position.

In a batch each element is a zonotope of its own. Elements share the numbering, but the same id may come from another
neuron in another element (only neurons that need a symbol get one): `Origin.index` says which.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SymbolIds = Tensor  # (k,) int64 on the CPU, no id twice


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where a range of symbols was born.

    Attributes:
        node: name of the graph node (an input, or the operator that introduced the error).
        first: id of the first symbol of the range.
        index: (batch, count) flat coordinate in the node's output of each symbol, per batch element.
    """

    node: str
    first: int
    index: Tensor

    @property
    def count(self) -> int:
        return int(self.index.shape[1])


class SymbolSource:
    """Hands out fresh symbol ids during one propagation and remembers where they came from."""

    def __init__(self) -> None:
        self.origins: list[Origin] = []
        self._next = 0

    @classmethod
    def beyond(cls, symbols: SymbolIds) -> SymbolSource:
        """A source for a zonotope that stands alone: its ids begin behind the largest of `symbols`."""
        source = cls()
        source._next = int(symbols.max()) + 1 if symbols.numel() else 0
        return source

    def fresh(self, node: str, index: Tensor) -> SymbolIds:
        """New ids for the coordinates `index` (batch, count) of `node`. Returns (count,) increasing ids."""
        origin = Origin(node, self._next, index)
        self.origins.append(origin)
        self._next += origin.count
        return torch.arange(origin.first, self._next)

    def copy(self) -> SymbolSource:
        """A source that continues from here on its own: for a second propagation from the same inputs."""
        other = SymbolSource()
        other.origins, other._next = list(self.origins), self._next
        return other


def merge_ids(*groups: SymbolIds) -> SymbolIds:
    """The sorted union of id vectors, each (k_i,)."""
    if not groups:
        return torch.zeros(0, dtype=torch.int64)
    ids = groups[0] if len(groups) == 1 else torch.cat(groups)
    return ids if bool((ids[1:] > ids[:-1]).all()) else torch.unique(ids)
