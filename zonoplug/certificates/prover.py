"""Proves one subdomain after another, by bounds that hold in float64, from cheap to strong, then by further splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zonoplug.certificates import ascent
from zonoplug.certificates.certificate import Floats, Leaf
from zonoplug.certificates.lines import TINY, UNIT, up
from zonoplug.certificates.network import Ints, Network
from zonoplug.certificates.rounded_bounds import Bounds
from zonoplug.specification import Bools, Specification

BATCH_ENTRIES = 2**23
MAX_BATCH = 128
SPLITTABLE_INPUTS = 64
ROOT_STEPS = 12
LEAF_STEPS = 20
Choice = tuple[int, int] | int | None  # what to split next: a neuron, an input, or nothing
EFFORTS: tuple[tuple[str, ...], ...] = ((), ("adaptive",), ("adaptive", "parallel"))


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A subdomain.

    Attributes:
        lower, upper: its input box, (inputs,).
        phases: (layer, neuron) to 1 or -1, the sign of a ReLU's input that is known.
        leaf: the certificate's leaf that it is, or is a part of.
        number: the leaf's, counted from 0 through the file.
    """

    lower: Floats
    upper: Floats
    phases: dict[tuple[int, int], int]
    leaf: Leaf
    number: int


class Rows:
    """The rows of some disjuncts of a specification: a point is unsafe if all rows of one of them hold.

    Where a disjunct has several rows, their sum is one row more: it holds if they all do. Coefficients and bounds are
    numbers of a text, rounded to float64: each may be off by a unit in its last place.

    Attributes:
        coefficients: (rows, outputs).
        doubt: how far each of them may be off, (rows, outputs).
        bounds: a row is out of reach where its true value lies above: the bounds, one unit in the last place higher.
        strict: (rows,) a row is out of reach where its value is at least its bound, too.
        owner: (rows,) which of the disjuncts a row belongs to.
    """

    def __init__(self, specification: Specification, disjuncts: Sequence[int]) -> None:
        coefficients, sizes, bounds, strict, owner = [], [], [], [], []
        for place, disjunct in enumerate(disjuncts):
            rows = np.flatnonzero(specification.row_disjunct == disjunct)
            matrix, size = np.zeros((2, rows.size, specification.num_outputs))
            for place_of_row, row in enumerate(rows):
                entries = specification.entry_row == row
                outputs, values = specification.entry_output[entries], specification.entry_value[entries]
                np.add.at(matrix[place_of_row], outputs, values)
                np.add.at(size[place_of_row], outputs, np.abs(values))
            bound, is_strict = up(specification.row_bound[rows]), specification.row_strict[rows]
            if rows.size > 1:
                total = bound.sum() + 2 * rows.size * UNIT * np.abs(bound).sum()
                matrix, size = (np.vstack([part, part.sum(axis=0)]) for part in (matrix, size))
                bound, is_strict = np.append(bound, up(total)), np.append(is_strict, is_strict.any())
            coefficients.append(matrix)
            sizes.append((2 + 2 * matrix.shape[0]) * UNIT * size)
            bounds.append(bound)
            strict.append(is_strict)
            owner.append(np.full(bound.size, place))
        self.count = len(disjuncts)
        self.coefficients: Floats = np.concatenate(coefficients)
        self.doubt: Floats = np.concatenate(sizes)
        self.bounds: Floats = np.concatenate(bounds)
        self.strict: Bools = np.concatenate(strict)
        self.owner = np.concatenate(owner)

    def limits(self, outputs: Floats) -> Floats:
        """What a lower bound of a row must exceed, for outputs of absolute values (batch, outputs): (batch, rows)."""
        doubt = 1.01 * (outputs @ self.doubt.T) + TINY * (1.0 + outputs.sum(axis=1))[:, None]
        return up(self.bounds + doubt)

    def excluded(self, lower: Floats, limits: Floats) -> Bools:
        """Which disjuncts lower bounds of the rows (batch, rows) put out of reach: (batch, disjuncts)."""
        above = (lower > limits) | (self.strict & (lower >= limits))
        result = np.zeros((lower.shape[0], self.count), np.bool_)
        for row, place in enumerate(self.owner):
            result[:, place] |= above[:, row]
        return result

    def worst(self, margins: Floats, open_: Bools) -> int | None:
        """The best row of the disjunct that is furthest from excluded.

        Args:
            margins: of one subdomain, what its lower bounds exceed their limits by, (rows,).
            open_: (disjuncts,) which are left.
        """
        margins = np.nan_to_num(margins, nan=-np.inf)
        best = [mine[margins[mine].argmax()] for mine in self._rows_of(open_) if mine.size]
        return int(min(best, key=lambda row: margins[row])) if best else None

    def _rows_of(self, open_: Bools) -> list[Ints]:
        return [np.flatnonzero(self.owner == place) for place in np.flatnonzero(open_)]


