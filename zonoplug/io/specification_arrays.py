"""From rows and a normal form to the arrays of a Specification: boxes stored once, rows gathered per disjunct."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zonoplug.io.linear_rows import LOWER_BOUND, OUTPUT_ROW, UPPER_BOUND, FlatRows, RowTable
from zonoplug.io.normal_form import Condition, Disjunct, TooManyDisjunctsError, conjunction
from zonoplug.io.vnnlib_source import SourceText
from zonoplug.verify.specification import Bools, Floats, Ints, Specification, Variable

MAX_ROWS = 2**25
MAX_BOX_NUMBERS = 2**28
_BATCH_NUMBERS = 2**20


class _Boxes(NamedTuple):
    """Input boxes (boxes, inputs) and which of their bounds are excluded."""

    lower: Floats
    upper: Floats
    open_lower: Bools
    open_upper: Bools

    def chosen(self, boxes: Ints) -> _Boxes:
        """Copies of some boxes, in the order of their numbers `boxes`."""
        return _Boxes(self.lower[boxes], self.upper[boxes], self.open_lower[boxes], self.open_upper[boxes])

    def intersect(self, rows: FlatRows, ids: Ints, boxes: Ints) -> None:
        """Tighten box `boxes[k]` by the bound in row `ids[k]`, for all k, in place."""
        places = boxes * self.lower.shape[1] + rows.input_index[ids]
        kind = rows.kind[ids]
        for side, limit, excluded, tightest in (
            (LOWER_BOUND, self.lower, self.open_lower, np.maximum),
            (UPPER_BOUND, self.upper, self.open_upper, np.minimum),
        ):
            chosen = kind == side
            place, bound, strict = places[chosen], rows.bound[ids[chosen]], rows.strict[ids[chosen]]
            flat, flat_excluded = limit.reshape(-1), excluded.reshape(-1)
            before = flat[place]
            tightest.at(flat, place, bound)
            flat_excluded[place] &= flat[place] == before
            flat_excluded[place[strict & (bound == flat[place])]] = True

    def is_empty(self) -> Bools:
        excluded = self.open_lower | self.open_upper
        empty: Bools = ((self.lower > self.upper) | (excluded & (self.lower == self.upper))).any(axis=1)
        return empty


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
    base = _Boxes(
        np.full((1, num_inputs), -np.inf),
        np.full((1, num_inputs), np.inf),
        np.zeros((1, num_inputs), np.bool_),
        np.zeros((1, num_inputs), np.bool_),
    )
    bounds = common_ids[~is_output]
    base.intersect(rows, bounds, np.zeros(bounds.size, np.int64))
    try:
        disjuncts = conjunction(alternatives).disjuncts
    except TooManyDisjunctsError as error:
        raise source.malformed(f"the conjunction of the assertions {error}") from None
    assembly = _Assembly(source, version, inputs, rows, base, common_ids[is_output])
    assembly.add(disjuncts)
    return assembly.finish(outputs)


class _Assembly:
    """Collects boxes and rows of disjuncts, a bounded number at a time."""

    def __init__(
        self, source: SourceText, version: str, inputs: Variable, rows: FlatRows, base: _Boxes, common_outputs: Ints
    ) -> None:
        self.source = source
        self.version = version
        self.inputs = inputs
        self.rows = rows
        self.base = base
        self.common_outputs = common_outputs
        self.num_disjuncts = 0
        self.base_number: int | None = None
        self.box_numbers: dict[bytes, int] = {}
        self.boxes: list[_Boxes] = []
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
        boxes.lower[:] += 0.0
        boxes.upper[:] += 0.0
        numbers = np.full(boxes.lower.shape[0], -1, np.int64)
        fresh = []
        for place in np.flatnonzero(~boxes.is_empty()):
            key = hashlib.blake2b(b"".join(part[place].tobytes() for part in boxes), digest_size=24).digest()
            if key not in self.box_numbers:
                self.box_numbers[key] = len(self.box_numbers)
                fresh.append(place)
            numbers[place] = self.box_numbers[key]
        if fresh:
            self.boxes.append(boxes.chosen(np.array(fresh)))
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
        clash = np.flatnonzero(self.base.lower[0] > self.base.upper[0])
        if not clash.size:
            return "every disjunct's input box is empty"
        k = int(clash[0])
        name = element_name(self.version, self.inputs, k)
        return f"{name} >= {self.base.lower[0, k]!s} and {name} <= {self.base.upper[0, k]!s}"

    def finish(self, outputs: Variable) -> Specification:
        if not self.num_disjuncts:
            self._keep_placeholder_box()
        boxes = _Boxes(
            np.concatenate([part.lower for part in self.boxes]),
            np.concatenate([part.upper for part in self.boxes]),
            np.concatenate([part.open_lower for part in self.boxes]),
            np.concatenate([part.open_upper for part in self.boxes]),
        )
        nothing = [np.zeros(0, np.int64)]
        ids = np.concatenate(self.row_ids or nothing)
        first = np.searchsorted(self.rows.entry_row, ids, side="left")
        stop = np.searchsorted(self.rows.entry_row, ids, side="right")
        entries, entry_row = _ranges(first, stop)
        return Specification(
            version=self.version,
            inputs=self.inputs,
            outputs=outputs,
            lower=boxes.lower,
            upper=boxes.upper,
            box_of_disjunct=np.concatenate(self.box_of_disjunct or nothing),
            row_disjunct=np.concatenate(self.row_disjunct or nothing),
            row_bound=self.rows.bound[ids],
            row_strict=self.rows.strict[ids],
            entry_row=entry_row,
            entry_output=self.rows.entry_output[entries].astype(np.int64),
            entry_value=self.rows.entry_value[entries],
            open_lower=boxes.open_lower if boxes.open_lower.any() else None,
            open_upper=boxes.open_upper if boxes.open_upper.any() else None,
        )

    def _keep_placeholder_box(self) -> None:
        """The property holds whatever the inputs are; keep the common box, with missing bounds filled in."""
        if self.base.is_empty()[0]:
            raise self.source.malformed(f"no input satisfies its bounds: {self._contradiction()}.")
        lower, upper, open_lower, open_upper = self.base
        lower = np.where(np.isfinite(lower), lower, np.where(np.isfinite(upper), upper, 0.0))
        upper = np.where(np.isfinite(upper), upper, lower)
        self.boxes.append(_Boxes(lower, upper, open_lower & (lower < upper), open_upper & (lower < upper)))


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


def element_name(version: str, variable: Variable, index: int) -> str:
    """How a file of `version` writes element `index` (C order) of a tensor: X_3 in "1.0", X[0,3] in "2.0"."""
    if version == "1.0":
        return f"{variable.name}_{index}"
    place = ",".join(str(int(k)) for k in np.unravel_index(index, variable.shape)) if variable.shape else ""
    return f"{variable.name}[{place}]" if place else variable.name
