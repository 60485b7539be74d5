"""The reader of VNN-LIB 2.0, over the syntax tree of the `vnnlib` package."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Sequence
from decimal import Context, Decimal
from fractions import Fraction
from functools import partial
from operator import mul
from typing import Any

import numpy as np

from zonoplug.errors import SpecificationError
from zonoplug.io.decimals import MAX_DIGITS, NumberRangeError, decimal, side
from zonoplug.io.linear_rows import ONE, LinearForm, RowTable, constant, output_code, product, total, variable
from zonoplug.io.normal_form import Condition, TooManyDisjunctsError, all_of, compared, conjunction, disjunction
from zonoplug.io.specification_arrays import build_specification
from zonoplug.io.vnnlib_source import SourceText, shown
from zonoplug.specification import Specification, Variable

MAX_DEPTH = 200
MAX_ELEMENTS = 2**27
SHORT_NUMBER = 24

_TYPE_NAMES = {"Real": "real", "F16": "float16", "F32": "float32", "F64": "float64"}
_RELATIONS = {
    "LessEqual": "<=",
    "LessThan": "<",
    "GreaterEqual": ">=",
    "GreaterThan": ">",
    "Equal": "=",
    "NotEqual": "!=",
}
_INTEGER_TYPE = re.compile(r"\(\s*declare-(?:input|hidden|output)\s+\w+\s+u?int\d+\b", re.IGNORECASE)
# Comments, strings and brackets with blanks stay as they are; else a number, or "=", that the package may refuse.
_SPELLING = re.compile(
    r';[^\n]*|"[^"\n]*"|\[[^\]()]*\s[^\]()]*\]'
    r'|(?<=[\s()\]])(?!-?\d+\.\d+[\s()])[+-]?\.?\d[^\s()\[\];"]*|(?<=\()=(?=\s)'
)
_NODE_NAME = re.compile(r'(\(\s*declare-(?:input|output)\s+\w+\s+\w+\s*\[[^\]()]*\]\s*)"[^"\n]*"')
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_LEAST_EXPONENT = -300
_EXACT = Context(prec=2 * MAX_DIGITS)
_WHOLE = re.compile(r"-?\d+")
_PLACE = re.compile(r" at line (\d+), column \d+:? *")


def read_version_two(source: SourceText) -> Specification:
    """The Specification of a 2.0 file with one network, one input and one output.

    Numbers that the package's grammar refuses (1e-05, .5, 5., +0.5, and whole numbers beside float variables) are
    spelt anew for it, without a change of their value.

    Args:
        source: the text, with comments.

    Raises:
        SpecificationError: the package refuses the text, or a check of our own does.
        UnsupportedSpecificationError: several networks, inputs or outputs, hidden nodes, an element type that is not
            real, float16, float32 or float64, a constraint that is not linear or mixes inputs and outputs; or the
            package is missing.
    Cost: 100 ns and 50 bytes of memory per byte of text, most of it inside the package.
    """
    package = _package(source)
    query = _parsed(package, source)
    network = _only(source, "network", query.networks)
    if network.hidden:
        raise source.unsupported(f"the hidden node {shown(network.hidden[0].name)} is not supported.")
    inputs = _declared(source, _only(source, "input", network.inputs))
    outputs = _declared(source, _only(source, "output", network.outputs))
    return _Reader(package, source, inputs, outputs).read(query)


def _package(source: SourceText) -> Any:
    try:
        package = importlib.import_module("vnnlib")
    except ImportError:
        package = None
    if not hasattr(package, "parse_query_string"):
        raise source.unsupported("VNN-LIB 2.0 needs another package: pip install 'vnnlib>=1.0.2,<2'.")
    return package


def _parsed(package: Any, source: SourceText) -> Any:
    """The package's syntax tree. It recurses in C++, so the depth is checked before."""
    letters = np.frombuffer(source.without_comments().text, np.uint8)
    steps = (letters == ord("(")).astype(np.int8) - (letters == ord(")"))
    depth = int(np.cumsum(steps, dtype=np.int32).max(initial=0))
    if depth > MAX_DEPTH:
        raise source.unsupported(f"parentheses are nested {depth} deep, the limit is {MAX_DEPTH}.")
    try:
        return package.parse_query_string(_respelt(source))
    except SpecificationError:
        raise
    except Exception as error:  # the package's own and those of C++: the reason is in the text
        raise _explained(source, str(error)) from None


