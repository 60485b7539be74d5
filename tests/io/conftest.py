from __future__ import annotations

import numpy as np
import pytest

from zonoplug.io.vnnlib import read_specification


@pytest.fixture
def read(tmp_path):
    def read(text, name="spec.vnnlib"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_specification(path)

    return read


@pytest.fixture(scope="session")
def rows_of():
    """The rows of a disjunct as ({(output, coefficient), ...}, bound, strict)."""

    def rows_of(specification, disjunct):
        found = []
        for row in np.flatnonzero(specification.row_disjunct == disjunct):
            of_row = specification.entry_row == row
            outputs, values = specification.entry_output[of_row].tolist(), specification.entry_value[of_row].tolist()
            terms = set(zip(outputs, values, strict=True))
            found.append((terms, float(specification.row_bound[row]), bool(specification.row_strict[row])))
        return found

    return rows_of


@pytest.fixture(scope="session")
def assert_same(rows_of):
    """Two specifications have the same boxes and disjuncts."""

    def assert_same(left, right):
        for name in ("lower", "upper", "box_of_disjunct"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
        assert [rows_of(left, d) for d in range(left.num_disjuncts)] == [
            rows_of(right, d) for d in range(right.num_disjuncts)
        ]

    return assert_same
