"""From rows and a normal form to the arrays of a Specification: boxes stored once, rows gathered per disjunct."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zonoplug.exact_rows import ExactRow, ExactRows, Signs
from zonoplug.io.linear_rows import LOWER_BOUND, OUTPUT_ROW, UPPER_BOUND, FlatRows, RowTable
from zonoplug.io.normal_form import Condition, Disjunct, TooManyDisjunctsError, conjunction
from zonoplug.io.vnnlib_source import SourceText
from zonoplug.specification import Bools, Floats, Ints, Specification, Variable, element_name

MAX_ROWS = 2**25
MAX_BOX_NUMBERS = 2**28
_BATCH_NUMBERS = 2**20
_LOOSEST = -2


class _Boxes(NamedTuple):
    """Input boxes (boxes, inputs), as float64 bounds, and how tight each is among those with the same float64.

    A bound as written lies on a side of its float64, s in {-1, 0, 1} counted towards the inside of the box, and is
    strict or not: its tightness is 2 s + strict. From 1 on, the float64 itself is outside.
    """

    lower: Floats
    upper: Floats
    lower_tightness: Signs
    upper_tightness: Signs

    @staticmethod
    def unbounded(num_inputs: int) -> _Boxes:
        """One box without bounds."""
        infinite = np.full((1, num_inputs), np.inf)
        loosest = np.full((1, num_inputs), _LOOSEST, np.int8)
        return _Boxes(-infinite, infinite, loosest, loosest.copy())

    def chosen(self, boxes: Ints) -> _Boxes:
        """Copies of some boxes, in the order of their numbers `boxes`."""
        lower_tightness, upper_tightness = self.lower_tightness[boxes], self.upper_tightness[boxes]
        return _Boxes(self.lower[boxes], self.upper[boxes], lower_tightness, upper_tightness)

    def intersect(self, rows: FlatRows, ids: Ints, boxes: Ints) -> None:
        """Tighten box `boxes[k]` by the bound in row `ids[k]`, for all k, in place."""
        places = boxes * self.lower.shape[1] + rows.input_index[ids]
        kind = rows.kind[ids]
        for which, limit, tightness, tightest, inwards in (
            (LOWER_BOUND, self.lower, self.lower_tightness, np.maximum, 1),
            (UPPER_BOUND, self.upper, self.upper_tightness, np.minimum, -1),
        ):
            chosen = kind == which
            place, bound = places[chosen], rows.bound[ids[chosen]]
            tight = (2 * inwards * rows.side[ids[chosen]] + rows.strict[ids[chosen]]).astype(np.int8)
            flat, flat_tightness = limit.reshape(-1), tightness.reshape(-1)
            before = flat[place]
            tightest.at(flat, place, bound)
            flat_tightness[place[flat[place] != before]] = _LOOSEST
            there = bound == flat[place]
            np.maximum.at(flat_tightness, place[there], tight[there])

    def clashes(self) -> Bools:
        """Where no number at all lies within the bounds: (boxes, inputs).

        Two different bounds between the same neighbours of float64 are taken for equal, and not for strict.
        """
        low, high = self.lower_tightness >> 1, -(self.upper_tightness >> 1)
        strict = (self.lower_tightness == 1) | (self.upper_tightness == 1)
        inside = (low < high) | ((low == high) & ~(strict & (low == 0)))
        return np.asarray((self.lower > self.upper) | ((self.lower == self.upper) & ~inside))

    def is_empty(self) -> Bools:
        return np.asarray(self.clashes().any(axis=1))


def build_specification(
    source: SourceText,
    version: str,
    inputs: Variable,
    outputs: Variable,
    table: RowTable,
    common: Sequence[Ints],
    alternatives: Sequence[Condition],
) -> Specification:
    """The Specification  common rows and every alternative.

    Args:
        source: the file, for messages.
        version: "1.0" or "2.0".
        inputs: the declared input tensor.
        outputs: the declared output tensor.
        table: all rows; variables in it are declared.
        common: arrays of ids of rows that hold in every disjunct.
        alternatives: conditions that must hold as well.

    Raises:
        SpecificationError: an input is not bounded, no input box has a point, or there are too many disjuncts.
    Cost: memory in proportion to the distinct boxes times inputs, and the rows of all disjuncts.
    """
    rows = table.arrays()
    num_inputs = math.prod(inputs.shape)
    common_ids = np.concatenate(common) if common else np.zeros(0, np.int64)
    is_output = rows.kind[common_ids] == OUTPUT_ROW
    base = _Boxes.unbounded(num_inputs)
    bounds = common_ids[~is_output]
    base.intersect(rows, bounds, np.zeros(bounds.size, np.int64))
    try:
        disjuncts = conjunction(alternatives).disjuncts
    except TooManyDisjunctsError as error:
        raise source.malformed(f"the conjunction of the assertions {error}") from None
    assembly = _Assembly(source, version, inputs, rows, table.exact, base, common_ids[is_output])
    assembly.add(disjuncts)
    return assembly.finish(outputs)


class _Assembly:
    """Collects boxes and rows of disjuncts, a bounded number at a time."""

    def __init__(
        self,
        source: SourceText,
        version: str,
        inputs: Variable,
        rows: FlatRows,
        exact: Mapping[int, ExactRow],
        base: _Boxes,
        common_outputs: Ints,
    ) -> None:
        self.source = source
        self.version = version
        self.inputs = inputs
        self.rows = rows
        self.exact = exact
        self.base = base
        self.common_outputs = common_outputs
        self.num_disjuncts = 0
        self.base_number: int | None = None
        self.box_numbers: dict[bytes, int] = {}
        self.boxes: list[tuple[Floats, Floats, Bools, Bools]] = []
        self.box_of_disjunct: list[Ints] = []
        self.row_ids: list[Ints] = []
        self.row_disjunct: list[Ints] = []

    def add(self, disjuncts: Sequence[Disjunct]) -> None:
        """File all disjuncts, dropping those whose box is empty."""
        sizes = np.fromiter((sum(map(len, part)) for part in disjuncts), np.int64, len(disjuncts))
        total = int(sizes.sum()) + len(disjuncts) * self.common_outputs.size
        if total > MAX_ROWS:
            raise self.source.malformed(
                f"has {len(disjuncts)} disjuncts with {total} inequalities in all, the limit is {MAX_ROWS}."
            )
        costs = np.cumsum(sizes + self.base.lower.shape[1] + self.common_outputs.size)
        first = 0
        while first < len(disjuncts):
            done = int(costs[first - 1]) if first else 0
            stop = max(first + 1, int(np.searchsorted(costs, done + _BATCH_NUMBERS)))
            self._add_batch(disjuncts[first:stop])
            first = stop
        if disjuncts and not self.num_disjuncts:
            raise self.source.malformed(f"no input satisfies its bounds: {self._contradiction()}.")

    def _add_batch(self, disjuncts: Sequence[Disjunct]) -> None:
        count = len(disjuncts)
        ids, owner = _expanded(disjuncts)
        is_bound = self.rows.kind[ids] != OUTPUT_ROW
        box = self._boxes_of(count, ids[is_bound], owner[is_bound])
        ids = np.concatenate((np.tile(self.common_outputs, count), ids[~is_bound]))
        owner = np.concatenate((np.repeat(np.arange(count), self.common_outputs.size), owner[~is_bound]))
        kept = box >= 0
        number = np.cumsum(kept) - 1 + self.num_disjuncts
        order = np.argsort(owner, kind="stable")
        order = order[kept[owner[order]]]
        self.box_of_disjunct.append(box[kept])
        self.row_ids.append(ids[order])
        self.row_disjunct.append(number[owner[order]])
        self.num_disjuncts += int(kept.sum())

    def _boxes_of(self, count: int, ids: Ints, owner: Ints) -> Ints:
        """The number of each disjunct's box, or -1 where the box is empty."""
        own, slot = np.unique(owner, return_inverse=True)
        box = np.full(count, -1, np.int64)
        if own.size < count:
            if self.base_number is None:
                self.base_number = int(self._numbers(self.base)[0])
            box[:] = self.base_number
        if own.size:
            candidates = self.base.chosen(np.zeros(own.size, np.int64))
            candidates.intersect(self.rows, ids, slot.reshape(-1))
            box[own] = self._numbers(candidates)
        return box

    def _numbers(self, boxes: _Boxes) -> Ints:
        self._check_bounded(boxes)
        parts = (boxes.lower + 0.0, boxes.upper + 0.0, boxes.lower_tightness >= 1, boxes.upper_tightness >= 1)
        numbers = np.full(boxes.lower.shape[0], -1, np.int64)
        fresh = []
        for place in np.flatnonzero(~boxes.is_empty()):
            key = hashlib.blake2b(b"".join(part[place].tobytes() for part in parts), digest_size=24).digest()
            if key not in self.box_numbers:
                self.box_numbers[key] = len(self.box_numbers)
                fresh.append(place)
            numbers[place] = self.box_numbers[key]
        if fresh:
            lower, upper, open_lower, open_upper = parts
            self.boxes.append((lower[fresh], upper[fresh], open_lower[fresh], open_upper[fresh]))
        count, num_inputs = len(self.box_numbers), boxes.lower.shape[1]
        if count * num_inputs > MAX_BOX_NUMBERS:
            raise self.source.malformed(f"needs {count} or more boxes of {num_inputs} inputs, too many to hold.")
        return numbers

    def _check_bounded(self, boxes: _Boxes) -> None:
        for side, limit in (("lower", boxes.lower), ("upper", boxes.upper)):
            missing = np.argwhere(~np.isfinite(limit))
            if missing.size:
                name = element_name(self.version, self.inputs, int(missing[0, 1]))
                also = "" if limit.shape[0] == 1 else " in some disjunct"
                raise self.source.malformed(
                    f"the input {name} has no {side} bound{also}, expected both of every input."
                )

    def _contradiction(self) -> str:
        clash = np.flatnonzero(self.base.clashes()[0])
        if not clash.size:
            return "every disjunct's input box is empty"
        k = int(clash[0])
        name = element_name(self.version, self.inputs, k)
        above = ">" if self.base.lower_tightness[0, k] == 1 else ">="
        below = "<" if self.base.upper_tightness[0, k] == 1 else "<="
        return f"{name} {above} {self.base.lower[0, k]!s} and {name} {below} {self.base.upper[0, k]!s}"

    def finish(self, outputs: Variable) -> Specification:
        if not self.num_disjuncts:
            self._keep_placeholder_box()
        lower, upper, open_lower, open_upper = (np.concatenate(parts) for parts in zip(*self.boxes, strict=True))
        nothing = [np.zeros(0, np.int64)]
        ids = np.concatenate(self.row_ids or nothing)
        first = np.searchsorted(self.rows.entry_row, ids, side="left")
        stop = np.searchsorted(self.rows.entry_row, ids, side="right")
        entries, entry_row = _ranges(first, stop)
        return Specification(
            version=self.version,
            inputs=self.inputs,
            outputs=outputs,
            lower=lower,
            upper=upper,
            box_of_disjunct=np.concatenate(self.box_of_disjunct or nothing),
            row_disjunct=np.concatenate(self.row_disjunct or nothing),
            row_bound=self.rows.bound[ids],
            row_strict=self.rows.strict[ids],
            entry_row=entry_row,
            entry_output=self.rows.entry_output[entries].astype(np.int64),
            entry_value=self.rows.entry_value[entries],
            open_lower=open_lower if open_lower.any() else None,
            open_upper=open_upper if open_upper.any() else None,
            exact=ExactRows(self.rows.side[ids], self.rows.entry_side[entries], ids, self.exact)
            if self.exact
            else None,
        )

    def _keep_placeholder_box(self) -> None:
        """The property holds whatever the inputs are; keep the common box, with missing bounds filled in."""
        if self.base.is_empty()[0]:
            raise self.source.malformed(f"no input satisfies its bounds: {self._contradiction()}.")
        lower, upper = self.base.lower, self.base.upper
        lower = np.where(np.isfinite(lower), lower, np.where(np.isfinite(upper), upper, 0.0))
        upper = np.where(np.isfinite(upper), upper, lower)
        wide = lower < upper
        self.boxes.append(
            (lower, upper, (self.base.lower_tightness >= 1) & wide, (self.base.upper_tightness >= 1) & wide)
        )


def _expanded(disjuncts: Sequence[Disjunct]) -> tuple[Ints, Ints]:
    """The row ids of all disjuncts in order, and whose each is."""
    pieces = [rows for part in disjuncts for rows in part]
    first = np.fromiter((rows.start for rows in pieces), np.int64, len(pieces))
    stop = np.fromiter((rows.stop for rows in pieces), np.int64, len(pieces))
    ids, piece = _ranges(first, stop)
    owner = np.repeat(np.arange(len(disjuncts)), np.fromiter(map(len, disjuncts), np.int64, len(disjuncts)))
    return ids, owner[piece]


def _ranges(first: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """first[0] .. stop[0]-1, first[1] .. stop[1]-1, ... as one array, and which range each number is from."""
    sizes = stop - first
    origin = np.repeat(np.arange(sizes.size), sizes)
    within = np.arange(origin.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return first[origin] + within, origin