class Prover:
    """Shows that the disjuncts of one input box are out of reach in parts of it.

    Args:
        network, rows: of what.
        lower, upper: the input box, (inputs,).
        shared: bounds of the whole box, kept for the provers of its other disjuncts; made where splits of ReLUs or
            too many inputs to split make a good start worth it.
    """

    def __init__(
        self, network: Network, rows: Rows, lower: Floats, upper: Floats, shared: list[tuple[Floats, Floats]]
    ) -> None:
        self._network, self._rows = network, rows
        self._relus = network.relus
        self._lower, self._upper, self._shared = lower, upper, shared
        self.batch = int(np.clip(BATCH_ENTRIES // (network.size * max(len(rows.bounds), 1)), 1, MAX_BATCH))

    def prove(self, regions: list[Region], further_splits: int) -> tuple[list[Region], int]:
        """Try to prove regions, splitting those that resist.

        Args:
            further_splits: how many splits may be made.
        Returns:
            the regions of which a part stays open, and how many splits were made.
        """
        stuck: dict[int, Region] = {}
        made, waiting = 0, regions
        while waiting:
            batch, waiting = waiting[-self.batch :], waiting[: -self.batch]
            open_ = batch
            scores: list[Choice] = []
            if any(region.phases for region in batch):
                self._tighten()
            for effort in EFFORTS:
                if open_:
                    open_, scores = self._attempt(open_, effort)
            if open_ and not self._shared and (self._upper > self._lower).sum() > SPLITTABLE_INPUTS:
                self._tighten()
                open_, scores = self._attempt(open_, EFFORTS[-1])
            for region, choice in zip(open_, scores, strict=True):
                if region.number in stuck:
                    continue
                if choice is None or made >= further_splits:
                    stuck[region.number] = region
                    continue
                made += 1
                waiting += _pieces(region, choice)
        return list(stuck.values()), made

    def _tighten(self) -> None:
        if not self._shared:
            self._shared.append(ascent.tighten(self._network, self._lower, self._upper, ROOT_STEPS))

    def _attempt(self, regions: list[Region], strategies: tuple[str, ...]) -> tuple[list[Region], list[Choice]]:
        """The regions that stay open, and where to split each: an input, a neuron, or nowhere."""
        lower, upper = (np.stack([getattr(region, side) for region in regions]) for side in ("lower", "upper"))
        phases = self._phases(regions)
        bounds = Bounds(self._network, lower, upper, self._shared[0] if self._shared else None)
        bounds.run(phases, strategies)
        excluded = np.zeros((len(regions), self._rows.count), np.bool_)
        excluded |= bounds.empty[:, None]
        if excluded.all():
            return [], []
        outputs = np.maximum(np.abs(bounds.lower), np.abs(bounds.upper))[:, self._network.outputs]
        limits = self._rows.limits(outputs)
        alpha = self._alpha(regions)
        for strategy, recorded in (("adaptive", True), ("adaptive", False), ("parallel", False)):
            if recorded and not alpha:
                continue
            bounds.make_lines(strategy, alpha if recorded else None)
            pulls = self._pulls(regions) if recorded else None
            last = bounds.rows_below(self._network.outputs, self._rows.coefficients, pulls, keep=True)
            excluded |= self._rows.excluded(last.lower, limits)
            if excluded.all():
                return [], []
        if strategies == EFFORTS[-1]:
            self._ascend(bounds, regions, phases, alpha, last.lower - limits, limits, excluded)
        open_ = np.flatnonzero(~excluded.all(axis=1))
        if not open_.size:
            return [], []
        choices: list[Choice] = []
        for place in map(int, open_):
            row = self._rows.worst(last.lower[place] - limits[place], ~excluded[place])
            if row is None:  # a disjunct without rows holds at every point
                choices.append(None)
                continue
            width = upper[place] - lower[place]
            middle = lower[place] + width / 2
            gain = np.abs(last.inputs[place, row]) * width * ((middle > lower[place]) & (middle < upper[place]))
            if 0 < (width > 0).sum() <= SPLITTABLE_INPUTS:
                choices.append(int(gain.argmax()) if gain.max() > 0 else None)
            else:
                choices.append(self._neuron(bounds, last.activations, place, row, regions[place]))
        return [regions[place] for place in open_], choices

    def _ascend(
        self,
        bounds: Bounds,
        regions: list[Region],
        phases: dict[int, Floats],
        alpha: dict[int, Floats],
        margins: Floats,
        limits: Floats,
        excluded: Bools,
    ) -> None:
        """Improve slopes and multipliers for the disjuncts that stay open, and mark those that are excluded then."""
        every = np.arange(len(regions))
        pulls = self._pulls(regions)
        start = ascent.Choices(alpha, {at: np.abs(pull) for at, pull in pulls.items()})
        for disjunct in np.flatnonzero(~excluded.all(axis=0)):
            mine = np.flatnonzero(self._rows.owner == disjunct)
            if not mine.size:
                continue
            row = mine[np.nan_to_num(margins[:, mine], nan=-np.inf).argmax(axis=1)]
            limit = limits[every, row]
            goal = np.where(excluded[:, disjunct], -np.inf, limit)
            rows = self._rows.coefficients[row][:, None]
            found = ascent.ascend(bounds, self._network.outputs, rows, goal, phases, start, LEAF_STEPS)
            excluded[:, disjunct] |= found > limit

    def _neuron(
        self, bounds: Bounds, coefficients: dict[int, Floats], place: int, row: int, region: Region
    ) -> tuple[int, int] | None:
        """The neuron whose triangle costs the bound most: |coefficient| times the triangle's height."""
        best, found = 0.0, None
        for layer, block in enumerate(self._relus):
            if block.start not in coefficients:
                continue
            low, high = bounds.lower[place, block.places], bounds.upper[place, block.places]
            open_ = (low < 0) & (high > 0)
            height = np.where(open_, -low * high / np.where(open_, high - low, 1.0), 0.0)
            cost = np.abs(coefficients[block.start][place, row]) * height[: coefficients[block.start].shape[2]]
            neuron = int(cost.argmax())
            if cost[neuron] > best and (layer, neuron) not in region.phases:
                best, found = float(cost[neuron]), (layer, neuron)
        return found

    def _phases(self, regions: list[Region]) -> dict[int, Floats]:
        phases: dict[int, Floats] = {}
        for place, region in enumerate(regions):
            for (layer, neuron), sign in region.phases.items():
                block = self._relus[layer]
                table = phases.setdefault(block.start, np.zeros((len(regions), block.places.size)))
                table[place, neuron] = sign
        return phases

    def _alpha(self, regions: list[Region]) -> dict[int, Floats]:
        """The recorded slopes by ReLU; 0 where a region has none. Empty if none has any, or if they do not fit."""
        sizes = [block.places.size for block in self._relus]
        known = [region.leaf.alpha for region in regions]
        if not sizes or all(alpha is None or alpha.size != sum(sizes) for alpha in known):
            return {}
        zeros = np.zeros(sum(sizes))
        table = np.stack([zeros if alpha is None or alpha.size != zeros.size else alpha for alpha in known])
        parts = np.split(table, np.cumsum(sizes)[:-1], axis=1)
        return {block.start: part for block, part in zip(self._relus, parts, strict=True)}

    def _pulls(self, regions: list[Region]) -> dict[int, Floats]:
        """beta times the sign where both are known; the sign is the tree's."""
        pulls: dict[int, Floats] = {}
        for place, region in enumerate(regions):
            for layer, neuron, beta in region.leaf.beta:
                sign = region.phases.get((layer, neuron), 0)
                if sign:
                    block = self._relus[layer]
                    table = pulls.setdefault(block.start, np.zeros((len(regions), block.places.size)))
                    table[place, neuron] = beta * sign
        return pulls


def _pieces(region: Region, choice: tuple[int, int] | int) -> list[Region]:
    if isinstance(choice, tuple):
        return [
            Region(region.lower, region.upper, {**region.phases, choice: sign}, region.leaf, region.number)
            for sign in (1, -1)
        ]
    middle = region.lower[choice] + (region.upper[choice] - region.lower[choice]) / 2
    high, low = region.upper.copy(), region.lower.copy()
    high[choice] = low[choice] = middle
    return [
        Region(region.lower, high, region.phases, region.leaf, region.number),
        Region(low, region.upper, region.phases, region.leaf, region.number),
    ]
