"""The fast path of the 1.0 reader: flat comparisons and declarations of a chunk of text, found with array operations.

Files are made of millions of `(<= X_3 0.5)`. These become arrays at once; only what is left over (and, or, sums, other
assertions) is handed on, token by token, with each run of neighbouring flat comparisons as one piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from zonoplug.exact_rows import ExactRow, Signs
from zonoplug.io.decimals import Bytes, NumberRangeError, decimal, sides
from zonoplug.io.linear_rows import LOWER_BOUND, OUTPUT_ROW, UPPER_BOUND, Codes, FlatRows
from zonoplug.io.vnnlib_source import SourceText, shown
from zonoplug.specification import Bools, Floats, Ints

CHUNK_BYTES = 2**22
MAX_INDEX_DIGITS = 9
_MAX_NUMBER_LENGTH = 64
_WORD_CLASS = 3

_CLASS = np.full(256, _WORD_CLASS, np.uint8)
_CLASS[list(b" \t\n\r\f\v")] = 0
_CLASS[ord("(")] = 1
_CLASS[ord(")")] = 2
_IS_NUMERIC = np.zeros(256, np.bool_)
_IS_NUMERIC[list(b"0123456789+-.eE")] = True
_STARTS_NUMBER = np.zeros(256, np.bool_)
_STARTS_NUMBER[list(b"0123456789+-.")] = True


class Piece(IntEnum):
    """What an event is: a parenthesis, a word, or a run of flat comparisons."""

    OPEN = 1
    CLOSE = 2
    WORD = 3
    RUN = 4


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a chunk of text holds; all offsets count from the beginning of the text.

    Attributes:
        rows: the flat comparisons in text order.
        exact: those rows over outputs, by number, whose bound float64 does not have.
        asserted: (k,) numbers of rows that are asserted at top level by themselves.
        declared, declared_at: (declarations,) codes of variables, and the offsets of their names.
        highest_input, highest_output: the highest index used in `rows` and the offset where, or (-1, 0).
        events: what is left, as (piece, start offset, stop offset); a RUN has row numbers instead of offsets.
        runs_at: offset of the first comparison of each RUN, in order.
    """

    rows: FlatRows
    exact: dict[int, ExactRow]
    asserted: Ints
    declared: Codes
    declared_at: Ints
    highest_input: tuple[int, int]
    highest_output: tuple[int, int]
    events: list[tuple[int, int, int]]
    runs_at: list[int]


