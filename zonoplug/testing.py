"""The laws, public: what must hold for every relaxation, reduction and bound method, as functions that raise.

Each raises AssertionError with a sentence that says what was broken, so a test of a new member is one call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from zonoplug.domain.blocks import DenseBlock
from zonoplug.domain.symbols import SymbolIds
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.reduction.base import NO_SYMBOLS, Reduction
from zonoplug.relaxations.base import Relaxation, RelaxationRule

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
        _require(bool((band[certain] >= 0).all()), "a radius is negative")
        _require(not bool((certain & ~known.all(0)).any()), "a band is claimed where the function is not known")
        gap = (value - slope * x - offset).abs() - band - radius
        size = torch.maximum(value.abs(), torch.maximum((slope * x).abs(), offset.abs()))
        allowed = 16 * unit.eps * size.clamp(min=unit.tiny)
        lost = (certain & ~(gap <= allowed)).any(0)
        _require(
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
    _require(bool(known.any()), "nothing is known on any of the intervals")
    (gradient,) = torch.autograd.grad((relaxation.offset + relaxation.radius)[known].sum(), slope)
    _require(bool(gradient[known].isfinite().all()), "the gradient with respect to the slope is not finite")
    _require(bool((gradient[known] != 0).any()), "no gradient reaches the slope")


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


def check_operator(module: nn.Module, center: Tensor, radius: float) -> set[str]:
    """The laws of operators, on a module that has them, through the host's graph.

    - The image of sampled points lies within the bounds, and so it does on a graph that forks and joins again, where
      branches must be aligned.
    - Elements of a batch do not leak into one another: each is bounded as if it were alone, and the bounds of one do
      not change with the others.
    - The type stays.

    Args:
        module: maps (batch, *shape) to (batch, *out_shape), in the type of `center`.
        center: (1, *shape), the middle of a box inside the module's domain.
        radius: of that box, for each coordinate.
    Returns:
        The classes of the host's nodes that the walk met, patterns included.
    """
    from zonoplug.domain.input_sets import Box
    from zonoplug.lirpa import compat
    from zonoplug.lirpa.methods import BoundMethod
    from zonoplug.lirpa.module import ZonotopeModule, bound_set
    from zonoplug.lirpa.propagate import plan_for

    def bounds_of(part: nn.Module, box: Box) -> Interval:
        host = compat.build(part, center, module_class=ZonotopeModule)
        with torch.no_grad():
            return bound_set(host, box, BoundMethod(zonotope=True))[0]

    generator = torch.Generator().manual_seed(0)
    moves = (torch.rand(3, *center.shape[1:], generator=generator, dtype=torch.float64) - 0.5).to(center)
    boxes = Box.ball(center + radius * moves, radius / 2)
    points = boxes.sample(200, generator)
    for part in (module, Forked(module, center)):
        bounds = bounds_of(part, boxes)
        with torch.no_grad():
            images = part(points.flatten(0, 1)).unflatten(0, points.shape[:2])
        _require(bounds.lower.dtype == center.dtype, "the type changed")
        check_contains_samples(bounds, images)
    together = bounds_of(module, boxes)
    allowed = 1e3 * tolerance(together.lower, together.upper)
    others = Box(torch.cat([boxes.lower[:1], boxes.upper[1:]]), boxes.upper)
    for box in (Box(boxes.lower[:1], boxes.upper[:1]), others):
        alone = bounds_of(module, box)
        for one, other in zip(alone, together, strict=True):
            difference = (one[0] - other[0]).abs()
            _require(bool((difference <= allowed).all()), f"batch elements differ by {float(difference.max()):.3g}")
    host = compat.build(module, center, module_class=ZonotopeModule)
    return {type(node).__name__ for node in plan_for(host, host.final_name, patterns=True).order if node.from_input}


class Forked(nn.Module):
    """f(x) - f(0.9 x + 0.1 c) / 2:  two branches with shared symbols, which meet again."""

    center: Tensor

    def __init__(self, module: nn.Module, center: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("center", center.clone())

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.module(x) - 0.5 * self.module(0.9 * x + 0.1 * self.center)
        return image


def check_gradient_reaches_slopes(module: nn.Module, center: Tensor, radius: float) -> None:
    """Bounds behind a ReLU have finite gradients with respect to its slopes, through the operators of a module.

    Args:
        module: maps (batch, *shape) to (batch, *out_shape); ReLUs are put in front of it.
        center: (1, *shape), positive entries, about which a box lies inside the module's domain.
        radius: of that box.
    """
    from zonoplug.domain.input_sets import Box
    from zonoplug.domain.symbols import SymbolSource
    from zonoplug.lirpa import compat
    from zonoplug.lirpa.module import ZonotopeModule
    from zonoplug.lirpa.propagate import WalkOptions, propagate

    whole = nn.Sequential(_Kinked(center), module)
    host = compat.build(whole, center, module_class=ZonotopeModule)
    source, box = SymbolSource(), Box.ball(center, radius)
    name = next(node.name for node in host._modules.values() if type(node).__name__ == "BoundRelu")
    slope = torch.full_like(center, 0.4).requires_grad_()
    inputs = {host.input_name[0]: box.to_zonotope(source, "input")}
    bounds = propagate(host, inputs, source, WalkOptions(), slopes={name: slope}).bounds
    (gradient,) = torch.autograd.grad((bounds.upper - bounds.lower).sum(), slope, allow_unused=True)
    _require(gradient is not None and bool(gradient.isfinite().all()), "no finite gradient reaches a slope in front")


class _Kinked(nn.Module):
    """x + relu(x - c) / 2: a function around c with a kink there."""

    center: Tensor

    def __init__(self, center: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", center.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * torch.relu(x - self.center)
