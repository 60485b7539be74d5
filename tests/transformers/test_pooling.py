"""Maxima and minima contain every point; windows are those of torch; certain winners are copied."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from zonoplug.domain.blocks import DenseBlock, DiagonalBlock
from zonoplug.domain.lp_ball import LpBall
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.transformers import affine, pooling

DTYPES = [torch.float32, torch.float64]


def pooled(zonotope, source, kernel, stride, padding, dilation, ceil_mode, **options):
    """The enclosure of a max-pool over the last axes of (channels, *size)."""
    channels, *size = zonotope.shape
    index, out = pooling.windows(size, kernel, stride, [(p, p) for p in padding], dilation, ceil_mode)
    flat = zonotope.reshape((channels, int(torch.tensor(size).prod())))
    return pooling.max_over_windows(flat, index, source, "pool", **options), (channels, *out)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (2, 2, 1), (3, 2, 1), (3, 1, 1), (2, 3, 0)])
@pytest.mark.parametrize("rank", [1, 2])
def test_windows_are_those_of_torch(rank, kernel, stride, padding, dilation, ceil_mode):
    size = (9, 7)[:rank]
    x = torch.randn(1, 1, *size)
    operator = (functional.max_pool1d, functional.max_pool2d)[rank - 1]
    expected = operator(x, kernel, stride, padding, dilation, ceil_mode)
    index, out = pooling.windows(
        size, [kernel] * rank, [stride] * rank, [(padding, padding)] * rank, [dilation] * rank, ceil_mode
    )
    values = torch.where(index >= 0, x.flatten()[index.clamp(min=0)], -torch.inf).amax(-1)
    assert torch.equal(values.reshape(out), expected[0, 0])


@given(
    st.integers(0, 1000),
    st.sampled_from(DTYPES),
    st.sampled_from([(2, 2, 0, 1), (3, 2, 1, 1), (2, 1, 0, 2), (3, 1, 1, 1)]),
    st.floats(1e-6, 5),
    st.booleans(),
    st.booleans(),
)
def test_a_max_pool_contains_every_point(make_pair, check_image, seed, dtype, window, radius, box, ceil_mode):
    kernel, stride, padding, dilation = window
    x, _, source = make_pair(((2, 5, 5), (1,)), radius=radius, seed=seed, dtype=dtype, box=box, diagonal=0)
    index = torch.stack([torch.randperm(50, generator=torch.Generator().manual_seed(seed))[:20] for _ in range(2)])
    values = torch.full((2, 20), radius, dtype=dtype)
    fresh = DiagonalBlock(source.fresh("fresh", index), values, index, (2, 5, 5))
    x = Zonotope(x.center, (*x.blocks, fresh), x.box)
    result, shape = pooled(x, source, [kernel] * 2, [stride] * 2, [padding] * 2, [dilation] * 2, ceil_mode)

    def function(value):
        image = functional.max_pool2d(value, kernel, stride, padding, dilation, ceil_mode)
        assert tuple(image.shape[1:]) == shape
        return image.flatten(2)

    check_image(function, (x,), result)


def test_a_certain_winner_is_copied_with_its_symbols():
    source = SymbolSource()
    ids = source.fresh("input", torch.zeros(1, 2, dtype=torch.int64))
    generators = torch.tensor([[[1.0, 1.0, 0.2], [0.0, 0.1, 0.3]]])
    x = Zonotope(torch.tensor([[0.0, 0.5, -9.0]]), (DenseBlock(ids, generators),))
    result = pooling.max_over_windows(x, torch.tensor([[0, 1, 2]]), source, "pool").zonotope
    assert torch.equal(result.symbols, ids)  # its hull overlaps the first one's, but not that of their difference
    torch.testing.assert_close(result.generators(), generators[..., 1:2])


def test_disjoint_windows_keep_diagonal_blocks_and_drop_losers():
    source = SymbolSource()
    zonotope = Zonotope(torch.tensor([[5.0, 0.0, 0.0, 5.0]])).with_fresh_symbols(torch.ones(1, 4), source, "relu")
    result = pooling.max_over_windows(zonotope, torch.tensor([[0, 1], [2, 3]]), source, "pool").zonotope
    (block,) = result.blocks
    assert isinstance(block, DiagonalBlock) and block.symbols.tolist() == [0, 3]
    torch.testing.assert_close(result.interval_hull().lower, torch.tensor([[4.0, 4.0]]))


def test_a_max_pool_in_small_chunks_is_the_same(make_pair):
    x, _, source = make_pair(((2, 6), (1,)))
    index = torch.tensor([[0, 1, 2], [3, 4, 5]])
    whole, chunked = (
        pooling.max_over_windows(x, index, source, "pool", limit_bytes=limit).zonotope for limit in (2**28, 1)
    )
    torch.testing.assert_close(whole.center, chunked.center)
    torch.testing.assert_close(whole.radius(), chunked.radius())


@given(
    st.integers(0, 1000), st.sampled_from(DTYPES), st.booleans(), st.booleans(), st.sampled_from([(1,), (-1,), (1, 3)])
)
def test_reductions_contain_every_point(make_pair, check_image, seed, dtype, box, keepdims, axes):
    x, _, source = make_pair(((3, 2, 4), (1,)), seed=seed, dtype=dtype, box=box)
    largest = pooling.max_over_axes(x, axes, keepdims, source, "max")
    check_image(lambda value: value.amax(axes, keepdims), (x,), largest)
    smallest = pooling.min_over_axes(x, axes, keepdims, source, "min", bounds=x.interval_hull())
    check_image(lambda value: value.amin(axes, keepdims), (x,), smallest)


@given(st.integers(0, 1000), st.sampled_from(DTYPES), st.booleans(), st.integers(0, 5), st.floats(1e-6, 5))
def test_maximum_and_minimum_contain_every_point(make_pair, check_image, seed, dtype, box, shared, radius):
    x, y, source = make_pair(((3, 4), (1, 4)), shared, radius, seed, dtype, box=box, diagonal=2)
    constant = torch.randn(3, 1, dtype=dtype)
    preactivations = (x.interval_hull(), y.interval_hull())
    check_image(torch.maximum, (x, y), pooling.maximum(x, y, source, "max", preactivations))
    check_image(torch.minimum, (x, y), pooling.minimum(x, y, source, "min"))
    check_image(torch.maximum, (constant, y), pooling.maximum(constant, y, source, "max"))
    check_image(torch.minimum, (x, constant), pooling.minimum(x, constant, source, "min", (preactivations[0], None)))


def test_the_maximum_of_two_equal_zonotopes_is_that_zonotope(make_pair):
    x, _, source = make_pair(box=False)
    result = pooling.maximum(x, Zonotope(x.center, x.blocks), source, "max").zonotope
    assert torch.equal(result.symbols, x.symbols)
    torch.testing.assert_close(result.generators(), x.generators())


def test_bounds_of_a_maximum_are_those_of_intervals_at_least(make_pair):
    x, y, source = make_pair()
    for tight in (None, Interval(x.center - 0.01, x.center + 0.01)):
        preactivations = (x.interval_hull() if tight is None else tight, y.interval_hull())
        bounds = pooling.maximum(x, y, source, "max", (tight, None)).bounds
        torch.testing.assert_close(bounds.lower, torch.maximum(preactivations[0].lower, preactivations[1].lower))
        torch.testing.assert_close(bounds.upper, torch.maximum(preactivations[0].upper, preactivations[1].upper))


def test_batch_elements_do_not_leak(make_pair):
    x, y, source = make_pair(((2, 6), (2, 6)), batch=3)
    index = torch.tensor([[0, 1, 2], [2, 3, -1]])
    together = pooling.max_over_windows(x, index, source, "pool").zonotope
    both = pooling.maximum(x, y, source, "max").zonotope
    for element in range(3):
        part = slice(element, element + 1)
        alone = [
            Zonotope(z.center[part], tuple(DenseBlock(b.symbols, b.dense()[part]) for b in z.blocks), z.box[part])
            for z in (x, y)
        ]
        single = pooling.max_over_windows(alone[0], index, source, "pool").zonotope
        torch.testing.assert_close(together.center[element], single.center[0])
        torch.testing.assert_close(together.radius()[element], single.radius()[0])
        pair = pooling.maximum(*alone, source, "max").zonotope
        torch.testing.assert_close(both.radius()[element], pair.radius()[0])


def test_points_stay_points():
    source = SymbolSource()
    point = Zonotope(torch.tensor([[1.0, 3.0, 2.0]]))
    result = pooling.max_over_windows(point, torch.tensor([[0, 1, 2]]), source, "pool").zonotope
    assert torch.equal(result.center, torch.tensor([[3.0]])) and result.num_symbols == 0


def test_unknown_stays_unknown():
    source = SymbolSource()
    broken = Zonotope(torch.tensor([[1.0, torch.nan, 2.0]]))
    result = pooling.max_over_windows(broken, torch.tensor([[0, 1], [2, -1]]), source, "pool")
    assert result.bounds.upper.isnan().tolist() == [[True, False]]
    assert result.zonotope.interval_hull().upper.isnan().tolist() == [[True, False]]


def test_shared_symbols_cancel(make_pair):
    x, _, source = make_pair(((4,), (1,)), radius=3.0, box=False, diagonal=0)
    common = affine.add(affine.rearrange(x, lambda v: v[:, :1].expand(-1, 4)), torch.tensor([[0.0, 0.1, 0.2, 0.3]]))
    result = pooling.max_over_axes(common, [1], False, source, "max").zonotope
    assert torch.equal(result.symbols, x.symbols)


def test_gradients_flow(make_pair):
    x, y, source = make_pair(((2, 6), (2, 6)), radius=3.0)
    slope = torch.ones(1, 2, 6, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 1, 2], [2, 3, -1]])
    for transform in (
        lambda z: pooling.max_over_windows(z, index, source, "pool"),
        lambda z: pooling.maximum(z, y, source, "max"),
    ):
        upper = transform(x.scale(slope)).zonotope.interval_hull().upper
        (gradient,) = torch.autograd.grad(upper.sum(), slope)
        assert bool(gradient.isfinite().all()) and float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("mixed", [True, False])
def test_balls_stay_balls(p, mixed):
    source = SymbolSource()
    set_ = LpBall(torch.randn(2, 8, dtype=torch.float64), 0.8, p)
    zonotope = set_.to_zonotope(source, "input")
    weight = torch.randn(8, 8, dtype=torch.float64) if mixed else torch.eye(8, dtype=torch.float64)
    zonotope = affine.matrix(zonotope, weight) if mixed else zonotope
    boxed = Zonotope(zonotope.center, (DenseBlock(zonotope.symbols, zonotope.generators()),))
    index = torch.arange(8).reshape(4, 2)
    results = [pooling.max_over_windows(z, index, source, "pool") for z in (zonotope, boxed)]
    widths = [(r.zonotope.interval_hull().upper - r.zonotope.interval_hull().lower).mean() for r in results]
    assert widths[0] < 0.9 * widths[1] if mixed else widths[0] <= widths[1]
    points = set_.sample(500) @ weight.T
    images = points[..., index].amax(-1)
    hull = results[0].zonotope.interval_hull()
    assert bool((images >= hull.lower - 1e-9).all() & (images <= hull.upper + 1e-9).all())