def scan(source: SourceText, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """The chunks of a text without comments, in order.

    Raises:
        SpecificationError: a flat comparison holds a malformed number.
    Cost: about 40 ns per byte; memory in proportion to `chunk_bytes`.
    """
    text = source.text
    depth, first = 0, 0
    while first < len(text):
        # A flat comparison ends at its only ")", so a cut behind any ")" never splits one.
        cut = text.find(b")", min(first + chunk_bytes, len(text)) - 1)
        stop = len(text) if cut < 0 else cut + 1
        chunk, depth = _Tokens(source, first, stop, depth).chunk()
        yield chunk
        first = stop


class _Tokens:
    """The tokens of text[first:stop]: where each starts and stops (from `first`), its class, the depth before it."""

    def __init__(self, source: SourceText, first: int, stop: int, depth: int) -> None:
        self.source = source
        self.first = first
        self.text: Bytes = np.frombuffer(source.text, np.uint8, stop - first, first)
        byte_class = _CLASS[self.text]
        in_word = np.zeros(byte_class.size + 2, np.bool_)
        in_word[1:-1] = byte_class == _WORD_CLASS
        word_starts = in_word[1:-1] & ~in_word[:-2]
        self.start: Ints = np.flatnonzero(word_starts | (byte_class == 1) | (byte_class == 2))
        self.token_class = byte_class[self.start]
        self.is_open = self.token_class == 1
        self.is_close = self.token_class == 2
        self.is_word = self.token_class == _WORD_CLASS
        self.stop = self.start + 1
        self.stop[self.is_word] = np.flatnonzero(in_word[1:-1] & ~in_word[2:]) + 1
        steps = self.is_open.astype(np.int64) - self.is_close
        self.depth_after = depth + int(steps.sum())
        self.depth: Ints = depth + np.cumsum(steps) - steps

    def chunk(self) -> tuple[Chunk, int]:
        """The chunk, and the depth after it."""
        triples = np.flatnonzero(
            self.is_open[:-4] & self.is_word[1:-3] & self.is_word[2:-2] & self.is_word[3:-1] & self.is_close[4:]
        )
        covered = np.zeros(self.start.size, np.bool_)
        declared, declared_at = self._declarations(triples, covered)
        flat, rows, exact, highest_input, highest_output = self._comparisons(triples)
        _cover(covered, flat, range(5))
        asserted = self._asserted(flat)
        _cover(covered, flat[asserted], (-2, -1, 5))
        events, runs_at = self._events(covered, flat, asserted)
        chunk = Chunk(rows, exact, asserted, declared, declared_at, highest_input, highest_output, events, runs_at)
        return chunk, self.depth_after

    def _spells(self, tokens: Ints, word: bytes) -> Bools:
        same: Bools = self.stop[tokens] - self.start[tokens] == len(word)
        begin = self.start[tokens[same]]
        equal = np.ones(begin.size, np.bool_)
        for k, letter in enumerate(word):
            equal &= self.text[begin + k] == letter
        same[same] = equal
        return same

    def _declarations(self, triples: Ints, covered: Bools) -> tuple[Codes, Ints]:
        """The codes declared by (declare-const NAME Real) at top level, and where."""
        triples = triples[self.depth[triples] == 0]
        triples = triples[self._spells(triples + 1, b"declare-const")]
        triples = triples[self._spells(triples + 3, b"Real")]
        codes, known = self._variables(triples + 2)
        triples = triples[known]
        _cover(covered, triples, range(5))
        return codes[known], self.first + self.start[triples + 2]

    def _comparisons(
        self, triples: Ints
    ) -> tuple[Ints, FlatRows, dict[int, ExactRow], tuple[int, int], tuple[int, int]]:
        """Which triples are (input, number), (output, number) in some order, or two outputs; and these as rows."""
        sign = self.text[self.start[triples + 1]]
        strict = self._spells(triples + 1, b"<") | self._spells(triples + 1, b">")
        chosen = strict | self._spells(triples + 1, b"<=") | self._spells(triples + 1, b">=")
        triples, sign, strict = triples[chosen], sign[chosen], strict[chosen]
        # Written as low <= high from here on.
        low = np.where(sign == ord("<"), triples + 2, triples + 3)
        high = np.where(sign == ord("<"), triples + 3, triples + 2)
        low_code, low_known = self._variables(low)
        high_code, high_known = self._variables(high)
        low_number, high_number = self._may_be_number(low), self._may_be_number(high)
        two_outputs = low_known & high_known & (low_code < 0) & (high_code < 0) & (low_code != high_code)
        chosen = (low_known & high_number) | (low_number & high_known) | two_outputs
        triples, strict, low, high = triples[chosen], strict[chosen], low[chosen], high[chosen]
        low_code, high_code, two_outputs = low_code[chosen], high_code[chosen], two_outputs[chosen]
        low_known, high_known = low_known[chosen], high_known[chosen]

        value, side = np.zeros(triples.size), np.zeros(triples.size, np.int8)
        numbers = np.where(low_known, high, low)
        value[~two_outputs], side[~two_outputs] = self._numbers(numbers[~two_outputs])
        code = np.where(low_known, low_code, high_code)
        is_input = code >= 0
        kind = np.where(is_input, np.where(low_known, UPPER_BOUND, LOWER_BOUND), OUTPUT_ROW).astype(np.uint8)
        # low_y <= value is +y <= value, value <= high_y is -y <= -value, low_y <= high_y is low_y - high_y <= 0.
        bound = np.where(is_input | low_known, value, 0.0 - value) + 0.0
        side[~(is_input | low_known)] *= -1
        row = np.arange(triples.size)
        left, right = low_known & ~is_input, high_known & ~is_input
        entry_row = np.concatenate((row[left], row[right]))
        entry_output = np.concatenate((-1 - low_code[left], -1 - high_code[right])).astype(np.int32)
        entry_value = np.repeat([1.0, -1.0], (int(left.sum()), int(right.sum())))
        order = np.argsort(entry_row, kind="stable")
        rows = FlatRows(
            kind,
            np.where(is_input, code, -1).astype(np.int32),
            bound,
            strict,
            side,
            entry_row[order],
            entry_output[order],
            entry_value[order],
            np.zeros(entry_row.size, np.int8),
        )
        exact = self._exact_bounds(np.flatnonzero((side != 0) & ~is_input), numbers, low_known)
        where = np.where(low_known, low, high)
        outputs = np.where(two_outputs, np.minimum(low_code, high_code), code)
        return triples, rows, exact, self._highest(code, where), self._highest(-1 - outputs, where)

    def _highest(self, index: NDArray[np.signedinteger], tokens: Ints) -> tuple[int, int]:
        if not index.size or index.max() < 0:
            return -1, 0
        k = int(index.argmax())
        return int(index[k]), self.first + int(self.start[tokens[k]])

    def _variables(self, tokens: Ints) -> tuple[Codes, Bools]:
        """The codes of X_i and Y_j among the tokens, and which tokens are one."""
        begin, length = self.start[tokens], self.stop[tokens] - self.start[tokens]
        letter = self.text[begin]
        digits = length - 2
        known = ((letter == ord("X")) | (letter == ord("Y"))) & (digits >= 1) & (digits <= MAX_INDEX_DIGITS)
        where = np.flatnonzero(known)
        begin, digits = begin[where], digits[where]
        right = self.text[begin + 1] == ord("_")
        right &= (digits == 1) | (self.text[begin + 2] != ord("0"))
        index = np.zeros(where.size, np.int32)
        for k in range(int(digits.max(initial=0))):
            more = np.flatnonzero(digits > k)
            digit = self.text[begin[more] + 2 + k] - np.uint8(ord("0"))
            right[more] &= digit <= 9
            index[more] = index[more] * 10 + digit
        known[where] = right
        codes = np.zeros(tokens.size, np.int32)
        codes[where] = np.where(letter[where] == ord("X"), index, -1 - index)
        return codes, known

    def _may_be_number(self, tokens: Ints) -> Bools:
        short = self.stop[tokens] - self.start[tokens] <= _MAX_NUMBER_LENGTH
        result: Bools = short & _STARTS_NUMBER[self.text[self.start[tokens]]]
        return result

    def _numbers(self, tokens: Ints) -> tuple[Floats, Signs]:
        """The nearest float64 to each number, and on which side of it the number lies; tokens are in text order."""
        edges = np.zeros(self.text.size + 1, np.int8)
        edges[self.start[tokens]] = 1
        edges[self.stop[tokens]] = -1
        inside = np.cumsum(edges[:-1], dtype=np.int8).astype(np.bool_)
        words = np.where(inside, self.text, np.uint8(ord(" "))).tobytes().split()
        if _IS_NUMERIC[self.text[inside]].all():
            try:
                values = np.fromiter(map(float, words), np.float64, tokens.size)
                if np.isfinite(values).all():
                    return values, sides(self.text, self.start[tokens], self.stop[tokens], values)
            except (ValueError, NumberRangeError):
                pass
        bad, reason = next((k, why) for k, word in enumerate(words) if (why := why_no_number(word)) is not None)
        line = self.source.line_of(self.first + int(self.start[tokens[bad]]))
        raise self.source.malformed(f"{shown(words[bad])} {reason}.", line)

    def _exact_bounds(self, rows: Ints, numbers: Ints, positive: Bools) -> dict[int, ExactRow]:
        """The bounds of some rows over one output as written; of the others a number bounds the output below."""
        found: dict[int, ExactRow] = {}
        for row, token in zip(rows.tolist(), numbers[rows].tolist(), strict=True):
            value = decimal(self.text[self.start[token] : self.stop[token]].tobytes().decode())
            found[row] = (value if positive[row] else value.copy_negate()), None
        return found

    def _asserted(self, flat: Ints) -> Ints:
        """Which flat comparisons stand in (assert ...) at top level."""
        where = np.flatnonzero((flat >= 2) & (flat + 5 < self.start.size))
        inner = flat[where]
        alone = self.is_open[inner - 2] & self.is_close[inner + 5] & (self.depth[inner - 2] == 0)
        alone &= self._spells(inner - 1, b"assert")
        result: Ints = where[alone]
        return result

    def _events(self, covered: Bools, flat: Ints, asserted: Ints) -> tuple[list[tuple[int, int, int]], list[int]]:
        nested = np.setdiff1d(np.arange(flat.size), asserted, assume_unique=True)
        tokens = flat[nested]
        begins = np.flatnonzero(np.diff(tokens, prepend=-6) != 5)
        ends = np.append(begins[1:], tokens.size)[: begins.size]
        heads = tokens[begins]
        piece = self.token_class.copy()
        start, stop = self.first + self.start, self.first + self.stop
        runs_at = start[heads].tolist()
        covered[heads] = False
        piece[heads] = Piece.RUN
        start[heads] = nested[begins]
        stop[heads] = nested[ends - 1] + 1
        left = np.flatnonzero(~covered)
        return list(zip(piece[left].tolist(), start[left].tolist(), stop[left].tolist(), strict=True)), runs_at


def why_no_number(word: bytes) -> str | None:
    """What is wrong with a word that should be a number such as -1, .5, 5. or 1e-05, as a predicate; None if it is one.

    Numbers that overflow float64, or are absurdly long or close to 0, are none.
    """
    text = word.decode("latin-1")
    try:
        if _IS_NUMERIC[np.frombuffer(word, np.uint8)].all() and math.isfinite(float(text)):
            decimal(text)
            return None
    except ValueError:
        pass
    except NumberRangeError as error:
        return str(error)
    return "is not a finite decimal number"


def _cover(covered: Bools, tokens: Ints, steps: range | tuple[int, ...]) -> None:
    for step in steps:
        covered[tokens + step] = True
