"""Inputs from files: pictures, arrays, rows of numbers; and what is said about bad ones."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from zonoplug.io.input_file import InputFileError, read_input


def test_a_row_with_names_and_a_label(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("class,speed,angle\n7,1.5,-2\n1,3,4\n")
    found = read_input(path, 2)
    assert found.values.tolist() == [1.5, -2]
    assert (found.names, found.label, found.is_picture) == (("speed", "angle"), 7, False)
    assert read_input(path, 2, row=1).label == 1
    assert read_input(path, 3).label is None


def test_a_column_of_numbers_is_one_input(tmp_path):
    (tmp_path / "column.csv").write_text("1\n2\n3\n")
    assert read_input(tmp_path / "column.csv", 3).values.tolist() == [1, 2, 3]


def test_zipped_rows_and_division(tmp_path):
    path = tmp_path / "image.csv.gz"
    path.write_bytes(gzip.compress(b"3,0,255,51,102\n"))
    found = read_input(path, 4, divide=255)
    np.testing.assert_allclose(found.values, [0, 1, 0.2, 0.4])
    assert found.label == 3


def test_arrays(tmp_path):
    np.save(tmp_path / "bytes.npy", np.array([[0, 255]], np.uint8))
    assert read_input(tmp_path / "bytes.npy", 2).values.tolist() == [0, 1]
    image = np.arange(5 * 4 * 3, dtype=float).reshape(5, 4, 3)
    np.save(tmp_path / "image.npy", image)
    np.testing.assert_array_equal(read_input(tmp_path / "image.npy", 60).values, image.transpose(2, 0, 1).ravel())


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("1", 1), ("P", 3)])
def test_pictures(tmp_path, mode, channels):
    image = pytest.importorskip("PIL.Image").new("RGB", (6, 4), (255, 255, 255)).convert(mode)
    image.save(tmp_path / "picture.png")
    found = read_input(tmp_path / "picture.png", 24)
    assert found.is_picture
    assert found.values.shape == (channels, 4, 6)
    assert float(found.values.min()) == 1


BAD = {
    "missing": ("absent.csv", None, "no such file"),
    "unknown ending": ("input.txt", b"1,2", "Known: .png"),
    "no picture": ("input.png", b"hello", "cannot be read as a picture"),
    "no array": ("input.npy", b"hello", "cannot be read as a numpy array"),
    "too few": ("input.csv", b"1\n", "1 numbers, the network takes 3"),
    "a word": ("input.csv", b"1,2,3\n1,x,3", "'x' in row 1"),
    "no rows": ("input.csv", b"", "0 rows"),
    "not finite": ("input.csv", b"1,nan,3", "finite"),
    "broken gzip": ("input.csv.gz", b"hello", "cannot be read as text"),
    "binary": ("input.csv", b"\xff\xfe\x00", "cannot be read as text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_what_is_wrong(tmp_path, name):
    file, content, said = BAD[name]
    path = tmp_path / file
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputFileError, match=said) as caught:
        read_input(path, 3, row=1 if name == "a word" else 0)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_arrays_of_the_wrong_size_or_kind(tmp_path):
    np.save(tmp_path / "small.npy", np.zeros(2))
    with pytest.raises(InputFileError, match="holds 2 numbers"):
        read_input(tmp_path / "small.npy", 3)
    np.save(tmp_path / "words.npy", np.array(["a", "b", "c"]))
    with pytest.raises(InputFileError, match="no array of numbers"):
        read_input(tmp_path / "words.npy", 3)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputFileError, match="cannot be read"):
        read_input(tmp_path / "objects.npy", 1)
