"""The reader of VNN-LIB 1.0: SMT-LIB text with declare-const and assert over X_i and Y_j."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import numpy as np

from zonoplug.errors import SpecificationError
from zonoplug.io.decimals import NumberRangeError, decimal
from zonoplug.io.linear_rows import LinearForm, RowTable, constant, output_code, product, total, variable
from zonoplug.io.normal_form import (
    Condition,
    TooManyDisjunctsError,
    all_of,
    any_of,
    compared,
    conjunction,
    disjunction,
)
from zonoplug.io.specification_arrays import build_specification
from zonoplug.io.vnnlib_scan import MAX_INDEX_DIGITS, Piece, scan, why_no_number
from zonoplug.io.vnnlib_source import SourceText, shown
from zonoplug.specification import Ints, Specification, Variable

_VARIABLE = re.compile(rb"([XY])_(0|[1-9][0-9]{0,%d})" % (MAX_INDEX_DIGITS - 1))
_RELATIONS = {b"<=": "<=", b"<": "<", b">=": ">=", b">": ">", b"=": "="}
_WITHOUT_MEANING = {b"set-logic", b"set-info", b"set-option", b"check-sat", b"get-model", b"exit"}
_NOT_SUPPORTED = {
    *(b"not", b"=>", b"xor", b"ite", b"let", b"distinct", b"==", b"!="),
    *(b"/", b"div", b"mod", b"abs", b"forall", b"exists", b"define-fun", b"push", b"pop"),
}


class _Word(NamedTuple):
    text: bytes
    offset: int


class _Run(NamedTuple):
    """Neighbouring flat comparisons: rows of the table."""

    rows: range
    offset: int


class _Nothing(NamedTuple):
    """An empty pair of parentheses."""

    offset: int


_Item = _Word | _Run | _Nothing | LinearForm | Condition


@dataclass(slots=True)
class _Form:
    """An opened parenthesis and what was read inside so far."""

    offset: int
    items: list[_Item] = field(default_factory=list)


def read_version_one(source: SourceText) -> Specification:
    """The Specification of a 1.0 file.

    Args:
        source: the text, with comments.

    Returns:
        A Specification whose variables are X and Y of type float32 and shape (count,).

    Raises:
        SpecificationError: the text is malformed; the message says in which line, where it can.
        UnsupportedSpecificationError: a constraint is not linear, mixes inputs and outputs, or is unknown to 1.0.
    Cost: about 50 ns per byte for flat comparisons, 2 us per token of anything else.
    """
    return _Reader(source.without_comments()).read()


class _Reader:
    def __init__(self, source: SourceText) -> None:
        self.source = source
        self.table = RowTable()
        self.common: list[Ints] = []
        self.alternatives: list[Condition] = []
        self.declared: list[tuple[Ints, Ints]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        self.highest = {b"X": (-1, 0), b"Y": (-1, 0)}
        self.forms: list[_Form] = []

    def read(self) -> Specification:
        for chunk in scan(self.source):
            first_row = self.table.add_block(chunk.rows, chunk.exact)
            self.common.append(first_row + chunk.asserted)
            self.declared.append((chunk.declared.astype(np.int64), chunk.declared_at))
            self._note_use(b"X", *chunk.highest_input)
            self._note_use(b"Y", *chunk.highest_output)
            self._read_events(first_row, chunk.events, iter(chunk.runs_at).__next__)
        if self.forms:
            message = f"this '(' is never closed ({len(self.forms)} are open at the end)"
            raise self._malformed(self.forms[0].offset, message)
        inputs, outputs = self._declared(b"X"), self._declared(b"Y")
        return build_specification(self.source, "1.0", inputs, outputs, self.table, self.common, self.alternatives)

    def _malformed(self, offset: int, message: str) -> SpecificationError:
        return self.source.malformed(message + ".", self.source.line_of(offset))

    def _unsupported(self, offset: int, message: str) -> SpecificationError:
        return self.source.unsupported(message + ".", self.source.line_of(offset))

    def _read_events(self, first_row: int, events: Sequence[tuple[int, int, int]], next_run: Callable[[], int]) -> None:
        text, forms = self.source.text, self.forms
        item: _Item
        for piece, start, stop in events:
            if piece == Piece.OPEN:
                forms.append(_Form(start))
                continue
            if piece == Piece.CLOSE:
                if not forms:
                    raise self._malformed(start, "found ')' that closes nothing")
                closed = forms.pop()
                if not forms:
                    self._command(closed)
                    continue
                item = self._value(closed)
            else:
                loose: _Word | _Run
                if piece == Piece.WORD:
                    loose = _Word(text[start:stop], start)
                else:
                    loose = _Run(range(first_row + start, first_row + stop), next_run())
                if not forms:
                    message = f"expected (declare-const ...) or (assert ...), found {_named(loose)}"
                    raise self._malformed(loose.offset, message)
                item = loose
            forms[-1].items.append(item)

    # Commands: forms at top level.

    def _command(self, form: _Form) -> None:
        head, *items = form.items or [_Nothing(form.offset)]
        if not isinstance(head, _Word):
            raise self._malformed(form.offset, f"expected declare-const or assert behind '(', found {_named(head)}")
        if head.text == b"assert":
            self._assert(form, items)
        elif head.text in (b"declare-const", b"declare-fun"):
            self._declare(form, head.text, items)
        elif head.text in _NOT_SUPPORTED:
            raise self._unsupported(form.offset, f"{shown(head.text)} is not supported in VNN-LIB 1.0")
        elif head.text not in _WITHOUT_MEANING:
            raise self._malformed(form.offset, f"expected declare-const or assert, found {shown(head.text)}")

    def _assert(self, form: _Form, items: Sequence[_Item]) -> None:
        count = sum(len(item.rows) if isinstance(item, _Run) else 1 for item in items)
        if count != 1:
            raise self._malformed(form.offset, f"assert takes one condition, found {count}")
        condition = self._condition(form, items[0], any_of)
        if len(condition.disjuncts) == 1:
            self.common.extend(np.arange(rows.start, rows.stop) for rows in condition.disjuncts[0])
        else:
            self.alternatives.append(condition)

    def _declare(self, form: _Form, command: bytes, items: Sequence[_Item]) -> None:
        if command == b"declare-fun" and len(items) == 3 and isinstance(items[1], _Nothing):
            items = [items[0], items[2]]
        if len(items) != 2 or not (isinstance(items[0], _Word) and isinstance(items[1], _Word)):
            raise self._malformed(form.offset, "expected (declare-const X_0 Real)")
        name, sort = items[0].text, items[1].text
        if sort != b"Real":
            raise self._unsupported(form.offset, f"{shown(name)} is of type {shown(sort)}, only Real is supported")
        code = self._code(name)
        if code is None:
            message = f"expected a variable called X_0, X_1, ... or Y_0, ..., found {shown(name)}"
            raise self._malformed(form.offset, message)
        self.declared.append((np.array([code]), np.array([items[0].offset])))

    # Expressions: forms inside others.

    def _value(self, form: _Form) -> _Item:
        if not form.items:
            return _Nothing(form.offset)
        head, *items = form.items
        if not isinstance(head, _Word):
            raise self._malformed(form.offset, f"expected an operator behind '(', found {_named(head)}")
        word = head.text
        if word in (b"and", b"or"):
            return self._connective(form, word, items)
        if word in _RELATIONS:
            if len(items) != 2:
                raise self._malformed(form.offset, f"{shown(word)} takes two operands, found {len(items)}")
            left, right = (self._operand(form, item) for item in items)
            line = partial(self.source.line_of, form.offset)
            return compared(self.source, line, self.table, _RELATIONS[word], left, right)
        if word in (b"+", b"-", b"*"):
            return self._arithmetic(form, word, [self._operand(form, item) for item in items])
        if word in _NOT_SUPPORTED:
            raise self._unsupported(form.offset, f"{shown(word)} is not supported in VNN-LIB 1.0")
        if word in (b"assert", b"declare-const", b"declare-fun"):
            raise self._malformed(form.offset, f"{shown(word)} stands inside another form: is a ')' missing before it?")
        raise self._malformed(form.offset, f"expected and, or, a comparison or + - *, found {shown(word)}")

    def _connective(self, form: _Form, word: bytes, items: Sequence[_Item]) -> Condition:
        if not items:
            raise self._malformed(form.offset, f"{shown(word)} takes at least one condition, found none")
        parts = [self._condition(form, item, all_of if word == b"and" else any_of) for item in items]
        try:
            return conjunction(parts) if word == b"and" else disjunction(parts)
        except TooManyDisjunctsError as error:
            raise self.source.malformed(f"this {word.decode()} {error}", self.source.line_of(form.offset)) from None

    def _condition(self, form: _Form, item: _Item, of_run: Callable[[range], Condition]) -> Condition:
        if isinstance(item, _Run):
            return of_run(item.rows)
        if not isinstance(item, Condition):
            raise self._malformed(self._offset(form, item), f"expected a condition, found {_named(item)}")
        return item

    def _arithmetic(self, form: _Form, word: bytes, operands: Sequence[LinearForm]) -> LinearForm:
        if not operands:
            raise self._malformed(form.offset, f"{shown(word)} takes at least one operand, found none")
        if word == b"+":
            return total(operands)
        if word == b"-":
            head, *rest = operands
            return total((head, *(form.negated() for form in rest))) if rest else head.negated()
        try:
            result = product(operands)
        except NumberRangeError as error:
            raise self._malformed(form.offset, str(error)) from None
        if result is None:
            raise self._unsupported(form.offset, "a product of variables (a non-linear constraint) is not supported")
        return result

    def _operand(self, form: _Form, item: _Item) -> LinearForm:
        if isinstance(item, LinearForm):
            return item
        if not isinstance(item, _Word):
            offset = self._offset(form, item)
            raise self._malformed(offset, f"expected a number or a variable, found {_named(item)}")
        code = self._code(item.text)
        if code is not None:
            self._note_use(item.text[:1], code if code >= 0 else -1 - code, item.offset)
            return variable(code)
        reason = why_no_number(item.text)
        if reason is not None:
            raise self._malformed(item.offset, f"{shown(item.text)} {reason}, expected X_i, Y_j or a number")
        return constant(Fraction(decimal(item.text.decode())))

    def _offset(self, form: _Form, item: _Item) -> int:
        return form.offset if isinstance(item, LinearForm | Condition) else item.offset

    # Variables.

    def _code(self, name: bytes) -> int | None:
        match = _VARIABLE.fullmatch(name)
        if match is None:
            return None
        index = int(match[2])
        return index if match[1] == b"X" else output_code(index)

    def _note_use(self, letter: bytes, index: int, offset: int) -> None:
        if index > self.highest[letter][0]:
            self.highest[letter] = index, offset

    def _declared(self, letter: bytes) -> Variable:
        """The variable X or Y, after a check that its declared indices are 0 .. n-1 and that no others are used."""
        codes = np.concatenate([codes for codes, _ in self.declared])
        places = np.concatenate([places for _, places in self.declared])
        chosen = codes >= 0 if letter == b"X" else codes < 0
        index = codes[chosen] if letter == b"X" else -1 - codes[chosen]
        order = np.argsort(index, kind="stable")
        index, places = index[order], places[chosen][order]
        name = letter.decode()
        if not index.size:
            raise self.source.malformed(f"declares no {name}_0, expected (declare-const {name}_0 Real).")
        twice = np.flatnonzero(index[1:] == index[:-1])
        if twice.size:
            raise self._malformed(int(places[twice[0] + 1]), f"{name}_{index[twice[0]]} is declared twice")
        gap = np.flatnonzero(index != np.arange(index.size))
        if gap.size:
            message = f"declares {name}_{index[-1]} but not {name}_{gap[0]}, expected all from {name}_0 on."
            raise self.source.malformed(message)
        used, offset = self.highest[letter]
        if used >= index.size:
            known = f"{name}_0 .. {name}_{index.size - 1}"
            raise self._malformed(offset, f"{name}_{used} is not declared, declared are {known}")
        return Variable(name, "float32", (int(index.size),))


def _named(item: _Item) -> str:
    if isinstance(item, _Word):
        return shown(item.text)
    if isinstance(item, _Nothing):
        return "'()'"
    return "arithmetic" if isinstance(item, LinearForm) else "a comparison or condition"
