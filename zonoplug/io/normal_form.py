"""Conditions over inequalities in disjunctive normal form: and, or, and the comparisons they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from zonoplug.io.decimals import NumberRangeError
from zonoplug.io.linear_rows import LinearForm, RowTable, add_inequality, difference, refusal
from zonoplug.io.vnnlib_source import SourceText

MAX_DISJUNCTS = 2**20

Disjunct = tuple[range, ...]


class TooManyDisjunctsError(Exception):
    """Multiplying out would give more than MAX_DISJUNCTS disjuncts; the readers turn it into a SpecificationError."""

    def __init__(self, count: int) -> None:
        written = str(count) if count < 10**15 else f"about 1e{int(math.log10(count))}"
        super().__init__(f"multiplies out to {written} disjuncts, the limit is {MAX_DISJUNCTS}.")


@dataclass(frozen=True, slots=True)
class Condition:
    """A disjunction of conjunctions of rows; each disjunct is a tuple of ranges of row ids.

    No disjunct at all is false; a disjunct without rows is true.
    """

    disjuncts: Sequence[Disjunct]


FALSE = Condition(())
TRUE = Condition(((),))


def all_of(rows: range) -> Condition:
    """Every row of the range holds."""
    return Condition(((rows,),))


def any_of(rows: range) -> Condition:
    """Some row of the range holds."""
    return Condition([(range(row, row + 1),) for row in rows])


def disjunction(conditions: Iterable[Condition]) -> Condition:
    """Some condition holds. Raises TooManyDisjunctsError."""
    disjuncts = [disjunct for condition in conditions for disjunct in condition.disjuncts]
    if len(disjuncts) > MAX_DISJUNCTS:
        raise TooManyDisjunctsError(len(disjuncts))
    return Condition(disjuncts)


def conjunction(conditions: Sequence[Condition]) -> Condition:
    """Every condition holds: the product of their disjuncts. Raises TooManyDisjunctsError before it is formed."""
    count = math.prod(len(condition.disjuncts) for condition in conditions)
    if count > MAX_DISJUNCTS:
        raise TooManyDisjunctsError(count)
    return Condition([_joined(parts) for parts in product(*(condition.disjuncts for condition in conditions))])


def _joined(parts: Iterable[Disjunct]) -> Disjunct:
    ranges: list[range] = []
    for part in parts:
        for rows in part:
            if ranges and ranges[-1].stop == rows.start:
                ranges[-1] = range(ranges[-1].start, rows.stop)
            else:
                ranges.append(rows)
    return tuple(ranges)


def compared(
    source: SourceText,
    where: Callable[[], int | None],
    table: RowTable,
    relation: str,
    left: LinearForm,
    right: LinearForm,
) -> Condition:
    """File the comparison `left relation right` in the table, with relation one of <= < >= > = !=.

    Equality is two rows, inequality (!=) two strict disjuncts; a comparison of constants is decided at once, exactly.

    Raises:
        SpecificationError: a number overflows float64; `where` gives the line.
        UnsupportedSpecificationError: inputs and outputs are mixed, or several inputs are bounded together.
    """
    upward = difference(left, right)
    reason = refusal(upward)
    if reason is not None:
        raise source.unsupported(f"{reason} is not supported.", where())
    try:
        if relation in ("<=", "<"):
            return _row(table, upward, relation == "<")
        downward = upward.negated()
        if relation in (">=", ">"):
            return _row(table, downward, relation == ">")
        if relation == "=":
            return conjunction((_row(table, upward, False), _row(table, downward, False)))
        return disjunction((_row(table, upward, True), _row(table, downward, True)))
    except NumberRangeError as error:
        raise source.malformed(f"{error}.", where()) from None


def _row(table: RowTable, form: LinearForm, strict: bool) -> Condition:
    row = add_inequality(table, form, strict)
    if isinstance(row, bool):
        return TRUE if row else FALSE
    return all_of(range(row, row + 1))
