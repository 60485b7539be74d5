"""What bands rest on: pieces bend as they say, derivatives are right, and a poor point of contact costs width only."""

from __future__ import annotations

import math

import pytest
import torch

from zonoplug.relaxations import convex, powers, s_shaped, smooth
from zonoplug.relaxations.curves import Curve, Piece, Table

CURVES = {
    name: curve
    for module in (convex, s_shaped, smooth)
    for name, curve in vars(module).items()
    if isinstance(curve, Curve)
}
CURVES |= {f"power {p}": powers._curve(p) for p in (2.0, 3.0, 4.0, 7.0, -1.0, -2.0, -3.0, 0.5, -0.5, 1.5, 0.25)}
PIECES = [(name, piece) for name, curve in CURVES.items() for piece in curve.pieces]
IDS = [f"{name} from {piece.start:.3g}" for name, piece in PIECES]


def grid(piece, count=4001):
    """Points of a piece, evenly spaced, not closer to an end at 0 than 0.01."""
    start, end = max(piece.start, -20.0), min(piece.end, 20.0)
    return torch.linspace(start + 0.01 * (start == 0), end - 0.01 * (end == 0), count, dtype=torch.float64)


def test_there_are_curves():
    assert len(CURVES) > 20


@pytest.mark.parametrize(("name", "piece"), PIECES, ids=IDS)
def test_a_piece_bends_as_it_says(name, piece):
    slopes = piece.bend * piece.derivative(grid(piece))
    assert bool((slopes.diff() >= -1e-14 * (1 + slopes[1:].abs())).all())


@pytest.mark.parametrize(("name", "piece"), PIECES, ids=IDS)
def test_the_derivative_of_a_piece_is_that_of_its_function(name, piece):
    x, step = grid(piece, 501), 1e-5
    x = x[1:-1]
    difference = (CURVES[name].function(x + step) - CURVES[name].function(x - step)) / (2 * step)
    torch.testing.assert_close(piece.derivative(x), difference, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("name", "piece"), PIECES, ids=IDS)
def test_the_point_of_contact_is_where_the_derivative_is_the_slope(name, piece):
    x = grid(piece, 101)
    slope = piece.derivative(x)
    start, end = torch.full_like(x, max(piece.start, -30.0)), torch.full_like(x, min(piece.end, 30.0))
    found = torch.minimum(torch.maximum(piece.touching(slope, start, end), start), end)
    torch.testing.assert_close(piece.derivative(found), slope, rtol=1e-3, atol=1e-7)
    for steep in (-1e3, -1.0, 0.0, 1.0, 1e3, 1e300, -1e300):
        assert not bool(piece.touching(torch.full_like(x, steep), start, end).isnan().any())


@pytest.mark.parametrize("name", CURVES)
def test_a_poor_point_of_contact_costs_width_only(name):
    curve = CURVES[name]
    random = torch.Generator().manual_seed(3)
    center = 3 * torch.randn(200, generator=random, dtype=torch.float64)
    width = 10 ** (2 * torch.rand(200, generator=random, dtype=torch.float64) - 1.5)
    if name.startswith("power") or name == "_LOG":
        center = center.abs() + width
    lower, upper = center - width / 2, center + width / 2
    good = curve.enclose(lower, upper)
    for share in (0.0, 0.3, 1.0):
        poor_pieces = tuple(
            piece._replace(touching=lambda slope, start, end, share=share: start + share * (end - start))
            for piece in curve.pieces
        )
        poor = Curve(curve.function, poor_pieces, curve.straight, curve.steps, curve.size, curve.slope_size)
        slope, offset, radius = poor.enclose(lower, upper)
        x = lower + torch.linspace(0, 1, 401, dtype=torch.float64)[:, None] * (upper - lower)
        gap = (curve.function(x) - slope * x - offset).abs() - radius
        assert bool((gap <= 1e-14 * (1 + offset.abs() + (slope * x).abs())).all())
        assert bool((radius >= good.radius * 0.98 - 1e-14).all())


def test_a_table_finds_where_a_derivative_takes_a_value():
    table = Table(lambda x: 1 / torch.cosh(x) ** 2, 1.0, -math.inf, 0.0)
    x = torch.linspace(-30, -0.01, 300, dtype=torch.float64)
    start, end = torch.full_like(x, -50), torch.zeros_like(x)
    torch.testing.assert_close(table(1 / torch.cosh(x) ** 2, start, end), x, rtol=1e-3, atol=1e-4)
    near = table(1 / torch.cosh(x) ** 2, torch.full_like(x, -0.5), torch.full_like(x, -0.4))
    assert bool(((near >= -0.5) & (near <= -0.4)).all())


def test_a_curve_of_ones_own():
    """max(x, 0)^2: straight, then convex."""
    square = Piece(0.0, math.inf, 1.0, lambda x: 2 * x, lambda slope, start, end: slope / 2)
    curve = Curve(lambda x: x.clamp(min=0) ** 2, (square,), steps=0)
    slope, offset, radius = curve.enclose(torch.tensor([-1.0]), torch.tensor([1.0]))
    torch.testing.assert_close(slope, torch.tensor([0.5]))
    torch.testing.assert_close(offset + radius, torch.tensor([0.5]))
    torch.testing.assert_close(offset - radius, torch.tensor([-0.0625]))
