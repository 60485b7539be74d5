"""Blocks equal their dense oracle, sums are aligned by id, boxes cover what they should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.domain import dense_block
from zonoplug.domain.blocks import DenseBlock, DiagonalBlock
from zonoplug.domain.convolutions import Convolution
from zonoplug.domain.input_sets import Box
from zonoplug.domain.linear_maps import MatrixMap, NonNegativeMap, Scaling, row_by_row
from zonoplug.domain.symbols import SymbolSource, merge_ids
from zonoplug.domain.zonotope import Zonotope, add_zonotopes
from zonoplug.errors import SettingError
from zonoplug.testing import check_encloses, dense_copy


def same(left: Zonotope, right: Zonotope) -> None:
    """Equal center, box and generators, symbol by symbol."""
    torch.testing.assert_close(left.center, right.center)
    assert torch.equal(left.symbols, right.symbols)
    torch.testing.assert_close(left.generators(), right.generators())
    assert (left.box is None) == (right.box is None)
    if left.box is not None:
        torch.testing.assert_close(left.box, right.box)


def linear_maps(dtype):
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(7, 12, generator=random, dtype=dtype)
    kernel = torch.randn(4, 3, 2, 2, generator=random, dtype=dtype)
    return {
        "matrix": ((12,), MatrixMap(weight)),
        "matrix on the last axis": ((2, 12), MatrixMap(weight)),
        "convolution": ((3, 2, 2), Convolution(kernel, [1, 1], [1, 1], [1, 1], 1)),
        "grouped convolution": ((4, 3, 3), Convolution(kernel[:, :1], [2, 1], [0, 1], [1, 1], 4)),
        "scaling": ((3, 4), Scaling(torch.randn(1, 3, 1, generator=random, dtype=dtype))),
        "transpose": ((3, 4), NonNegativeMap(row_by_row(lambda x: x.transpose(1, 2)))),
        "sum": ((3, 4), NonNegativeMap(row_by_row(lambda x: x.sum(dim=2)))),
        "reshape with a batch of 1 written into it": ((3, 4), NonNegativeMap(row_by_row(lambda x: x.reshape(1, 12)))),
    }


@pytest.mark.parametrize("name", linear_maps(torch.float64))
def test_every_block_maps_as_its_dense_oracle(make_zonotope, name):
    shape, linear = linear_maps(torch.float64)[name]
    zonotope = make_zonotope(shape=shape)
    same(zonotope.map(linear), dense_copy(zonotope).map(linear))


@pytest.mark.parametrize("name", linear_maps(torch.float64))
def test_a_mapped_zonotope_contains_the_images_of_its_points(make_zonotope, name):
    shape, linear = linear_maps(torch.float64)[name]
    zonotope = make_zonotope(shape=shape)
    image = zonotope.map(linear)
    for _ in range(50):
        noise = 2 * torch.rand(zonotope.batch, zonotope.num_symbols, dtype=torch.float64) - 1
        side = (2 * torch.rand(zonotope.batch, *shape, dtype=torch.float64) - 1).sign()
        point = linear.apply(zonotope.point(noise, side))
        assert bool(((point - image.point(noise)).abs() <= image.box + 1e-9).all())


@pytest.mark.parametrize("name", linear_maps(torch.float64))
def test_the_transpose_is_the_adjoint(name):
    """<A x, a> = <x, A^T a>."""
    shape, linear = linear_maps(torch.float64)[name]
    x = torch.randn(5, *shape, dtype=torch.float64)
    image = linear.apply(x)
    a = torch.randn_like(image)
    back = linear.transpose(a, shape)
    assert back.shape == x.shape
    torch.testing.assert_close((image * a).flatten(1).sum(dim=1), (x * back).flatten(1).sum(dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scale_reshape_and_radius_match_the_oracle(make_zonotope, dtype):
    zonotope = make_zonotope(shape=(3, 4), dtype=dtype)
    oracle = dense_copy(zonotope)
    factor = torch.randn(2, 3, 4, dtype=dtype)
    same(zonotope.scale(factor, factor), oracle.scale(factor, factor))
    same(zonotope.reshape((2, 6)), oracle.reshape((2, 6)))
    torch.testing.assert_close(zonotope.radius(), oracle.radius())


def test_scaling_keeps_a_diagonal_block_diagonal(make_zonotope):
    zonotope = make_zonotope(dense=0).scale(torch.full((1, 1), 2.0, dtype=torch.float64))
    assert isinstance(zonotope.blocks[0], DiagonalBlock)


def test_a_sum_is_aligned_by_id_not_by_position():
    source = SymbolSource()
    index = torch.zeros(1, 2, dtype=torch.int64)
    first, second = source.fresh("a", index), source.fresh("b", index)
    ones = torch.ones(1, 2, 1)
    left = Zonotope(torch.zeros(1, 1), (DenseBlock(first, ones), DenseBlock(second, 2 * ones)))
    right = Zonotope(torch.zeros(1, 1), (DenseBlock(second, -2 * ones),))
    total = add_zonotopes(left, right)
    assert torch.equal(total.symbols, merge_ids(first, second))
    torch.testing.assert_close(total.generators().flatten(), torch.tensor([1.0, 1.0, 0.0, 0.0]))


@given(st.integers(0, 10_000))
def test_sums_on_forked_symbols_contain_the_sums_of_points(seed):
    """Two branches share some symbols and have some of their own, in any order and structure."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randperm(9, generator=random)
    shared, only_left, only_right = ids[:3], ids[3:6], ids[6:]

    def block(symbols):
        return DenseBlock(symbols, torch.randn(1, len(symbols), 4, generator=random))

    def branch(own):
        parts = [block(shared[:2]), block(own), block(shared[2:])]
        order = torch.randperm(3, generator=random).tolist()
        return Zonotope(torch.randn(1, 4, generator=random), tuple(parts[i] for i in order))

    left, right = branch(only_left), branch(only_right)
    total = add_zonotopes(left, right)
    noise = 2 * torch.rand(9, generator=random) - 1
    point = left.point(noise[left.symbols][None]) + right.point(noise[right.symbols][None])
    torch.testing.assert_close(total.point(noise[total.symbols][None]), point, atol=1e-5, rtol=1e-5)