def _respelt(source: SourceText) -> str:
    """The text in the package's grammar: numbers spelt its way, names of ONNX inputs and outputs left out.

    With one input and one output, as all that is read here, these names say nothing.
    """
    # Other letters than ASCII can only stand in comments; the package cannot report them.
    text = source.text.decode("utf-8", "replace").encode("ascii", "replace").decode("ascii")
    text = _NODE_NAME.sub(r"\1", text)
    keeps_whole = _INTEGER_TYPE.search(text) is not None

    def spelt(match: re.Match[str]) -> str:
        word = match[0]
        if word == "=":
            return "=="
        if word[0] in ';"[' or not _NUMBER.fullmatch(word) or (keeps_whole and _WHOLE.fullmatch(word)):
            return word
        try:
            return _spelt(decimal(word))
        except NumberRangeError as error:
            line = text.count("\n", 0, match.start()) + 1
            raise source.malformed(f"{shown(word)} {error}.", line) from None

    return _SPELLING.sub(spelt, text)


def _spelt(value: Decimal) -> str:
    """A number as the package spells it; as a product where the package's own float64 would underflow."""
    if value and value.adjusted() < _LEAST_EXPONENT:
        factor = Decimal((0, (1,), _LEAST_EXPONENT))
        return f"(* {_spelt(factor)} {_spelt(value.scaleb(-_LEAST_EXPONENT, _EXACT))})"
    written = format(value, "f")
    return written if "." in written else written + ".0"


def _explained(source: SourceText, reason: str) -> SpecificationError:
    """The package's error, which is a sentence or a JSON list of errors, as one line of ours."""
    try:
        first = json.loads(reason)["errors"][0]
        message = f"{first['message']}: {shown(str(first['offendingSymbol']))}. {first['hint']}"
        return source.malformed(" ".join(message.split()), int(first["line"]))
    except (ValueError, LookupError, TypeError):
        place = _PLACE.search(reason)
        line = int(place[1]) if place else None
        message = _PLACE.sub(" near ", reason).replace("near ''", "at the end")
        return source.malformed(" ".join(message.split()) + ".", line)


def _only(source: SourceText, noun: str, items: Sequence[Any]) -> Any:
    if len(items) != 1:
        names = ", ".join(str(item.name) for item in items)
        raise source.unsupported(f"declares {len(items)} {noun}s ({names}), only one is supported.")
    return items[0]


def _declared(source: SourceText, definition: Any) -> Variable:
    name, kind, shape = str(definition.name), str(definition.dtype.name), tuple(int(n) for n in definition.shape)
    if kind not in _TYPE_NAMES:
        known = ", ".join(_TYPE_NAMES.values())
        raise source.unsupported(f"{name} has elements of type {kind}, supported are {known}.")
    if math.prod(shape) > MAX_ELEMENTS:
        raise source.unsupported(f"{name} has {math.prod(shape)} elements, the limit is {MAX_ELEMENTS}.")
    return Variable(name, _TYPE_NAMES[kind], shape)


