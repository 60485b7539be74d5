"""Laws of zonotopes and of what encloses them: reductions, bounds."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from zonoplug.domain.blocks import DenseBlock
from zonoplug.domain.symbols import SymbolIds, SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.reduction.base import NO_SYMBOLS, Reduction
from zonoplug.reduction.context import Influence, ReductionContext
from zonoplug.reduction.report import reduce_with_report
from zonoplug.testing.requirements import require, tolerance


def check_encloses(outer: Zonotope, inner: Zonotope, generator: torch.Generator | None = None) -> None:
    """`outer` contains `inner`, as a set with shared symbols.

    For every value of the symbols that both know there must be values of `outer`'s own symbols and of its box that give
    the same point, whatever `inner`'s own symbols are. So what `outer` changed or gave up,

        D = { sum_j (g_j - g'_j) e_j + sum over inner's own symbols + inner's box },

    must lie in the set of outer's own symbols and box. Both are centered, so their supports are compared: in random
    and axis directions, and in those that single out one of outer's own generators. And sampled points of `inner` must
    be within reach, coordinate by coordinate. Symbols that lie in balls count as in `Zonotope.support`.
    """
    noise = 2 * torch.rand(64, inner.batch, inner.num_symbols, generator=generator, dtype=inner.center.dtype) - 1
    noise[::2] = noise[::2].sign()
    noise = noise.to(inner.center.device)
    shared = torch.isin(inner.symbols, outer.symbols)
    common = outer.generators(inner.symbols[shared])
    own = outer.generators(outer.symbols[~torch.isin(outer.symbols, inner.symbols)])
    spare = own.abs().sum(dim=1)
    spare = spare if outer.box is None else spare + outer.box
    allowed = tolerance(inner.center, inner.radius())
    inner_box = 0 if inner.box is None else inner.box
    for values in noise:
        shape = (inner.batch, -1, *[1] * len(inner.shape))
        reach = outer.center + (common * values[:, shared].reshape(shape)).sum(dim=1)
        missing = (inner.point(values) - reach).abs() + inner_box - spare
        require(bool((missing <= allowed).all()), f"a point is lost: {float(missing.max()):.3g} out of reach")
    directions = _directions(inner, own, generator)
    size = directions.abs().sum(dim=1)
    slack = tolerance(inner.radius()) * size.clamp(min=1)
    if not any(block.norm != inf for block in (*inner.blocks, *outer.blocks)):
        given_up = inner.generators()
        given_up[:, shared.to(given_up.device)] -= common
        difference = _centered_support(given_up, inner.box, directions)
        missing = difference - _centered_support(own, outer.box, directions)
        require(
            bool((missing <= slack).all()),
            f"for some values of the kept symbols a point is lost: {float(missing.max()):.3g} out of reach",
        )
    loss = outer.support(directions) - inner.support(directions)
    slack = slack + tolerance(inner.support(directions).abs().max())
    require(bool((loss >= -slack).all()), f"the support shrank by {float(-loss.min()):.3g}")


def _directions(inner: Zonotope, own: Tensor, generator: torch.Generator | None) -> Tensor:
    """(m, n): random ones, axes, and the dual vectors of the generators `own` (batch, k, *shape)."""
    n = inner.center[0].numel()
    like = inner.center
    parts = [torch.randn(32, n, generator=generator, dtype=like.dtype).to(like), torch.eye(n).to(like)[:64]]
    finite = own.flatten(2).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    if finite.shape[1]:
        scale = finite.abs().amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(like.dtype).tiny)
        duals = torch.linalg.pinv(finite / scale).transpose(1, 2).flatten(0, 1)[:64]
        parts.append(duals / duals.abs().sum(dim=1, keepdim=True).clamp(min=1))
    return torch.cat(parts)


def _centered_support(generators: Tensor, box: Tensor | None, directions: Tensor) -> Tensor:
    """The support (batch, m) of generators (batch, k, *shape) and a box around 0."""
    reach = torch.matmul(generators.flatten(2), directions.T).abs().sum(dim=1)
    return reach if box is None else reach + box.flatten(1) @ directions.abs().T


def check_reduction(
    reduction: Reduction,
    zonotope: Zonotope,
    max_symbols: int,
    protect: SymbolIds = NO_SYMBOLS,
    context: ReductionContext | None = None,
) -> Zonotope:
    """The laws of reductions on one zonotope; returns the reduced one.

    It encloses the original for every value of the kept symbols, keeps center, type and device, keeps every protected
    symbol's generator as it was, respects the budget, leaves a zonotope alone that is small enough, and the loss that
    is reported of it in a direction is the growth of its support.

    Args:
        context: what the rule may know; by default that the zonotope stands alone, and random directions for rows.
    """
    if context is None:
        context = _alone(zonotope)
    reduced, report = reduce_with_report(reduction, zonotope, max_symbols, protect, context)
    if reduction.keeps_budget:
        require(reduced.num_symbols <= max_symbols, f"{reduced.num_symbols} symbols left, allowed are {max_symbols}")
    require(torch.equal(reduced.center, zonotope.center), "the center moved")
    require(reduced.center.dtype == zonotope.center.dtype, "the type changed")
    require(reduced.center.device == zonotope.center.device, "the device changed")
    require(reduced.radius().dtype == zonotope.center.dtype, "the type of the generators or of the box changed")
    kept = zonotope.symbols[torch.isin(zonotope.symbols, protect)]
    require(torch.equal(reduced.generators(kept), zonotope.generators(kept)), "a protected symbol changed")
    if zonotope.num_symbols <= max_symbols:
        require(reduced is zonotope, "a zonotope that was small enough was changed")
    again = reduction.reduce(reduced, max_symbols, protect, context)
    require(again is reduced, "reducing twice differs from reducing once")
    check_encloses(reduced, zonotope, torch.Generator().manual_seed(0))
    require((report is None) == (reduced is zonotope), "a reduction without a report")
    if report is not None and report.loss is not None and context.influence is not None and not context.elsewhere:
        _check_loss(zonotope, reduced, report.loss, context.influence)
    return reduced


def _alone(zonotope: Zonotope) -> ReductionContext:
    """The surroundings of a zonotope that stands alone, with random directions for the specification's rows."""
    random = torch.Generator().manual_seed(1)
    center = zonotope.center
    rows = torch.randn(zonotope.batch, 3, center[0].numel(), generator=random, dtype=center.dtype).to(center)
    return ReductionContext(source=SymbolSource.beyond(zonotope.symbols), influence=Influence(rows, rows.abs()))


def _check_loss(before: Zonotope, after: Zonotope, loss: Tensor, influence: Influence) -> None:
    """The reported loss (batch, rows) is  M . box + sum |A . g|  of the second less that of the first."""
    wide, narrow = (
        torch.stack(
            [
                torch.matmul(influence.linear[i], z.generators()[i].flatten(1).T).abs().sum(dim=1)
                + (0 if z.box is None else influence.absolute[i] @ z.box[i].flatten())
                for i in range(z.batch)
            ]
        )
        for z in (after, before)
    )
    if any(block.norm != inf for block in (*before.blocks, *after.blocks)):
        return
    error = (loss - (wide - narrow)).abs()
    allowed = tolerance(wide, narrow)
    require(bool((error <= allowed).all()), f"the reported loss is off by {float(error.max()):.3g}")


def check_contains_samples(bounds: Interval, samples: Tensor) -> None:
    """Every sampled output (m, batch, *shape) lies inside the bounds (batch, *shape), up to rounding."""
    allowed = tolerance(samples)
    escape = torch.maximum(bounds.lower - samples, samples - bounds.upper)
    require(bool((escape <= allowed).all()), f"a sampled output lies {float(escape.max()):.3g} outside its bounds")


def dense_copy(zonotope: Zonotope) -> Zonotope:
    """The same zonotope with one dense block: the oracle that other structures are compared with."""
    symbols = zonotope.symbols
    return Zonotope(zonotope.center, (DenseBlock(symbols, zonotope.generators(symbols)),), zonotope.box)
