"""Read one input of a network from a file: a picture, a numpy array, or a row of comma-separated numbers."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zonoplug.errors import ZonoplugError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


class InputFileError(ZonoplugError):
    """The file cannot be read as an input, or does not fit the network."""


@dataclass(frozen=True, slots=True, eq=False)
class InputFile:
    """One input as it stands in a file.

    Attributes:
        values: as an image (channels, height, width) in [0, 1] if it was a picture, else flat; of an array
            (height, width, channels) one channel after the other.
        names: of the columns, if the file has a header.
        label: the class written before the numbers, if the row has one number too many.
        is_picture: whether it was a picture.
    """

    values: NDArray[Any]
    names: tuple[str, ...] | None = None
    label: int | None = None
    is_picture: bool = False


def read_input(path: str | Path, count: int, divide: float = 1.0, row: int = 0) -> InputFile:
    """Read an input.

    Args:
        path: .png, .jpg, .jpeg, .bmp; .npy; .csv, or .csv.gz.
        count: how many numbers the network takes.
        divide: numbers of a .npy or .csv file are divided by this; whole numbers in one byte by 255 if it is 1.
        row: which row of a .csv file, from 0.
    Raises:
        InputFileError: what is wrong with the file, in one line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputFileError(f"{path}: there is no such file.")
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if f".{kind}" in PICTURES:
        return InputFile(_picture(path), is_picture=True)
    if kind == "npy":
        found = InputFile(_array(path, count, divide))
    elif kind == "csv":
        found = _row(path, count, divide, row)
    else:
        raise InputFileError(
            f"{path}: files that end in .{kind} are not known. Known: .png .jpg .bmp .npy .csv .csv.gz"
        )
    if not np.isfinite(found.values).all():
        raise InputFileError(f"{path}: not all numbers are finite.")
    return found


def _picture(path: Path) -> NDArray[Any]:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputFileError(f'{path}: pictures need Pillow. Type: pip install "zonoplug[explain]"') from error
    try:
        with Image.open(path) as picture:
            mode = "L" if picture.mode in ("1", "L", "I", "I;16", "LA") else "RGB"
            values = np.asarray(picture.convert(mode), dtype=np.float64) / 255
    except Exception as error:
        raise InputFileError(f"{path}: cannot be read as a picture: {_first_line(error)}") from error
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def _array(path: Path, count: int, divide: float) -> NDArray[Any]:
    try:
        values = np.load(path, allow_pickle=False)
    except Exception as error:
        raise InputFileError(f"{path}: cannot be read as a numpy array: {_first_line(error)}") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        raise InputFileError(f"{path}: holds no array of numbers.")
    if values.size != count:
        raise InputFileError(f"{path}: holds {values.size} numbers in shape {values.shape}, the network takes {count}.")
    if values.ndim == 3 and values.shape[2] in (1, 3) and values.shape[0] not in (1, 3):
        values = values.transpose(2, 0, 1)
    divide = 255.0 if values.dtype == np.uint8 and divide == 1 else divide
    return np.asarray(values, dtype=np.float64).ravel() / divide


def _row(path: Path, count: int, divide: float, row: int) -> InputFile:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.name.lower().endswith(".gz") else raw).decode()
    except Exception as error:
        raise InputFileError(f"{path}: cannot be read as text: {_first_line(error)}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    cells = [[cell.strip() for cell in line.split(",")] for line in lines]
    names = None
    if cells and not all(_is_number(cell) for cell in cells[0]):
        names, cells = tuple(cells[0]), cells[1:]
    if len(cells) == count and count > 1 and all(len(line) == 1 for line in cells):
        cells = [[line[0] for line in cells]]
    if not 0 <= row < len(cells):
        raise InputFileError(f"{path}: has {len(cells)} rows of numbers, so there is no row {row}.")
    words = cells[row]
    bad = next((word for word in words if not _is_number(word)), None)
    if bad is not None:
        raise InputFileError(f"{path}: {bad!r} in row {row} is no number.")
    numbers = np.array([float(word) for word in words])
    label = None
    if numbers.size == count + 1 and numbers[0] == int(numbers[0]) >= 0:
        label, numbers = int(numbers[0]), numbers[1:]
        names = names[1:] if names is not None else None
    if numbers.size != count:
        raise InputFileError(f"{path}: row {row} holds {numbers.size} numbers, the network takes {count}.")
    return InputFile(numbers / divide, names if names is not None and len(names) == count else None, label)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
