"""Ranges of products of two zonotopes that share symbols: pure functions of centers, radii and generators.

Three forms, each sound alone, so that they may be intersected, for x = c + sum_j g_j e_j and y = d + sum_j h_j e_j:

- `difference_of_squares`, O(k):   x y = ((x + y)^2 - (x - y)^2) / 4.
- `zonogon`, O(k log k), exact:    (x, y) fills a polygon, and a product takes its extremes on the polygon's edge.
- `spectral`, O(k m^2):            a sum of m products, by the eigenvalues of a weighted quadratic form.

The known alternative sums absolute coefficients pair by pair, sum_j |g_j h_j| / 2 + sum_{i<j} |g_i h_j + g_j h_i|, in
O(k^2) (Bonaert, Dimitrov, Baader, Vechev, PLDI 2021).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zonoplug.domain.zonotope import Interval


def corners(left: Interval, right: Interval) -> Interval:
    """The range of x y for independent x and y, coordinate by coordinate."""
    products = [a * b for a in left for b in right]
    return Interval(
        torch.minimum(torch.minimum(products[0], products[1]), torch.minimum(products[2], products[3])),
        torch.maximum(torch.maximum(products[0], products[1]), torch.maximum(products[2], products[3])),
    )


def squares(x: Interval) -> Interval:
    """The range of x^2, coordinate by coordinate."""
    far = torch.maximum(x.upper, -x.lower)
    near = torch.maximum(x.lower, -x.upper).clamp(min=0)
    return Interval(near * near, far * far)


def meet(*ranges: Interval) -> Interval:
    """The intersection of ranges that all hold. A NaN in one of them stays: nothing is known."""
    lower, upper = ranges[0]
    for other in ranges[1:]:
        lower, upper = torch.maximum(lower, other.lower), torch.minimum(upper, other.upper)
    return Interval(lower, torch.maximum(lower, upper))


def difference_of_squares(scale: Tensor, total: Interval, difference: Interval) -> Interval:
    """The range of  scale (s^2 - t^2) / 4  for s in `total` and t in `difference`; scale >= 0.

    With  s = x / a + y / b,  t = x / a - y / b  and  scale = a b  that is the range of x y.

    For centered x and y with radii a and b it is never wider than  +/- a b,  nor than that with e_j^2 in [0, 1] on the
    diagonal:  s <= 2 - 2 sum_j min(|g_j| / a, |h_j| / b)  over the symbols where g_j and h_j differ in sign.
    """
    s, t = squares(total), squares(difference)
    return Interval(scale * (s.lower - t.upper) / 4, scale * (s.upper - t.lower) / 4)


def zonogon(g: Tensor, h: Tensor, offsets: Sequence[tuple[Tensor, Tensor]]) -> list[Interval]:
    """The exact range of  (c + sum_j g_j e_j) (d + sum_j h_j e_j)  for each (c, d) in `offsets`.

    The points (sum g_j e_j, sum h_j e_j) fill a polygon whose edges are the vectors 2 (g_j, h_j), ordered by angle. x y
    is linear along lines parallel to an axis, so its extremes over the polygon are on the edges, where it is quadratic.

    Args:
        g, h: (batch, k, *shape), k >= 1.
        offsets: pairs (c, d), each (batch, *shape).
    Cost: O(batch k log k n) time, some ten times the memory of g.
    """
    g, h = torch.where(h < 0, -g, g), h.abs()
    order = torch.atan2(h, g).argsort(dim=1)
    g, h = g.gather(1, order), h.gather(1, order)
    x = 2 * (g.cumsum(1) - g) - g.sum(1, keepdim=True)
    y = 2 * (h.cumsum(1) - h) - h.sum(1, keepdim=True)
    ranges = []
    for c, d in offsets:
        c, d = c.unsqueeze(1), d.unsqueeze(1)
        halves = [_edges(c + sign * x, d + sign * y, 2 * sign * g, 2 * sign * h) for sign in (1, -1)]
        lower, upper = torch.minimum(*(half.lower for half in halves)), torch.maximum(*(half.upper for half in halves))
        ranges.append(Interval(lower, upper))
    return ranges


def _edges(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Interval:
    """The range of  (x + s u) (y + s v)  over s in [0, 1] and over axis 1."""
    bend = 2 * u * v
    turn = (-(x * v + y * u) / torch.where(bend == 0, torch.ones_like(bend), bend)).clamp(0, 1)
    values = torch.stack([x * y, (x + turn * u) * (y + turn * v), (x + u) * (y + v)], dim=1)
    return Interval(values.amin(dim=(1, 2)), values.amax(dim=(1, 2)))


def spectral(g: Tensor, h: Tensor) -> Interval:
    """The range of  sum_m (sum_j g_jm e_j) (sum_j h_jm e_j) = e' Q e,  from the spectrum of Q.

        e' Q e <= sum_j w_j  max(eigenvalues of W^-1/2 Q W^-1/2, 0),   W = diag(w), any w > 0, since e_j^2 <= 1.
        w_j = sum_m (|g_jm| b_m + |h_jm| a_m) / 2,  a_m = sum_j |g_jm|,  b_m = sum_j |h_jm|,

    which is at least the sum of row j of |Q|, so those eigenvalues lie in [-1, 1]; and sum_j w_j = sum_m a_m b_m, so
    the range is never wider than interval arithmetic's. Q has rank 2 m, so a matrix of that size has its spectrum.

    Args:
        g, h: (rows, k, m).
    Returns:
        (rows,) lower <= 0 <= upper; for autograd the eigenvalues are constants.
    Cost: O(rows m^2 (k + m)) time.
    """
    a, b = g.abs().sum(1, keepdim=True), h.abs().sum(1, keepdim=True)
    weight = (g.abs() * b + h.abs() * a).sum(2) / 2
    total = weight.sum(1)
    with torch.no_grad():
        m = g.shape[2]
        # Q = sum_m (p_m q_m' + q_m p_m') / 2 with columns of equal size, p = g sqrt(b / a) and q = h sqrt(a / b)
        balance = torch.where((a > 0) & (b > 0), (b / a).sqrt(), torch.ones_like(a))
        columns = torch.cat([g * balance, h / balance], dim=2)
        inverse = torch.where(weight > 0, weight, torch.ones_like(weight)).rsqrt() * (weight > 0)
        columns = (columns * inverse.unsqueeze(2)).nan_to_num(0, 0, 0)
        values, vectors = torch.linalg.eigh(columns.mT @ columns)
        root = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
        form = root[:, :m].mT @ root[:, m:]
        spectrum = torch.linalg.eigvalsh((form + form.mT) / 2)
        slack = (16 * m + g.shape[1]) * torch.finfo(g.dtype).eps * values[:, -1].clamp(min=1)
        low, high = (spectrum[:, 0] - slack).clamp(-1, 0), (spectrum[:, -1] + slack).clamp(0, 1)
    return Interval(low * total, high * total)
