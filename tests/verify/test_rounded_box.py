from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.specification import Specification, Variable
from zonoplug.verify.problem.rounded_box import beyond_range, inward_box, nearest_box, outward_box

NOTHING = np.zeros(0, np.int64)
FLOATS = [np.float16, np.float32, np.float64]


def boxed(lower, upper, open_lower=None, open_upper=None):
    lower, upper = np.atleast_2d(np.array(lower, np.float64)), np.atleast_2d(np.array(upper, np.float64))
    return Specification(
        version="1.0",
        inputs=Variable("X", "float32", (lower.shape[1],)),
        outputs=Variable("Y", "float32", (1,)),
        lower=lower,
        upper=upper,
        box_of_disjunct=np.arange(len(lower)),
        row_disjunct=NOTHING,
        row_bound=np.zeros(0),
        row_strict=np.zeros(0, np.bool_),
        entry_row=NOTHING,
        entry_output=NOTHING,
        entry_value=np.zeros(0),
        open_lower=None if open_lower is None else np.atleast_2d(np.array(open_lower)),
        open_upper=None if open_upper is None else np.atleast_2d(np.array(open_upper)),
    )


def neighbours(value):
    with np.errstate(over="ignore"):
        return np.nextafter(value, value.dtype.type(-np.inf)), np.nextafter(value, value.dtype.type(np.inf))


numbers = st.one_of(
    st.floats(-1e30, 1e30),
    st.floats(-60000, 60000, width=16),
    st.floats(-2, 2, width=32),
    st.integers(-50, 50).map(lambda n: n / 10),
)


@given(
    bounds=st.tuples(numbers, numbers).map(sorted),
    dtype=st.sampled_from(FLOATS),
    excluded=st.tuples(*[st.booleans()] * 2),
)
def test_rounded_boxes(bounds, dtype, excluded):
    largest = float(np.finfo(dtype).max)
    (low, high), (no_low, no_high) = np.clip(bounds, -largest, largest).tolist(), excluded
    if low == high:
        no_low = no_high = False
    spec = boxed([low], [high], [no_low], [no_high])
    (inner_low,), (inner_high,) = inward_box(spec, 0, dtype)
    (outer_low,), (outer_high,) = outward_box(spec, 0, np.dtype(dtype))
    assert {np.dtype(type(x)) for x in (inner_low, inner_high, outer_low, outer_high)} == {np.dtype(dtype)}

    def within(value):
        value = float(value)
        return low <= value <= high and not (no_low and value == low) and not (no_high and value == high)

    # The outer box covers the bounds, and one step less would not.
    assert float(outer_low) <= low and float(outer_high) >= high and np.isfinite([outer_low, outer_high]).all()
    assert float(neighbours(outer_low)[1]) > low and float(neighbours(outer_high)[0]) < high
    # The inner box is within, and one step more would not be; or nothing is within.
    (near_low,), (near_high,) = nearest_box(spec, 0, dtype)
    if inner_low <= inner_high:
        assert within(inner_low) and within(inner_high)
        assert not within(neighbours(inner_low)[0]) and not within(neighbours(inner_high)[1])
        assert (near_low, near_high) == (inner_low, inner_high)
    else:
        below, above = neighbours(outer_low), neighbours(outer_high)
        assert not any(map(within, (outer_low, outer_high, *below, *above)))
        assert outer_low <= near_low <= near_high <= outer_high
        assert abs(float(near_low) - low) <= min(abs(float(x) - low) for x in neighbours(near_low))
        assert abs(float(near_high) - high) <= min(abs(float(x) - high) for x in neighbours(near_high))


def test_fixed_input_without_a_float32():
    spec = boxed([0.1, 0.5], [0.1, 0.5])
    lower, upper = inward_box(spec, 0, np.float32)
    assert (lower > upper).tolist() == [True, False] and lower[1] == upper[1] == 0.5
    lower, upper = nearest_box(spec, 0, np.float32)
    assert lower.tolist() == upper.tolist() == [float(np.float32(0.1)), 0.5]
    lower, upper = outward_box(spec, 0, np.float32)
    assert float(lower[0]) < 0.1 < float(upper[0]) and np.nextafter(lower[0], np.float32(1)) == upper[0]
    assert lower[1] == upper[1] == 0.5


def test_intervals_between_neighbouring_numbers():
    spec = boxed([16777216.7, 0.0], [16777217.2, 1e-46], [False, True], [False, True])
    lower, upper = inward_box(spec, 0, np.float32)
    assert (lower > upper).all()
    lower, upper = nearest_box(spec, 0, np.float32)
    assert lower.tolist() == [16777216, 0] and upper.tolist() == [16777218, 0]
    lower, upper = inward_box(boxed(1e-46, 3e-45), 0, np.float32)
    assert [float(lower[0]), float(upper[0])] == [2**-149, 2**-148]  # subnormal numbers count


def test_each_box_has_its_own_bounds():
    spec = boxed([[0.0], [2.0]], [[1.0], [3.0]], [[True], [False]])
    assert inward_box(spec, 0, np.float32)[0][0] == np.nextafter(np.float32(0), np.float32(1))
    assert inward_box(spec, 1, np.float32)[0][0] == 2.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_beyond_the_range_of_float32(sign):
    bounds = np.sort([sign * 3.4028235e38, sign * 1.0])
    spec = boxed(bounds[:1], bounds[1:])
    largest = float(np.finfo(np.float32).max)
    assert abs(bounds).max() > largest and beyond_range(spec, np.float32) is None
    for rounded in (inward_box, outward_box, nearest_box):
        lower, upper = rounded(spec, 0, np.float32)
        assert sorted([float(lower[0]), float(upper[0])]) == sorted([sign * largest, sign])
    spec = boxed([0.0, min(sign, sign * 1e39)], [1.0, max(sign, sign * 1e39)])
    assert beyond_range(spec, np.float32) == (1, sign * 1e39) and beyond_range(spec, np.float64) is None
    assert np.isfinite(outward_box(spec, 0, np.float32)).all()
