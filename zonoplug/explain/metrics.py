"""How good an attribution map is: published measures, each for one input and one map.

Maps are signed or not, (1, *shape) or (*shape); `score` is the scalar that the map explains.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor

Score = Callable[[Tensor], Tensor]  # (n, *shape) -> (n,)

CURVE_STEPS = 50
PERTURBATIONS = 64


def ranks(values: Tensor) -> Tensor:
    """Ranks from 0, equal values share the mean of theirs: (n,) -> (n,) float64."""
    flat = values.flatten().double()
    _, place, count = torch.unique(flat, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    middle: Tensor = ((last - count) + (last - 1)) / 2
    return middle[place]


def spearman(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation, in [-1, 1]; NaN where a map is constant."""
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else float("nan")


def top_agreement(first: Tensor, second: Tensor, count: int) -> float:
    """The share of the `count` largest entries that two maps have in common.

    Source: Ghorbani, Abid, Zou, AAAI 2019.
    """
    a = set(first.flatten().argsort(descending=True, stable=True)[:count].tolist())
    b = set(second.flatten().argsort(descending=True, stable=True)[:count].tolist())
    return len(a & b) / count


def sparsity(values: Tensor) -> float:
    """Gini index of |values|, in [0, 1): 0 if all are equal, near 1 if a few hold everything.

    Source: Chalasani, Chen, Chowdhury, Jha, Wu, ICML 2020.
    """
    flat = values.abs().flatten().double().sort().values
    count, total = flat.numel(), float(flat.sum())
    if not total > 0:
        return 0.0
    weight = count - torch.arange(count, dtype=torch.float64) - 0.5
    return 1 - 2 * float((flat * weight).sum()) / (total * count)


def deletion_curve(score: Score, point: Tensor, order: Tensor, baseline: Tensor, insert: bool = False) -> Tensor:
    """The score while coordinates are set to a baseline in the order given, or set from it to the point.

    Args:
        point, baseline: (1, *shape).
        order: (n,) all coordinates.
        insert: start from the baseline.
    Returns:
        (steps + 1,) scores at equal steps.
    """
    start, end = (baseline, point) if insert else (point, baseline)
    count = order.numel()
    steps = min(CURVE_STEPS, count)
    place = torch.empty(count, dtype=torch.int64)
    place[order] = torch.arange(count)
    changed = place[None] < (torch.arange(steps + 1) * count / steps).round()[:, None]
    mask = changed.reshape(-1, *point.shape[1:])
    with torch.no_grad():
        return score(torch.where(mask, end, start))


def area(curve: Tensor) -> float:
    """The area under a curve over [0, 1], by trapezoids."""
    return float((curve[1:] + curve[:-1]).mean() / 2)


def deletion_auc(score: Score, point: Tensor, values: Tensor, baseline: Tensor) -> float:
    """Area under the score as the most important coordinates go first: lower is better.

    Source: Petsiuk, Das, Saenko, BMVC 2018.
    """
    order = values.flatten().argsort(descending=True, stable=True)
    return area(deletion_curve(score, point, order, baseline))


def insertion_auc(score: Score, point: Tensor, values: Tensor, baseline: Tensor) -> float:
    """Area under the score as the most important coordinates come first: higher is better. Source: as for deletion."""
    order = values.flatten().argsort(descending=True, stable=True)
    return area(deletion_curve(score, point, order, baseline, insert=True))


def infidelity(score: Score, point: Tensor, slope: Tensor, radius: float, seed: int = 0) -> float:
    """How badly a map predicts what perturbations do, relative to how much they do.

        E[(b I . phi - (f(x) - f(x - I)))^2] / E[(f(x) - f(x - I))^2],    I normal with deviation `radius`,

    with the factor b that suits the map best, so that maps in other units can be compared: 0 is perfect, 1 is no better
    than a map of zeros.

    Args:
        slope: phi, the map as a derivative: per unit of the input.

    Source: Yeh, Hsieh, Suggala, Inouye, Ravikumar, NeurIPS 2019, with optimal scaling as proposed there.
    """
    random = torch.Generator().manual_seed(seed)
    shift = radius * torch.randn(PERTURBATIONS, *point.shape[1:], generator=random, dtype=point.dtype)
    with torch.no_grad():
        change = (score(point) - score(point - shift)).double()
    predicted = (shift.flatten(1) @ slope.flatten().to(shift)).double()
    size = float(predicted @ predicted)
    factor = float(predicted @ change) / size if size > 0 else 0.0
    whole = float(change @ change)
    return float((factor * predicted - change).square().sum()) / whole if whole > 0 else float("nan")


def stability(
    explain: Callable[[Tensor], Tensor], point: Tensor, radius: float, samples: int = 3, seed: int = 0
) -> tuple[float, float]:
    """How much a map changes when the input is shifted a little.

    Args:
        explain: the map (1, *shape) of a point (1, *shape).
        radius: each coordinate is shifted by up to this much.
    Returns:
        max-sensitivity, the largest  ||phi(x + d) - phi(x)|| / ||phi(x)||  (lower is better), and the mean Spearman
        correlation of the maps (higher is better).

    Source: Yeh et al., NeurIPS 2019 (max-sensitivity).
    """
    random = torch.Generator().manual_seed(seed)
    own = explain(point)
    size = float(own.norm())
    worst, correlations = 0.0, []
    for _ in range(samples):
        shift = radius * (2 * torch.rand(point.shape, generator=random, dtype=point.dtype) - 1)
        other = explain(point + shift)
        worst = max(worst, float((other - own).norm()) / size if size > 0 else float("nan"))
        correlations.append(spearman(own, other))
    return worst, sum(correlations) / len(correlations)


def standard_error(values: list[float]) -> float:
    """The standard error of a mean; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan")
    mean = sum(values) / len(values)
    return sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