def test_support_is_reached_by_a_vertex(make_zonotope):
    zonotope = make_zonotope(batch=1, box=False)
    direction = torch.randn(1, 5, dtype=torch.float64)
    signs = (zonotope.generators().flatten(2) @ direction.T).squeeze(-1).sign()
    torch.testing.assert_close(zonotope.support(direction), zonotope.point(signs) @ direction.T)


def test_fresh_symbols_are_given_only_where_needed_and_per_element():
    radius = torch.tensor([[0.0, 2.0, 0.0, 3.0], [5.0, 0.0, 0.0, 0.0]])
    source = SymbolSource()
    zonotope = Zonotope(torch.zeros(2, 4)).with_fresh_symbols(radius, source, "relu")
    assert zonotope.num_symbols == 2
    torch.testing.assert_close(zonotope.radius(), radius)
    assert source.origins[0].node == "relu"
    assert source.origins[0].index.tolist() == [[1, 3], [0, 0]]


def test_an_unknown_radius_stays_unknown():
    radius = torch.tensor([[0.0, torch.nan, torch.inf]])
    hull = Zonotope(torch.zeros(1, 3)).with_fresh_symbols(radius, SymbolSource(), "x").interval_hull()
    assert hull.lower[0, 0] == 0
    assert torch.isnan(hull.lower[0, 1])
    assert hull.lower[0, 2] == -torch.inf


@given(st.floats(-1e6, 1e6, width=32), st.floats(0, 1e6, width=32))
def test_a_box_is_covered_in_floating_point(lower, width):
    low = torch.tensor([[lower]])
    high = low + width
    hull = Box(low, high).to_zonotope(SymbolSource(), "x").interval_hull()
    assert bool((hull.lower <= low).all() & (hull.upper >= high).all())


def test_a_box_samples_inside_itself_and_at_its_corners():
    box = Box.ball(torch.randn(3, 4), 0.1)
    samples = box.sample(100)
    assert samples.shape == (100, 3, 4)
    assert bool(((samples >= box.lower) & (samples <= box.upper)).all())
    assert bool((samples == box.lower).any() & (samples == box.upper).any())


@pytest.mark.parametrize(("lower", "upper"), [([0.0], [-1.0]), ([torch.nan], [1.0]), ([0.0], [torch.inf])])
def test_a_senseless_box_is_refused(lower, upper):
    with pytest.raises(SettingError, match="Box"):
        Box(torch.tensor([lower]), torch.tensor([upper]))


def test_the_enclosure_law_notices_a_lost_symbol(make_zonotope):
    zonotope = make_zonotope(dense=4, diagonal=0)
    block = zonotope.blocks[0]
    broken = Zonotope(zonotope.center, (DenseBlock(block.symbols[1:], block.generators[:, 1:]),), zonotope.box)
    with pytest.raises(AssertionError, match="lost"):
        check_encloses(broken, zonotope)


@pytest.mark.parametrize("shape", [(1, 7, 5), (3, 7, 2, 2), (9, 2, 5), (2, 0, 3), (8, 1, 1)])
@pytest.mark.parametrize("limit", [1, 4, 1000])
def test_large_sums_of_absolute_values_are_made_in_parts(monkeypatch, shape, limit):
    monkeypatch.setattr(dense_block, "PART_ENTRIES", limit)
    values = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(dense_block.absolute_sum(values), values.abs().sum(dim=1))


def test_small_blocks_are_joined_and_large_ones_left_alone(monkeypatch):
    monkeypatch.setattr(dense_block, "PART_ENTRIES", 20)
    source = SymbolSource()
    sizes = (3, 9, 2)
    blocks = [DenseBlock(source.fresh("x", torch.zeros(1, k, dtype=torch.int64)), torch.randn(1, k, 4)) for k in sizes]
    joined = dense_block.join_small(blocks)
    assert sorted(block.num_symbols for block in joined) == [5, 9]
    center = torch.zeros(1, 4)
    same(Zonotope(center, tuple(joined)), Zonotope(center, tuple(blocks)))


def test_a_radius_that_was_found_without_gradients_has_them_when_asked():
    generators = torch.ones(1, 2, 3, requires_grad=True)
    ids = SymbolSource().fresh("x", torch.zeros(1, 2, dtype=torch.int64))
    zonotope = Zonotope(torch.zeros(1, 3), (DenseBlock(ids, generators),))
    with torch.no_grad():
        assert not zonotope.radius().requires_grad
    zonotope.radius().sum().backward()
    assert torch.equal(generators.grad, torch.ones(1, 2, 3))
