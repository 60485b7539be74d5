"""Proves one subdomain after another, by bounds that hold in float64, from cheap to strong, then by further splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from zonoplug.certificates import ascent
from zonoplug.certificates.certificate import Floats, Leaf
from zonoplug.certificates.network import Network
from zonoplug.certificates.rounded_bounds import Bounds
from zonoplug.verify.specification import Bools, Specification

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
        signs: (layer, neuron) to 1 or -1, the sign of a ReLU's input that is known.
        leaf: the certificate's leaf that it is, or is a part of.
        number: the leaf's, counted from 0 through the file.
    """

    lower: Floats
    upper: Floats
    signs: dict[tuple[int, int], int]
    leaf: Leaf
    number: int


class Rows:
    """The rows of some disjuncts of a specification: a point is unsafe if all rows of one of them hold.

    Where a disjunct has several rows, their sum is one row more: it holds if they all do.
    """

    def __init__(self, specification: Specification, disjuncts: Sequence[int]) -> None:
        coefficients, bounds, strict, owner = [], [], [], []
        for place, disjunct in enumerate(disjuncts):
            rows = np.flatnonzero(specification.row_disjunct == disjunct)
            matrix = np.zeros((rows.size, specification.num_outputs))
            for place_of_row, row in enumerate(rows):
                entries = specification.entry_row == row
                np.add.at(matrix[place_of_row], specification.entry_output[entries], specification.entry_value[entries])
            bound, is_strict = specification.row_bound[rows], specification.row_strict[rows]
            if rows.size > 1:
                added, total = matrix.sum(axis=0), bound.sum()
                exact = _is_exact(matrix, added) and _is_exact(bound[:, None], np.array([total]))
                if exact:
                    matrix, bound = np.vstack([matrix, added]), np.append(bound, total)
                    is_strict = np.append(is_strict, is_strict.any())
            coefficients.append(matrix)
            bounds.append(bound)
            strict.append(is_strict)
            owner.append(np.full(bound.size, place))
        self.count = len(disjuncts)
        self.coefficients: Floats = np.concatenate(coefficients)
        self.bounds: Floats = np.concatenate(bounds)
        self.strict: Bools = np.concatenate(strict)
        self.owner = np.concatenate(owner)

    def excluded(self, lower: Floats) -> Bools:
        """Which disjuncts lower bounds of the rows (batch, rows) put out of reach: (batch, disjuncts)."""
        above = (lower > self.bounds) | (self.strict & (lower >= self.bounds))
        result = np.zeros((lower.shape[0], self.count), np.bool_)
        for row, place in enumerate(self.owner):
            result[:, place] |= above[:, row]
        return result

    def worst(self, lower: Floats, open_: Bools) -> int:
        """Of the open disjuncts of one subdomain, the best row of the one that is furthest from excluded."""
        margins = np.nan_to_num(lower - self.bounds, nan=-np.inf)
        best = [
            np.flatnonzero(self.owner == place)[margins[self.owner == place].argmax()] for place in range(self.count)
        ]
        return int(best[int(np.where(open_, margins[best], np.inf).argmin())])


class Prover:
    """Shows that the disjuncts of one input box are out of reach in parts of it.

    Args:
        network, rows: of what.
        lower, upper: the input box, (inputs,).
        shared: bounds of the whole box, kept for the provers of its other disjuncts; made where splits on signs or
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
            if any(region.signs for region in batch):
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
        signs = self._signs(regions)
        bounds = Bounds(self._network, lower, upper, self._shared[0] if self._shared else None)
        bounds.run(signs, strategies)
        excluded = np.zeros((len(regions), self._rows.count), np.bool_)
        excluded |= bounds.empty[:, None]
        alpha = self._alpha(regions)
        for strategy, recorded in (("adaptive", True), ("adaptive", False), ("parallel", False)):
            if recorded and not alpha:
                continue
            if excluded.all():
                break
            bounds.make_lines(strategy, alpha if recorded else None)
            pulls = self._pulls(regions) if recorded else None
            last = bounds.rows_below(self._network.outputs, self._rows.coefficients, pulls, keep=True)
            excluded |= self._rows.excluded(last.lower)
        if strategies == EFFORTS[-1]:
            self._ascend(bounds, regions, signs, alpha, last.lower, excluded)
        open_ = np.flatnonzero(~excluded.all(axis=1))
        if not open_.size:
            return [], []
        choices: list[Choice] = []
        for place in map(int, open_):
            row = self._rows.worst(last.lower[place], ~excluded[place])
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
        signs: dict[int, Floats],
        alpha: dict[int, Floats],
        lower: Floats,
        excluded: Bools,
    ) -> None:
        """Improve slopes and multipliers for the disjuncts that stay open, and mark those that are excluded then."""
        pulls = self._pulls(regions)
        start = ascent.Choices(alpha, {at: np.abs(pull) for at, pull in pulls.items()})
        for disjunct in np.flatnonzero(~excluded.all(axis=0)):
            mine = np.flatnonzero(self._rows.owner == disjunct)
            if not mine.size:
                continue
            margins = np.nan_to_num(lower[:, mine] - self._rows.bounds[mine], nan=-np.inf)
            row = mine[margins.argmax(axis=1)]
            goal = np.where(excluded[:, disjunct], -np.inf, self._rows.bounds[row])
            rows = self._rows.coefficients[row][:, None]
            found = ascent.ascend(bounds, self._network.outputs, rows, goal, signs, start, LEAF_STEPS)
            excluded[:, disjunct] |= found > self._rows.bounds[row]

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
            if cost[neuron] > best and (layer, neuron) not in region.signs:
                best, found = float(cost[neuron]), (layer, neuron)
        return found

    def _signs(self, regions: list[Region]) -> dict[int, Floats]:
        signs: dict[int, Floats] = {}
        for place, region in enumerate(regions):
            for (layer, neuron), sign in region.signs.items():
                block = self._relus[layer]
                table = signs.setdefault(block.start, np.zeros((len(regions), block.places.size)))
                table[place, neuron] = sign
        return signs

    def _alpha(self, regions: list[Region]) -> dict[int, Floats]:
        """The recorded slopes by ReLU; 0 where a region has none. Empty if none has any, or if they do not fit."""
        sizes = [block.places.size for block in self._relus]
        known = [region.leaf.alpha for region in regions]
        if all(alpha is None or alpha.size != sum(sizes) for alpha in known):
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
                sign = region.signs.get((layer, neuron), 0)
                if sign:
                    block = self._relus[layer]
                    table = pulls.setdefault(block.start, np.zeros((len(regions), block.places.size)))
                    table[place, neuron] = beta * sign
        return pulls


def _pieces(region: Region, choice: tuple[int, int] | int) -> list[Region]:
    if isinstance(choice, tuple):
        return [
            Region(region.lower, region.upper, {**region.signs, choice: sign}, region.leaf, region.number)
            for sign in (1, -1)
        ]
    middle = region.lower[choice] + (region.upper[choice] - region.lower[choice]) / 2
    high, low = region.upper.copy(), region.lower.copy()
    high[choice] = low[choice] = middle
    return [
        Region(region.lower, high, region.signs, region.leaf, region.number),
        Region(low, region.upper, region.signs, region.leaf, region.number),
    ]


def _is_exact(parts: Floats, total: Floats) -> bool:
    """Whether sums over the first axis came out without rounding."""
    columns = zip(parts.T, total, strict=True)
    return all(sum(map(Fraction, column), Fraction(0)) == Fraction(value) for column, value in columns)
