"""The laws, public: what must hold for every relaxation, reduction and bound method, as functions that raise.

Each raises AssertionError with a sentence that says what was broken, so a test of a new member is one call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zonoplug.domain.blocks import DenseBlock
from zonoplug.domain.symbols import SymbolIds
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.reduction.base import NO_SYMBOLS, Reduction
from zonoplug.relaxations.base import RelaxationRule

SAMPLES = 257


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def tolerance(*tensors: Tensor) -> float:
    """What rounding to nearest may cost at the scale of these tensors: 64 units in the last place of the largest."""
    scale = max((float(t.abs().max()) for t in tensors if t.numel()), default=0.0)
    return 64 * torch.finfo(tensors[0].dtype).eps * max(scale, torch.finfo(tensors[0].dtype).tiny)


def check_relaxation(rule: RelaxationRule, function: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> None:
    """The law of relaxations:  f(x) lies in  slope * x + offset +/- radius  on sampled x, both ends included.

    Args:
        rule: the relaxation of `function`.
        lower, upper: (n,) finite, lower <= upper.
    """
    relaxation = rule(lower, upper)
    _require(bool((relaxation.radius >= 0).all()), "a radius is negative or NaN")
    share = torch.linspace(0, 1, SAMPLES, dtype=lower.dtype, device=lower.device)[:, None]
    x = torch.minimum(torch.maximum(lower + share * (upper - lower), lower), upper)
    x[-1] = upper
    y = function(x)
    gap = (y - relaxation.slope * x - relaxation.offset).abs() - relaxation.radius
    unit = torch.finfo(x.dtype)
    allowed = 16 * unit.eps * torch.maximum(y.abs(), (relaxation.slope * x).abs()).clamp(min=unit.tiny)
    worst = int((gap - allowed).amax(dim=0).argmax())
    _require(
        bool((gap <= allowed).all()),
        f"the function leaves its band by {float(gap.max()):.3g} on [{float(lower[worst])}, {float(upper[worst])}]",
    )
    same = lower == upper
    exact = relaxation.radius[same] <= 16 * unit.eps * y[0, same].abs()
    _require(bool(exact.all()), "the relaxation of a single point is not exact")


def check_encloses(outer: Zonotope, inner: Zonotope, generator: torch.Generator | None = None) -> None:
    """`outer` contains `inner`, as a set with shared symbols.

    For sampled noise values, the point of `inner` must be within reach of `outer`'s center plus the *same* values of
    the symbols they share: the others and the box make up the difference, coordinate by coordinate. And the support
    of `outer` must not be smaller, in sampled and in axis directions.
    """
    noise = 2 * torch.rand(64, inner.batch, inner.num_symbols, generator=generator, dtype=inner.center.dtype) - 1
    noise[::2] = noise[::2].sign()
    noise = noise.to(inner.center.device)
    shared = torch.isin(inner.symbols, outer.symbols)
    common = outer.generators(inner.symbols[shared])
    spare = outer.generators(outer.symbols[~torch.isin(outer.symbols, inner.symbols)]).abs().sum(dim=1)
    spare = spare if outer.box is None else spare + outer.box
    allowed = tolerance(inner.center, inner.radius())
    inner_box = 0 if inner.box is None else inner.box
    for values in noise:
        shape = (inner.batch, -1, *[1] * len(inner.shape))
        reach = outer.center + (common * values[:, shared].reshape(shape)).sum(dim=1)
        missing = (inner.point(values) - reach).abs() + inner_box - spare
        _require(bool((missing <= allowed).all()), f"a point is lost: {float(missing.max()):.3g} out of reach")
    n = inner.center[0].numel()
    directions = torch.randn(32, n, generator=generator, dtype=inner.center.dtype).to(inner.center.device)
    directions = torch.cat([directions, torch.eye(n, dtype=inner.center.dtype, device=inner.center.device)[:64]])
    loss = outer.support(directions) - inner.support(directions)
    slack = tolerance(inner.support(directions).abs().max()) * n
    _require(bool((loss >= -slack).all()), f"the support shrank by {float(-loss.min()):.3g}")


def check_reduction(
    reduction: Reduction, zonotope: Zonotope, max_symbols: int, protect: SymbolIds = NO_SYMBOLS
) -> Zonotope:
    """The laws of reductions on one zonotope; returns the reduced one.

    It encloses the original, keeps center, type and device, keeps every protected symbol's generator as it was,
    respects the budget, and leaves a zonotope alone that is small enough.
    """
    reduced = reduction.reduce(zonotope, max_symbols, protect)
    _require(reduced.num_symbols <= max_symbols, f"{reduced.num_symbols} symbols left, allowed are {max_symbols}")
    _require(torch.equal(reduced.center, zonotope.center), "the center moved")
    _require(reduced.center.dtype == zonotope.center.dtype, "the type changed")
    _require(reduced.center.device == zonotope.center.device, "the device changed")
    kept = zonotope.symbols[torch.isin(zonotope.symbols, protect)]
    _require(torch.equal(reduced.generators(kept), zonotope.generators(kept)), "a protected symbol changed")
    if zonotope.num_symbols <= max_symbols:
        _require(reduced is zonotope, "a zonotope that was small enough was changed")
    _require(reduction.reduce(reduced, max_symbols, protect) is reduced, "reducing twice differs from reducing once")
    check_encloses(reduced, zonotope, torch.Generator().manual_seed(0))
    return reduced


def check_contains_samples(bounds: Interval, samples: Tensor) -> None:
    """Every sampled output (m, batch, *shape) lies inside the bounds (batch, *shape), up to rounding."""
    allowed = tolerance(samples)
    escape = torch.maximum(bounds.lower - samples, samples - bounds.upper)
    _require(bool((escape <= allowed).all()), f"a sampled output lies {float(escape.max()):.3g} outside its bounds")


def dense_copy(zonotope: Zonotope) -> Zonotope:
    """The same zonotope with one dense block: the oracle that other structures are compared with."""
    symbols = zonotope.symbols
    return Zonotope(zonotope.center, (DenseBlock(symbols, zonotope.generators(symbols)),), zonotope.box)
