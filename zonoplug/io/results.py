"""Results files: whole or absent, never half written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from zonoplug.errors import SettingError


class ResultsFile:
    """The file that a verdict goes to.

    Opening it removes what an earlier run left there, so that a run that is killed leaves nothing that could be
    mistaken for its answer.

    Raises:
        SettingError: the path cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            if self._is_device():
                return
            if self._path.is_dir():
                raise IsADirectoryError(21, "it is a folder")
            with tempfile.NamedTemporaryFile(dir=self._path.parent):
                pass
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise SettingError(f"Cannot write results to {str(path)!r}: {error.strerror or error}.") from error

    def write(self, content: str | bytes) -> None:
        """Write all of `content`, or nothing. Raises SettingError if the path has become unwritable."""
        data = content.encode() if isinstance(content, str) else content
        try:
            if self._is_device():
                self._path.write_bytes(data)
                return
            handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(data)
                os.chmod(temporary, 0o644)
                os.replace(temporary, self._path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise SettingError(f"Cannot write results to {str(self._path)!r}: {error.strerror or error}.") from error

    def _is_device(self) -> bool:
        """Whether the path is a pipe or a device, such as /dev/stdout, which must not be replaced."""
        return self._path.exists() and not self._path.is_file() and not self._path.is_dir()
