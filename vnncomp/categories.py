"""Settings by category, from categories.toml."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from zonoplug.errors import SettingError, UnknownNameError
from zonoplug.verify.components import check_components

FILE = Path(__file__).with_name("categories.toml")
KINDS = {"reason": str, "method": str, "branching": str, "without": list, "seed": int}


def category_settings(category: str, path: Path = FILE) -> dict[str, Any]:
    """The settings of a category: those of its table, without the reason; {} for a category without one.

    Args:
        category: the harness's name; a year in front (2024_acasxu) is ignored unless the file names it.
    Raises:
        SettingError: the file cannot be read, or one of its tables is not as it should be. All tables are checked, so
            that a mistake shows before the category comes up.
    """
    tables = _read(path)
    for name, table in tables.items():
        _check(path, name, table)
    bare = re.sub(r"^\d{4}_", "", category)
    table = tables.get(category, tables.get(bare, {}))
    return {key: value for key, value in table.items() if key != "reason"}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error.strerror or error}.") from error
    if not any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
        return {}  # no category has settings: nothing to parse, and no parser to import
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        tables: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path}: is not TOML: {error}.") from error
    return tables


def _check(path: Path, name: str, table: Any) -> None:
    where = f"{path}, category {name!r}"
    if not isinstance(table, dict):
        raise SettingError(f"{where}: is no table. Type: [{name}] on a line of its own.")
    for key, value in table.items():
        if key not in KINDS:
            raise SettingError(f"{where}: {UnknownNameError('setting', key, KINDS)}")
        kind = KINDS[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise SettingError(f"{where}: {key} is {value!r}, and must be a {kind.__name__}.")
    if not table.get("reason"):
        raise SettingError(f'{where}: has no reason. Type: reason = "what was measured"')
    if not all(isinstance(entry, str) for entry in table.get("without", [])):
        raise SettingError(f"{where}: without must list names of components.")
    try:
        check_components(table.get("without", []))
        if "branching" in table:
            from zonoplug.verify.branching.by_name import (
                Branching,
            )  # imports torch, which the process that watches can do without

            Branching.named(table["branching"])
    except UnknownNameError as error:
        raise SettingError(f"{where}: {error}") from error
