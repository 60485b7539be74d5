"""The text of a specification file: how it is read from the disk, and where in it something stands."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from dataclasses import dataclass, replace

from zonoplug.errors import SpecificationError, UnsupportedSpecificationError

_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_COMMENT = re.compile(rb";[^\n]*")


@dataclass(frozen=True, slots=True)
class SourceText:
    """A file's text and its name, so that an error can say where.

    Attributes:
        path: the name that messages show.
        text: the decompressed bytes.
    """

    path: str
    text: bytes

    def without_comments(self) -> SourceText:
        """The same lines with everything from ';' to the end of the line removed; line numbers stay."""
        return replace(self, text=_COMMENT.sub(b"", self.text)) if b";" in self.text else self

    def line_of(self, offset: int) -> int:
        """The line, counted from 1, of the byte at `offset`."""
        return self.text.count(b"\n", 0, offset) + 1

    def malformed(self, message: str, line: int | None = None) -> SpecificationError:
        """An error that says where: file, line if known, what is wrong."""
        return SpecificationError(self._located(message, line))

    def unsupported(self, message: str, line: int | None = None) -> UnsupportedSpecificationError:
        """The same for a construct that is well formed but that zonoplug does not handle."""
        return UnsupportedSpecificationError(self._located(message, line))

    def _located(self, message: str, line: int | None) -> str:
        place = self.path if line is None else f"{self.path}, line {line}"
        return f"{place}: {message}"


def read_source(path: str | os.PathLike[str]) -> SourceText:
    """The text of the file at `path`, decompressed if its content (not its name) says gzip.

    Raises:
        SpecificationError: the file cannot be opened or decompressed, is empty, or is not text.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            data = file.read()
    except OSError as error:
        raise SpecificationError(f"{name}: cannot be read: {error.strerror or error}.") from None
    if data.startswith(_GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise SpecificationError(f"{name}: is a damaged gzip file ({error}).") from None
    source = SourceText(name, data.removeprefix(_UTF8_MARK))
    if b"\0" in source.text:
        raise source.malformed("is a binary file, expected VNN-LIB text, plain or gzip.")
    if not source.text.strip():
        raise source.malformed("is empty, expected VNN-LIB text.")
    return source


def shown(token: bytes | str) -> str:
    """A token as a message shows it: quoted, on one line, at most 40 characters."""
    text = token.decode("utf-8", "replace") if isinstance(token, bytes) else token
    return repr(text if len(text) <= 40 else text[:37] + "...")
