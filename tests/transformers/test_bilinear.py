"""Products, matrix products and quotients contain every point, and use what the operands share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.domain.blocks import DenseBlock
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope, add_zonotopes
from zonoplug.transformers import affine, bilinear, matrix_product
from zonoplug.transformers import product_ranges as ranges

FORMS = ["fast", "precise"]
DTYPES = [torch.float32, torch.float64]


def at_least(zonotope, lowest):
    """The zonotope, moved so that its hull starts at `lowest`."""
    return zonotope.shift(lowest + zonotope.radius() - zonotope.center)


def of_batch(zonotope, element):
    """One element of a batch, as a zonotope of its own."""
    part = slice(element, element + 1)
    blocks = tuple(DenseBlock(block.symbols, block.dense()[part]) for block in zonotope.blocks)
    return Zonotope(zonotope.center[part], blocks, None if zonotope.box is None else zonotope.box[part])


@pytest.mark.parametrize("form", FORMS)
@given(st.integers(0, 1000), st.sampled_from(DTYPES), st.floats(1e-6, 10), st.booleans(), st.integers(0, 6))
def test_a_product_contains_every_point(make_pair, check_image, form, seed, dtype, radius, box, shared):
    x, y, source = make_pair(shared=shared, radius=radius, seed=seed, dtype=dtype, box=box)
    check_image(torch.mul, (x, y), bilinear.product(x, y, source, "product", form))


@given(st.integers(0, 1000), st.sampled_from(DTYPES))
def test_a_product_of_shapes_that_broadcast_contains_every_point(make_pair, check_image, seed, dtype):
    x, y, source = make_pair(shapes=((3, 1, 4), (1, 2, 1)), seed=seed, dtype=dtype, diagonal=1)
    result = bilinear.product(x, y, source, "product")
    assert result.zonotope.shape == (3, 2, 4)
    check_image(torch.mul, (x, y), result)


@given(st.integers(0, 1000), st.sampled_from(DTYPES), st.booleans())
def test_a_square_is_exact_at_the_ends_and_contains_every_point(make_pair, check_image, seed, dtype, box):
    x, _, source = make_pair(radius=2.0, seed=seed, dtype=dtype, box=box)
    result = bilinear.product(x, x, source, "square")
    check_image(lambda a: a * a, (x,), result)
    lower, upper = x.interval_hull()
    torch.testing.assert_close(result.bounds.upper, torch.maximum(lower * lower, upper * upper))
    assert bool((result.bounds.lower >= 0).all())


@pytest.mark.parametrize("form", FORMS)
@given(st.integers(0, 1000), st.sampled_from(DTYPES), st.floats(1e-6, 5), st.booleans(), st.integers(0, 6))
def test_a_matrix_product_contains_every_point(make_pair, check_image, form, seed, dtype, radius, box, shared):
    shapes = ((2, 3, 4), (2, 4, 5))
    x, y, source = make_pair(shapes, shared, radius, seed, dtype, box=box)
    result = matrix_product.matrix_product(x, y, source, "product", form)
    assert result.zonotope.shape == (2, 3, 5)
    check_image(torch.matmul, (x, y), result)


@pytest.mark.parametrize("form", FORMS)
def test_a_matrix_product_in_small_chunks_is_the_same(make_pair, form):
    x, y, source = make_pair(((2, 3, 4), (2, 4, 5)))
    whole = matrix_product.matrix_product(x, y, source, "product", form).zonotope
    chunked = matrix_product.matrix_product(x, y, source, "product", form, limit_bytes=1).zonotope
    torch.testing.assert_close(whole.center, chunked.center)
    torch.testing.assert_close(whole.radius(), chunked.radius())


def test_leading_axes_of_a_matrix_product_broadcast(make_pair, check_image):
    x, y, source = make_pair(((2, 3, 4), (1, 4, 5)))
    check_image(torch.matmul, (x, y), matrix_product.matrix_product(x, y, source, "product"))


@pytest.mark.parametrize("form", FORMS)
def test_a_matrix_product_of_boxes_without_symbols_is_that_of_intervals(form):
    x, y = (Zonotope(torch.ones(1, 2, 2), (), torch.full((1, 2, 2), radius)) for radius in (0.5, 0.25))
    result = matrix_product.matrix_product(x, y, SymbolSource(), "product", form)
    assert torch.allclose(result.bounds.upper, torch.full((1, 2, 2), 2 * 1.5 * 1.25), rtol=1e-5)
    assert torch.allclose(result.bounds.lower, torch.full((1, 2, 2), 2 * 0.5 * 0.75), rtol=1e-5)


@given(st.integers(0, 1000), st.sampled_from(DTYPES), st.floats(1e-4, 3), st.booleans(), st.booleans())
def test_a_quotient_contains_every_point(make_pair, check_image, seed, dtype, radius, box, negative):
    x, y, source = make_pair(radius=radius, seed=seed, dtype=dtype, box=box)
    y = at_least(y, 0.3)
    y = affine.negate(y) if negative else y
    result = bilinear.divide(x, y, source, "quotient")
    check_image(torch.div, (x, y), result, scale=4 * float(result.zonotope.radius().max() + 10))


def test_a_constant_divided_by_a_zonotope_contains_every_point(make_pair, check_image):
    _, y, source = make_pair()
    y, constant = at_least(y, 0.3), torch.tensor([1.0, -2.0, 0.0, 3.0], dtype=torch.float64)
    result = bilinear.divide(constant, y, source, "quotient")
    check_image(lambda z: constant / z, (y,), result)


def test_a_divisor_that_may_be_zero_gives_nan(make_pair):
    x, y, source = make_pair()
    straddling = y.shift(-y.center)
    result = bilinear.divide(x, straddling, source, "quotient")
    assert bool(result.zonotope.center.isnan().all()) and bool(result.bounds.lower.isnan().all())


@pytest.mark.parametrize("form", FORMS)
def test_bounds_that_hold_are_used_and_stay_sound(make_pair, form):
    x, y, source = make_pair(radius=2.0)
    tight = Interval(x.center - 0.5, x.center + 0.75)
    free = bilinear.product(x, y, source, "product", form)
    bound = bilinear.product(x, y, source, "product", form, bounds=(tight, None))
    assert bool((bound.bounds.upper - bound.bounds.lower < free.bounds.upper - free.bounds.lower).all())
    image = bound.zonotope
    for _ in range(200):
        noise = 2 * torch.rand(2, x.num_symbols + y.num_symbols, dtype=torch.float64) - 1
        ids = torch.unique(torch.cat([x.symbols, y.symbols]))
        noise = noise[:, : ids.shape[0]].sign()
        p = x.point(noise[:, torch.searchsorted(ids, x.symbols)])
        q = y.point(noise[:, torch.searchsorted(ids, y.symbols)])
        inside = (p >= tight.lower) & (p <= tight.upper)
        reach = image.center + (image.generators(ids) * noise.unsqueeze(-1)).sum(1)
        fresh = image.generators(image.symbols[~torch.isin(image.symbols, ids)]).abs().sum(1)
        missing = (p * q - reach).abs() - fresh - (0 if image.box is None else image.box)
        assert bool((missing[inside] <= 1e-9).all())


@given(st.integers(0, 1000), st.integers(0, 8), st.booleans())
def test_precise_is_never_wider_than_fast(make_pair, seed, shared, box):
    x, y, source = make_pair(((3, 4), (4, 2)), shared, 1.0, seed, box=box)
    z = affine.rearrange(x, lambda v: v.flip(-1))
    for operation, operands in ((bilinear.product, (x, z)), (matrix_product.matrix_product, (x, y))):
        fast, precise = (fresh_radius(operation(*operands, source, "node", form), operands) for form in FORMS)
        assert bool((precise <= fast * (1 + 1e-9) + 1e-12).all())


def fresh_radius(enclosure, operands):
    known = torch.cat([operand.symbols for operand in operands])
    image = enclosure.zonotope
    return image.generators(image.symbols[~torch.isin(image.symbols, known)]).abs().sum(dim=1)


@given(st.integers(0, 1000), st.integers(1, 6), st.sampled_from([0.3, 1.0, 5.0]))
def test_the_exact_range_of_a_product_is_reached_and_the_others_contain_it(seed, count, size):
    random = torch.Generator().manual_seed(seed)
    g, h = size * torch.randn(2, 1, count, 7, generator=random, dtype=torch.float64)
    c, d = torch.randn(2, 1, 7, generator=random, dtype=torch.float64)
    (exact,) = ranges.zonogon(g, h, [(c, d)])
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)] * count).reshape(-1, count)
    corner = (c + signs @ g[0]) * (d + signs @ h[0])
    assert bool((corner <= exact.upper + 1e-9).all()) and bool((corner >= exact.lower - 1e-9).all())
    edges = torch.linspace(-1, 1, 201, dtype=torch.float64)
    best = torch.stack([corner.amax(0), -corner.amin(0)])
    for free in range(count):  # a maximum lies on an edge of the cube at the latest
        moved = signs.repeat(201, 1)
        moved[:, free] = edges.repeat_interleave(signs.shape[0])
        values = (c + moved @ g[0]) * (d + moved @ h[0])
        best = torch.maximum(best, torch.stack([values.amax(0), -values.amin(0)]))
    reached = Interval(-best[1:], best[:1])
    torch.testing.assert_close(exact.upper, reached.upper, rtol=1e-3, atol=1e-3 * size)
    torch.testing.assert_close(exact.lower, reached.lower, rtol=1e-3, atol=1e-3 * size)
    (centered,) = ranges.zonogon(g, h, [(0 * c, 0 * d)])
    loose = ranges.spectral(g[0].T.unsqueeze(-1), h[0].T.unsqueeze(-1))
    assert bool((loose.upper >= centered.upper[0] - 1e-9).all()) and bool(
        (loose.lower <= centered.lower[0] + 1e-9).all()
    )


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 4))
def test_the_spectral_range_of_a_sum_of_products_contains_its_points(seed, count, terms):
    random = torch.Generator().manual_seed(seed)
    g, h = torch.randn(2, 6, count, terms, generator=random, dtype=torch.float64)
    g = g * (torch.rand(6, count, terms, generator=random) < 0.7)  # some symbols are absent
    found = ranges.spectral(g, h)
    e = 2 * torch.rand(500, count, generator=random, dtype=torch.float64) - 1
    e[::2] = e[::2].sign()
    values = (torch.einsum("sk,rkm->srm", e, g) * torch.einsum("sk,rkm->srm", e, h)).sum(-1)
    assert bool((values <= found.upper + 1e-9).all()) and bool((values >= found.lower - 1e-9).all())
    interval = (g.abs().sum(1) * h.abs().sum(1)).sum(-1)
    assert bool((found.upper <= interval + 1e-9).all())


def test_shared_symbols_make_a_product_tighter_than_intervals(make_pair):
    x, y, source = make_pair(radius=1.0, box=False, diagonal=0)
    for form in FORMS:
        hull = bilinear.product(x, y, source, "product", form).zonotope.interval_hull()
        interval = ranges.corners(x.interval_hull(), y.interval_hull())
        assert float((hull.upper - hull.lower).mean()) < 0.9 * float((interval.upper - interval.lower).mean())


def test_equal_factors_that_are_different_objects_give_the_square(make_pair):
    x, _, source = make_pair(box=False)
    copy = Zonotope(x.center, x.blocks)
    product, square = (bilinear.product(x, other, source, "product").zonotope.radius() for other in (copy, x))
    torch.testing.assert_close(product, square, rtol=1e-6, atol=1e-9)


def test_what_is_shared_cancels_in_a_quotient(make_pair):
    x, _, source = make_pair(radius=0.5, box=False)
    x = at_least(x, 1.0)
    one = bilinear.divide(x, x.scale(torch.full((1, 1), 3.0, dtype=torch.float64)), source, "quotient").zonotope
    torch.testing.assert_close(one.center, torch.full_like(one.center, 1 / 3))
    assert float(one.radius().max()) < 1e-9
    near = bilinear.divide(x, add_zonotopes(x, x.scale(torch.full((1, 1), 0.1, dtype=torch.float64))), source, "q")
    assert float(near.zonotope.radius().max()) < 1e-9


def test_points_are_multiplied_exactly():
    source = SymbolSource()
    point, other = Zonotope(torch.tensor([[2.0, -3.0]])), Zonotope(torch.tensor([[0.5, 4.0]]))
    assert torch.equal(bilinear.product(point, other, source, "product").zonotope.center, torch.tensor([[1.0, -12.0]]))
    quotient = bilinear.divide(point, other, source, "quotient").zonotope
    torch.testing.assert_close(quotient.center, torch.tensor([[4.0, -0.75]]))
    assert float(quotient.radius().max()) < 1e-6
    assert source.origins == [] or float(quotient.radius().max()) > 0


@pytest.mark.parametrize("form", FORMS)
def test_batch_elements_do_not_leak(make_pair, form):
    x, y, source = make_pair(((3, 4), (4, 2)), batch=3)
    z = at_least(affine.rearrange(x, lambda v: v.flip(-1)), 0.5)
    for operation, operands in (
        (bilinear.product, (x, z)),
        (bilinear.divide, (x, z)),
        (matrix_product.matrix_product, (x, y)),
    ):
        together = operation(*operands, source, "node", form)
        for element in range(3):
            alone = operation(*(of_batch(operand, element) for operand in operands), source, "node", form)
            torch.testing.assert_close(together.zonotope.center[element], alone.zonotope.center[0])
            torch.testing.assert_close(together.zonotope.radius()[element], alone.zonotope.radius()[0])
            torch.testing.assert_close(together.bounds.upper[element], alone.bounds.upper[0])


def test_unknown_stays_unknown(make_pair):
    x, y, source = make_pair(((2, 3), (3, 2)))
    x = x.shift(torch.tensor([[torch.nan, 0, 0], [0, 0, 0]], dtype=torch.float64))
    product = matrix_product.matrix_product(x, y, source, "product")
    assert bool(product.bounds.upper[:, 0].isnan().all()) and bool(product.zonotope.radius()[:, 0].isnan().all())
    assert bool(product.bounds.upper[:, 1].isfinite().all())


@pytest.mark.parametrize("form", FORMS)
def test_gradients_flow(make_pair, form):
    x, y, source = make_pair(((3, 4), (4, 2)))
    slope = torch.ones(1, 3, 4, dtype=torch.float64, requires_grad=True)
    for operation, other in ((bilinear.product, x), (matrix_product.matrix_product, y)):
        result = operation(x.scale(slope), other, source, "node", form)
        (gradient,) = torch.autograd.grad(result.zonotope.interval_hull().upper.sum(), slope)
        assert bool(gradient.isfinite().all()) and float(gradient.abs().sum()) > 0
