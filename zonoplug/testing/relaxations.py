"""Laws of relaxations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from zonoplug.relaxations.base import Relaxation, RelaxationRule
from zonoplug.testing.requirements import SAMPLES, require


def check_relaxation(rule: RelaxationRule, function: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> None:
    """The law of relaxations:  f(x) lies in  slope * x + offset +/- radius  on sampled x, both ends included.

    Args:
        rule: the relaxation of `function`.
        lower, upper: (n,) finite, lower <= upper.
    """
    relaxation = rule(lower, upper)
    require(bool((relaxation.radius >= 0).all()), "a radius is negative or NaN")
    share = torch.linspace(0, 1, SAMPLES, dtype=lower.dtype, device=lower.device)[:, None]
    x = torch.minimum(torch.maximum(lower + share * (upper - lower), lower), upper)
    x[-1] = upper
    y = function(x)
    gap = (y - relaxation.slope * x - relaxation.offset).abs() - relaxation.radius
    unit = torch.finfo(x.dtype)
    allowed = 16 * unit.eps * torch.maximum(y.abs(), (relaxation.slope * x).abs()).clamp(min=unit.tiny)
    worst = int((gap - allowed).amax(dim=0).argmax())
    require(
        bool((gap <= allowed).all()),
        f"the function leaves its band by {float(gap.max()):.3g} on [{float(lower[worst])}, {float(upper[worst])}]",
    )
    same = lower == upper
    exact = relaxation.radius[same] <= 16 * unit.eps * y[0, same].abs()
    require(bool(exact.all()), "the relaxation of a single point is not exact")


def check_relaxation_is_consistent(rule: Callable[..., Relaxation], lower: Tensor, upper: Tensor) -> None:
    """The law of relaxations for any rule, of which no function is known but what it says of single points.

    Bands of intervals hold the bands of their points: both ends, points spread between, and points next to the ends;
    and no slope but its own loses one. An interval with a point of which nothing is known is not known either.

    Args:
        rule: a relaxation; one that takes `slope` is also asked for bands of given slopes.
        lower, upper: (n,), lower <= upper.
    """
    share = torch.linspace(0, 1, SAMPLES, dtype=lower.dtype, device=lower.device)[:, None]
    inner = torch.minimum(torch.maximum(lower * (1 - share) + upper * share, lower), upper)
    near = [torch.minimum(torch.nextafter(lower, upper), upper), torch.maximum(torch.nextafter(upper, lower), lower)]
    x = torch.cat([inner, torch.stack([lower, *near, upper])])
    slope, offset, radius = (part.double() for part in rule(x, x))
    value, known = slope * x + offset, radius.isfinite() & offset.isfinite()
    rules = [rule]
    if "slope" in inspect.signature(rule).parameters:
        rules += [partial(rule, slope=torch.full_like(lower, slope)) for slope in (0.0, 1.0, -0.5)]
    unit = torch.finfo(lower.dtype)
    for one in rules:
        slope, offset, band = (part.double() for part in one(lower, upper))
        certain = band.isfinite() & offset.isfinite() & slope.isfinite()
        require(bool((band[certain] >= 0).all()), "a radius is negative")
        require(not bool((certain & ~known.all(0)).any()), "a band is claimed where the function is not known")
        gap = (value - slope * x - offset).abs() - band - radius
        size = torch.maximum(value.abs(), torch.maximum((slope * x).abs(), offset.abs()))
        allowed = 16 * unit.eps * size.clamp(min=unit.tiny)
        lost = (certain & ~(gap <= allowed)).any(0)
        require(
            not bool(lost.any()),
            f"a point leaves its band on [{lower[lost][:1].tolist()}, {upper[lost][:1].tolist()}]",
        )


def check_slope_gradient(rule: Callable[..., Relaxation], lower: Tensor, upper: Tensor) -> None:
    """A relaxation with a given slope has a finite gradient with respect to it, which optimised slopes rest on.

    Args:
        rule: takes `slope`.
        lower, upper: (n,); on one of the intervals at least, the function is defined and not straight.
    """
    slope = torch.full_like(lower, 0.3).requires_grad_()
    relaxation = rule(lower, upper, slope=slope)
    known = relaxation.radius.isfinite()
    require(bool(known.any()), "nothing is known on any of the intervals")
    (gradient,) = torch.autograd.grad((relaxation.offset + relaxation.radius)[known].sum(), slope)
    require(bool(gradient[known].isfinite().all()), "the gradient with respect to the slope is not finite")
    require(bool((gradient[known] != 0).any()), "no gradient reaches the slope")
