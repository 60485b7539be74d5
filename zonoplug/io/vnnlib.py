"""Reading VNN-LIB files of version 1.0 and 2.0."""

from __future__ import annotations

import os
import re

from zonoplug.errors import SpecificationError
from zonoplug.io.vnnlib_one import read_version_one
from zonoplug.io.vnnlib_source import SourceText, read_source, shown
from zonoplug.io.vnnlib_two import read_version_two
from zonoplug.specification import Specification

_BLANK = re.compile(rb"\s*(?:;[^\n]*\s*)*")
_VERSION = re.compile(rb"\(\s*vnnlib-version\b[^()]*\)?")
_NUMBER = re.compile(rb"<\s*(\d+)\.\d+\s*>")


def read_specification(path: str | os.PathLike[str]) -> Specification:
    """The unsafe set that a VNN-LIB file describes, in disjunctive normal form.

    Reads version 1.0, and version 2.0 if the file begins with (vnnlib-version <2.x>); plain or gzip, told apart by
    content. Numbers are read as the rationals they are. The result has no disjuncts if none can hold, whatever the
    variables are.

    Args:
        path: the file.

    Raises:
        SpecificationError: the file cannot be read, is malformed, leaves an input unbounded, or allows no input.
        UnsupportedSpecificationError: it is well formed, but not linear over one network's one input and one output.
    Cost: about 50 ns per byte for 1.0; 100 MB with 11,000 input boxes take about 5 s.
    """
    source = read_source(path)
    try:
        return read_version_two(source) if _major_version(source) == 2 else read_version_one(source)
    except MemoryError:
        raise SpecificationError(f"{source.path}: is too large for the memory of this machine.") from None


def _major_version(source: SourceText) -> int:
    """1 or 2, by the first form of the file; other versions are refused."""
    blank = _BLANK.match(source.text)
    start = blank.end() if blank else 0
    statement = _VERSION.match(source.text, start)
    if statement is None:
        if b"(declare-network" in source.text:
            raise source.malformed(
                "declares a network as in VNN-LIB 2.0, but does not begin with (vnnlib-version <2.0>)."
            )
        return 1
    line = source.line_of(start)
    version = _NUMBER.search(statement[0])
    if version is None:
        raise source.malformed(f"expected (vnnlib-version <2.0>), found {shown(statement[0])}.", line)
    if int(version[1]) != 2:
        raise source.unsupported(
            f"{shown(statement[0])}: only versions 1.0 (without this statement) and 2.x are read.", line
        )
    return 2
