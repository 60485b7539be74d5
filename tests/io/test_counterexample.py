from __future__ import annotations

import re
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.errors import SettingError
from zonoplug.io.counterexample import format_counterexample
from zonoplug.io.vnnlib import read_specification
from zonoplug.verify.problem.rounded_box import inward_box


@pytest.fixture(scope="module")
def specified(tmp_path_factory):
    path = tmp_path_factory.mktemp("counterexample") / "spec.vnnlib"

    def specified(bounds, assertion="(assert (<= Y_0 1e9))"):
        lines = [f"(declare-const X_{i} Real)" for i in range(len(bounds))] + ["(declare-const Y_0 Real)"]
        for i, (lower, upper) in enumerate(bounds):
            lines += [f"(assert (>= X_{i} {lower}))", f"(assert (<= X_{i} {upper}))"]
        path.write_text("\n".join([*lines, assertion]))
        return read_specification(path)

    return specified


def words(text, letter="X"):
    return re.findall(rf"\({letter}_\d+ ([^\s()]+)\)", text)


def test_version_one_form(specified):
    spec = specified([(0, 1), (-1, 1)])
    text = format_counterexample(spec, np.array([0.5, -1e-05], np.float32), np.array([3], np.float32))
    assert text == "((X_0 0.5)\n (X_1 -0.00001)\n (Y_0 3.0))"


def test_version_two_form(tmp_path):
    path = tmp_path / "spec.vnnlib"
    path.write_text(
        "(vnnlib-version <2.0>)(declare-network f (declare-input In float32 [1,1,2])(declare-output Out real []))"
        "(assert (and (>= In[0,0,0] 0) (<= In[0,0,0] 1)))(assert (and (>= In[0,0,1] 0) (<= In[0,0,1] 1)))"
    )
    spec = read_specification(path)
    text = format_counterexample(spec, np.array([[[0.5, 0.1]]], np.float32), np.float32(2.5))
    assert text == "In float32 [1,1,2]\n0.5\n0.1\nOut real []\n2.5"


def test_float32_values_given_in_float64_are_written_as_float32(specified):
    spec = specified([(0, 1)])
    value = float(np.float32(0.7))
    assert words(format_counterexample(spec, np.array([value]), np.array([1.0]))) == ["0.7"]


def test_float64_values_keep_all_digits(specified):
    spec = specified([(0, 1)])
    written = format_counterexample(spec, np.array([1 / 3]), np.array([2 / 3]))
    assert float(words(written)[0]) == 1 / 3 and float(words(written, "Y")[0]) == 2 / 3


def test_more_digits_where_the_short_form_would_cross_the_bound(specified):
    # float32(0.1) is 0.100000001490116...: inside both boxes, but its short form "0.1" is outside the first.
    value = np.array([0.1], np.float32)
    assert words(format_counterexample(specified([(0.100000001, 1)]), value, np.ones(1))) == ["0.10000000149011612"]
    assert words(format_counterexample(specified([(0.09, 1)]), value, np.ones(1))) == ["0.1"]
    # The bound is "0.3" in float64, but not as a decimal.
    bound = "0.30000000000000001"
    text = format_counterexample(specified([(bound, 1)]), np.array([0.3], np.float32), np.ones(1))
    assert Decimal(words(text)[0]) >= Decimal(bound)
    # A fixed input has no float32: the nearest one's short form is the bound itself.
    assert words(format_counterexample(specified([(0.1, 0.1)]), value, np.ones(1))) == ["0.1"]


def test_the_box_of_the_violated_disjunct_counts(specified):
    either = "(assert (or (and (<= X_0 0.05) (<= Y_0 0)) (and (> X_0 0.1) (<= Y_0 1))))"
    text = format_counterexample(specified([(0, 1)], either), np.array([0.1], np.float32), np.array([1.0]))
    assert Decimal(words(text)[0]) > Decimal("0.1")


decimals = st.integers(-(10**9), 10**9).map(lambda n: Decimal(n)) | st.integers(-999, 999).map(lambda n: Decimal(n))


@given(
    numbers=st.tuples(decimals, decimals).map(sorted),
    places=st.integers(0, 14),
    fraction=st.floats(0, 1),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_written_inputs_read_back_and_stay_inside(specified, numbers, places, fraction, dtype):
    lower, upper = (number.scaleb(-places) for number in numbers)
    spec = specified([(f"{lower:f}", f"{upper:f}")])
    low, high = (side[0] for side in inward_box(spec, 0, dtype))
    value = min(max(dtype(low + dtype(fraction) * (high - low)), low), high)
    (word,) = words(format_counterexample(spec, np.array([value]), np.ones(1)))
    assert dtype(word) == value
    if low <= high:
        assert lower <= Decimal(word) <= upper


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_every_float32_reads_back(specified, value):
    spec = specified([(-4e38, 4e38)])
    (word,) = words(format_counterexample(spec, np.array([value], np.float32), np.array([value], np.float32)))
    assert np.float32(word) == np.float32(value) and re.fullmatch(r"-?\d+\.\d+", word)


def test_wrong_counts_and_values_are_refused(specified):
    spec = specified([(0, 1)])
    with pytest.raises(SettingError, match="2 inputs, the specification declares 1"):
        format_counterexample(spec, np.zeros(2), np.zeros(1))
    with pytest.raises(SettingError, match="3 outputs, the specification declares 1"):
        format_counterexample(spec, np.zeros(1), np.zeros(3))
    with pytest.raises(SettingError, match="finite"):
        format_counterexample(spec, np.array([np.nan]), np.zeros(1))
