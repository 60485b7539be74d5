"""What watches a search: counts for a report, a live line on a terminal, a record of leaves for a certificate.

Searches call an Observer and never look at it. One without a progress line and a record only counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.verify.leaf_record import LeafRecord
from zonoplug.verify.progress import ProgressLine
from zonoplug.verify.statistics import Statistics
from zonoplug.verify.subdomains.relu_phases import ReluSubdomains


class Observer:
    """Told of every step of a verification.

    Args:
        progress: the live line, or None.
        record: collects leaves, or None.

    Attributes:
        statistics: what was counted so far.
    """

    def __init__(self, progress: ProgressLine | None = None, record: LeafRecord | None = None) -> None:
        self.statistics = Statistics()
        self.progress = progress
        self.record = record
        self._stage = ""
        self._parts = 1.0
        self._whole: Box | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of the verification; its seconds are counted, those of stages with equal names together."""
        start, before, self._stage = time.monotonic(), self._stage, name
        if self.progress is not None:
            self.progress.show(name, self.statistics)
        try:
            yield
        finally:
            self._stage = before
            spent = time.monotonic() - start
            self.statistics.seconds[name] = self.statistics.seconds.get(name, 0.0) + spent

    def excluded_at_root(self, excluded: Tensor, method: str) -> None:
        """Disjuncts (boxes, disjuncts) that one bound of whole input boxes put out of reach."""
        if self.record is not None:
            self.record.whole(excluded, method)

    def search_starts(self, parts: int, whole: Box | None = None) -> None:
        """A search begins anew, on `parts` input boxes or disjuncts.

        Args:
            whole: (boxes, *input_shape) the input boxes, where they are what is split.
        """
        self._parts, self._whole = float(max(parts, 1)), whole
        self.statistics.volume_proved, self.statistics.worst_margin, self.statistics.open = 0.0, None, 0
        if self.record is not None:
            self.record.forget()

    def boxes(self, box: Box, group: Tensor, open_: Tensor, worst: Tensor, waiting: int) -> None:
        """A batch of subdomains of input boxes was bounded.

        Args:
            box, group: (n, *input_shape) and the input box of each, (n,).
            open_: (n,) True where something is still in reach.
            worst: (n,) bounds of the margins.
            waiting: subdomains beside these.
        """
        assert self._whole is not None
        whole = (self._whole.upper - self._whole.lower).flatten(1)[group].double()
        share = (box.upper - box.lower).flatten(1).double() / torch.where(whole > 0, whole, 1.0)
        volume = torch.where(whole > 0, share, 1.0).prod(dim=1)
        deepest = round(float(-volume.amin().clamp(min=1e-300).log2()))
        self._bounded(volume, deepest, open_, worst, waiting)
        if self.record is not None:
            self.record.boxes(box, group, ~open_, self._stage)

    def phases(self, part: ReluSubdomains, open_: Tensor, worst: Tensor, waiting: int) -> None:
        """A batch of subdomains with split constraints was bounded; else as `boxes`."""
        fixed = (part.sign != 0).sum(dim=1).double()
        self._bounded(0.5**fixed, int(fixed.max()), open_, worst, waiting)

    def proved(self, share: float) -> None:
        """A share of one disjunct's tree counts as proved, or, below 0, counts no more."""
        self.statistics.volume_proved = max(0.0, min(1.0, self.statistics.volume_proved + share / self._parts))

    def pieces(self, share: Tensor, open_: Tensor, worst: Tensor, waiting: int) -> None:
        """A batch of subdomains, each the share (n,) of a tree that splits leave; else as `boxes`."""
        deepest = round(-float(share.double().amin().clamp(min=1e-300).log2()))
        self._bounded(share, deepest, open_, worst, waiting)

    def relu_leaves(self, box: int, disjuncts: Tensor, part: ReluSubdomains, layer_sizes: list[int]) -> None:
        """Subdomains with split constraints that are proved, and that the proof needs.

        Args:
            box: the input box.
            disjuncts: (n,) of that box.
            layer_sizes: neurons of each ReLU, in the order in which they stand side by side.
        """
        if self.record is not None and len(part):
            self.record.layer_sizes = layer_sizes
            for number in disjuncts.unique().tolist():
                self.record.phases(box, number, part, disjuncts == number, self._stage)

    def split(self, kind: str, count: int) -> None:
        """So many subdomains were split in two.

        Args:
            kind: "input" or "activation".
        """
        if kind == "input":
            self.statistics.input_splits += count
        else:
            self.statistics.activation_splits += count

    def _bounded(self, volume: Tensor, depth: int, open_: Tensor, worst: Tensor, waiting: int) -> None:
        seen = self.statistics
        seen.depth = max(seen.depth, depth)
        seen.volume_proved = min(1.0, seen.volume_proved + float(volume[~open_].sum()) / self._parts)
        seen.open = waiting + int(open_.sum())
        seen.worst_margin = float(worst.min()) if worst.numel() else None
        if self.progress is not None:
            self.progress.show(self._stage, seen)