class _Reader:
    def __init__(self, package: Any, source: SourceText, inputs: Variable, outputs: Variable) -> None:
        self.package = package
        self.source = source
        self.inputs = inputs
        self.outputs = outputs
        self.table = RowTable()
        self.relations = {getattr(package, name): relation for name, relation in _RELATIONS.items()}
        self.element = package.Var
        self.literals = (package.Float, package.Int)
        self.strides = {
            variable.name: (is_input, tuple(math.prod(variable.shape[k + 1 :]) for k in range(len(variable.shape))))
            for variable, is_input in ((outputs, False), (inputs, True))
        }

    def read(self, query: Any) -> Specification:
        common: list[int] = []
        alternatives: list[Condition] = []
        for assertion in query.assertions:
            node = assertion.expr
            row = self._bound(node)
            if row is not None:
                common.append(row)
                continue
            condition = self._condition(node)
            if len(condition.disjuncts) == 1:
                for rows in condition.disjuncts[0]:
                    common.extend(rows)
            else:
                alternatives.append(condition)
        ids = [np.array(common, np.int64)]
        return build_specification(self.source, "2.0", self.inputs, self.outputs, self.table, ids, alternatives)

    def _bound(self, node: Any) -> int | None:
        """The row of `element <= number` and its like, which files have by the thousand; None for any other node."""
        relation = self.relations.get(type(node))
        if relation is None or relation in ("=", "!="):
            return None
        left, right = node.lhs, node.rhs
        if type(left) is not self.element or type(right) not in self.literals:
            return None
        code = self._code(left)
        upper, strict = relation[0] == "<", len(relation) == 1
        if code < 0:
            exact = Fraction(self._number(right))
            return self.table.add_output_row({code: ONE if upper else -ONE}, exact if upper else -exact, strict)
        if len(right.lexeme) <= SHORT_NUMBER:
            return self.table.add_written_bound(code, upper, right.lexeme, strict)
        value, written = float(right.lexeme), self._number(right)
        return self.table.add_bound(code, upper, value + 0.0, strict, side(written, value))

    def _number(self, node: Any) -> Decimal:
        try:
            return decimal(node.lexeme)
        except NumberRangeError as error:
            raise self.source.malformed(f"{shown(node.lexeme)} {error}.", _line(node)) from None

    def _condition(self, node: Any) -> Condition:
        row = self._bound(node)
        if row is not None:
            return all_of(range(row, row + 1))
        kind = type(node)
        relation = self.relations.get(kind)
        if relation is not None:
            left, right = self._linear(node.lhs), self._linear(node.rhs)
            return compared(self.source, partial(_line, node), self.table, relation, left, right)
        if kind not in (self.package.And, self.package.Or):
            raise self.source.unsupported(f"{shown(kind.__name__)} is not supported.", _line(node))
        parts = [self._condition(part) for part in node.args]
        try:
            return conjunction(parts) if kind is self.package.And else disjunction(parts)
        except TooManyDisjunctsError as error:
            raise self.source.malformed(f"this {kind.__name__.lower()} {error}", _line(node)) from None

    def _linear(self, node: Any) -> LinearForm:
        kind, package = type(node), self.package
        if kind is self.element:
            return variable(self._code(node))
        if kind in self.literals:
            return constant(Fraction(self._number(node)))
        if kind is package.Negate:
            return self._linear(node.expr).negated()
        if kind is package.Plus:
            return total(self._linear(part) for part in node.args)
        if kind is package.Minus:
            return total((self._linear(node.head), *(self._linear(part).negated() for part in node.rest)))
        if kind is not package.Multiply:
            raise self.source.unsupported(f"{shown(kind.__name__)} is not supported.", _line(node))
        try:
            result = product(self._linear(part) for part in node.args)
        except NumberRangeError as error:
            raise self.source.malformed(f"{error}.", _line(node)) from None
        if result is None:
            message = "a product of variables (a non-linear constraint) is not supported."
            raise self.source.unsupported(message, _line(node))
        return result

    def _code(self, node: Any) -> int:
        is_input, strides = self.strides[node.name]
        index = sum(map(mul, node.indices, strides))
        return index if is_input else output_code(index)


def _line(node: Any) -> int | None:
    """The line of the first variable or number in an expression; other nodes of the package have none."""
    waiting = [node]
    while waiting:
        head = waiting.pop()
        line = getattr(head, "line", None)
        if line is not None:
            return int(line)
        waiting.extend(reversed(head.children()))
    return None
