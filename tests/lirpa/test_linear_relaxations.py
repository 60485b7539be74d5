"""LinearRelaxation: below every point for every share, alone and in backward bounds of whole networks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa.backward.linear_relaxations import MatrixProductRelaxation, ProductRelaxation
from zonoplug.lirpa.backward.passes import Backward, Multipliers
from zonoplug.lirpa.backward.quotient import QuotientRelaxation
from zonoplug.lirpa.backward.softmax import SoftmaxRelaxation
from zonoplug.lirpa.backward.tuning import tune_parameters
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import build, forward_propagation
from zonoplug.testing import tolerance

SAMPLES = 200


def interval(generator, *shape, radius=1.0):
    center = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    half = radius * torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    return Interval(center - half, center + half)


def points(generator, bounds):
    """Samples (SAMPLES, batch, *shape), some of them corners."""
    place = torch.rand(SAMPLES, *bounds.lower.shape, generator=generator, dtype=torch.float64)
    place[: SAMPLES // 2] = place[: SAMPLES // 2].round()
    return bounds.lower + place * (bounds.upper - bounds.lower)


def require_below(relaxations, a, parameters, operands, values):
    """a . f(x) is at least what the linear bounds say, at every sample; returns the least gap."""
    images, constant = relaxations.pass_backward(a, parameters)
    linear = constant.unsqueeze(0)
    for image, x in zip(images, operands, strict=True):
        linear = linear + torch.einsum("brn,sbn->sbr", image.flatten(2), x.flatten(2))
    reached = torch.einsum("brn,sbn->sbr", a.flatten(2), values.flatten(2))
    assert bool((reached - linear >= -64 * tolerance(reached, linear)).all())
    return float((reached - linear).min())


def random_shares(generator, relaxations, corner):
    parameters = torch.rand(relaxations.parameters().shape, generator=generator, dtype=torch.float64)
    return parameters.round() if corner else parameters


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([((3, 4), (3, 4)), ((3, 1), (1, 4)), ((1, 1), (5, 2))]))
def test_linear_bounds_of_a_product_are_below_every_point(seed, corner, shapes):
    generator = torch.Generator().manual_seed(seed)
    left, right = (interval(generator, *shape) for shape in shapes)
    relaxations = ProductRelaxation(left, right)
    x, y = points(generator, left), points(generator, right)
    a = torch.randn(2, 3, *(x * y).shape[2:], generator=generator, dtype=torch.float64)
    require_below(relaxations, a, random_shares(generator, relaxations, corner), (x, y), x * y)


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([(), (2,)]))
def test_linear_bounds_of_a_matrix_product_are_below_every_point(seed, corner, axes):
    generator = torch.Generator().manual_seed(seed)
    left, right = interval(generator, *axes, 3, 4), interval(generator, *axes, 4, 2)
    relaxations = MatrixProductRelaxation(left, right)
    x, y = points(generator, left), points(generator, right)
    a = torch.randn(2, 5, *axes, 3, 2, generator=generator, dtype=torch.float64)
    require_below(relaxations, a, random_shares(generator, relaxations, corner), (x, y), x @ y)


def differences(bounds, axis):
    lower, upper = (side.movedim(axis, -1) for side in bounds)
    apart = 1 - torch.eye(lower.shape[-1], dtype=torch.float64)
    low = (lower.unsqueeze(-2) - upper.unsqueeze(-1)) * apart
    return Interval(low, (upper.unsqueeze(-2) - lower.unsqueeze(-1)) * apart)


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([1, 2]), st.sampled_from([0.0, 1e-8, 0.5, 5.0, 400.0]))
def test_linear_bounds_of_softmax_are_below_every_point(seed, corner, axis, radius):
    generator = torch.Generator().manual_seed(seed)
    bounds = interval(generator, 3, 4, radius=radius)
    relaxations = SoftmaxRelaxation(differences(bounds, axis), axis)
    x = points(generator, bounds)
    a = torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64)
    require_below(relaxations, a, random_shares(generator, relaxations, corner), (x,), x.softmax(axis + 1))


def test_linear_bounds_of_softmax_touch_at_a_point_and_are_close_to_it():
    generator = torch.Generator().manual_seed(0)
    bounds = interval(generator, 3, 4, radius=1e-3)
    relaxations, x = SoftmaxRelaxation(differences(bounds, 2), 2), points(generator, bounds)
    a = torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64)
    assert require_below(relaxations, a, relaxations.parameters(), (x,), x.softmax(-1)) < 1e-4


class Attention(nn.Module):
    """Softmax of a product of queries and keys, times values; a gate; a skip connection and ReLUs."""

    def __init__(self, gate=True):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.gate = nn.Linear(4, 4) if gate else None
        self.hidden, self.last = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        y = torch.softmax(scores, dim=-1) @ self.value(x) + x
        y = y if self.gate is None else y * torch.sigmoid(self.gate(x))
        return self.last(torch.relu(self.hidden(y.flatten(1))))


def case(seed, radius=0.1):
    torch.manual_seed(seed)
    module = Attention().double().eval()
    box = Box.ball(torch.randn(2, 3, 4, dtype=torch.float64), radius)
    host = build(module, box.lower[:1])
    with torch.no_grad():
        preactivations = forward_propagation(host, [box], BoundMethod.parse("zonotope")).preactivations
    return module, host, box, preactivations, torch.randn(2, 2, 3, dtype=torch.float64)


def reached(module, box, rows):
    with torch.no_grad():
        x = box.sample(2000)
        return torch.einsum("brn,mbn->mbr", rows, module(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


@pytest.mark.parametrize("seed", range(3))
def test_every_share_gives_a_bound_below_all_outputs_of_attention(seed):
    module, host, box, preactivations, rows = case(seed)
    passes, least = Backward(host), reached(module, box, rows).amin(0)
    assert passes.uses_relaxations
    for corner in (False, True, None):
        generator = torch.Generator().manual_seed(seed)
        relaxations = passes.relaxations(preactivations)
        alpha = {} if corner is None else {n: random_shares(generator, one, corner) for n, one in relaxations.items()}
        found = passes.bound(box, preactivations, rows, Multipliers(alpha), errors=passes.errors(box, preactivations))
        assert bool((found.sound <= least).all())
        assert bool((found.error > 0).all()) and bool((found.error < 1e-9).all())


def test_bounds_of_differences_from_the_propagation_make_softmax_tighter():
    _, host, box, preactivations, rows = case(0)
    passes = Backward(host)
    without = {name: hull for name, hull in preactivations.items() if "inside" not in name}
    assert len(without) == len(preactivations) - 1
    assert bool((passes.bound(box, preactivations, rows).lower > passes.bound(box, without, rows).lower).all())


def test_tuned_shares_raise_the_bound_and_hold():
    module, host, box, preactivations, rows = case(1, radius=0.3)
    one = Box(box.lower[:1], box.upper[:1])
    preactivations = {name: Interval(hull.lower[:1], hull.upper[:1]) for name, hull in preactivations.items()}
    passes, rows = Backward(host), rows[:1]
    with torch.no_grad():
        before = passes.bound(one, preactivations, rows).lower
    tune_parameters(passes, one, preactivations, rows, before + 100, Deadline(60.0))
    with torch.no_grad():
        after = passes.bound(one, preactivations, rows).lower
    assert bool((after > before + 0.01 * before.abs()).all())
    assert bool((after <= reached(module, one, rows).amin(0)).all())


def test_a_matrix_product_over_the_batch_is_refused():
    class Gram(nn.Module):
        def forward(self, x):
            return (x * 2) @ x.transpose(0, 1)

    host = build(Gram(), torch.zeros(1, 3))
    with pytest.raises(UnsupportedOperatorError, match="rank 3"):
        Backward(host)


@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.sampled_from([((3, 4), (3, 4)), ((3, 1), (1, 4))]))
def test_linear_bounds_of_a_quotient_are_below_every_point(seed, corner, negative, shapes):
    generator = torch.Generator().manual_seed(seed)
    left, right = (interval(generator, *shape) for shape in shapes)
    shift = right.lower.amin() - 0.1
    right = Interval(right.lower - shift, right.upper - shift)
    right = Interval(-right.upper, -right.lower) if negative else right
    relaxations = QuotientRelaxation(left, right)
    x, y = points(generator, left), points(generator, right)
    a = torch.randn(2, 3, *(x / y).shape[2:], generator=generator, dtype=torch.float64)
    require_below(relaxations, a, random_shares(generator, relaxations, corner), (x, y), x / y)
    constant = torch.randn(shapes[0], generator=generator, dtype=torch.float64)
    relaxations = QuotientRelaxation(constant, right)
    require_below(relaxations, a, random_shares(generator, relaxations, corner), (y,), constant / y)


def test_a_quotient_whose_divisor_may_be_zero_has_no_bound():
    relaxations = QuotientRelaxation(torch.ones(1), Interval(torch.tensor([[-1.0, 1.0]]), torch.tensor([[1.0, 2.0]])))
    assert bool(relaxations.pass_backward(torch.ones(1, 1, 2), relaxations.parameters())[1].isnan().all())


@pytest.mark.parametrize("constant", [False, True])
def test_quotients_are_bounded_backward(constant):
    class Quotient(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return (torch.ones(3, dtype=x.dtype) if constant else self.left(x)) / (1 + torch.exp(self.right(x)))

    torch.manual_seed(0)
    module, box = Quotient().double(), Box.ball(torch.zeros(2, 3, dtype=torch.float64), 0.3)
    host, rows = build(module, box.lower[:1]), torch.randn(2, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        preactivations = forward_propagation(host, [box], BoundMethod.parse("zonotope")).preactivations
        found = Backward(host).bound(box, preactivations, rows)
    least = reached(module, box, rows).amin(0)
    assert bool((found.lower <= least).all()) and bool((found.lower >= least - 0.2).all())
