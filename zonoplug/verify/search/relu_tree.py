"""The plain search on the phases of ReLUs below one subdomain, as something that can be put aside and taken up
again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from zonoplug.verify.subdomains.relu_phases import Properties, ReluSubdomains

YOUNG = 256  # subdomains before a tree's depth is guessed


class Bounds(Protocol):
    """What bounds subdomains with split constraints.

    Attributes:
        minimisers: (n, *input_shape) the inputs at which the latest bounds were least.
        batch: how many subdomains it takes at once with the least time for each.
    """

    minimisers: Tensor
    batch: int

    def bound(self, part: ReluSubdomains, properties: Properties, steps: int) -> tuple[Tensor, Tensor]:
        """Margins, (n,), and scores for splits, (n, neurons). Updates the multipliers by that many gradient steps.

        Args:
            properties: one for each subdomain, or one for all.
        """

    def last(self, part: ReluSubdomains, properties: Properties) -> Tensor:
        """Margins, (n,), with the best multipliers to be had: for subdomains that cannot be split."""


@dataclass(slots=True)
class ReluTree:
    """A subdomain that is split until one property is proved on all pieces.

    Attributes:
        bounds: bounds the pieces.
        target: one.
        queue: the pieces that are not bounded yet, the last ones first.
        margin: the bound of the whole.
        fixed: signs of the whole.
        bounded: pieces so far.
        proved: the share of the input box, and its signs, that is proved, where each split halves.
        depth: below the whole, at which the pieces in work will be proved if bounds go on to rise as they did.
        stuck: pieces that could be neither proved nor split: the property will not be.
        closed: the pieces that were proved, where leaves are collected.
    """

    bounds: Bounds
    target: Properties
    queue: list[ReluSubdomains]
    margin: float
    fixed: int
    bounded: int = 0
    proved: float = 0.0
    depth: float = 0.0
    stuck: int = 0
    closed: list[ReluSubdomains] = field(default_factory=list)

    @classmethod
    def of(cls, bounds: Bounds, part: ReluSubdomains, target: Properties) -> ReluTree:
        """The tree below one subdomain that was bounded."""
        return cls(bounds, target, [part], float(part.bound[0]), int((part.sign[0] != 0).sum()))

    @property
    def leaves(self) -> list[tuple[ReluSubdomains, Properties]]:
        """The pieces that were proved, and what of each."""
        return [(part, self.target.pick(torch.zeros(len(part), dtype=torch.int64))) for part in self.closed]

    def note(self, part: ReluSubdomains, open_: Tensor) -> None:
        """Some pieces were bounded, and are open (n,) or not."""
        self.bounded += len(part)
        fixed = (part.sign != 0).sum(dim=1).double()
        self.proved += float((0.5**fixed)[~open_].sum())
        rise = (part.bound.double() - self.margin) / -self.margin
        depths = ((fixed - self.fixed) / rise.clamp(min=1e-6))[open_]
        self.depth = float(depths.median()) if depths.numel() and not bool(torch.isnan(depths).any()) else 0.0

    def looks_deeper_than(self, depth: float) -> bool:
        """Whether the tree is past its beginnings, and will be deeper as far as can be seen."""
        return self.bounded >= YOUNG and self.depth > depth
