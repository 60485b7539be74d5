"""The law of input sets."""

from __future__ import annotations

import torch

from zonoplug.domain.input_sets import InputSet
from zonoplug.domain.symbols import SymbolSource
from zonoplug.testing.requirements import require, tolerance


def check_input_set(inputs: InputSet, count: int = 300, generator: torch.Generator | None = None) -> None:
    """What every input set promises: its samples lie in its hull and, in every direction, within its zonotope's
    support; the zonotope contains the hull's ends; and all three have the same shape and type.
    """
    samples = inputs.sample(count, generator)
    hull, zonotope = inputs.interval_hull(), inputs.to_zonotope(SymbolSource(), "input")
    require(samples.shape == (count, *hull.lower.shape), "samples and hull differ in shape")
    require(zonotope.center.shape == hull.lower.shape, "zonotope and hull differ in shape")
    require(samples.dtype == hull.lower.dtype == zonotope.center.dtype, "samples, hull and zonotope differ in type")
    allowed = tolerance(hull.lower, hull.upper)
    escape = torch.maximum(hull.lower - samples, samples - hull.upper)
    require(bool((escape <= allowed).all()), f"a sample lies {float(escape.max()):.3g} outside the hull")
    inner = zonotope.interval_hull()
    short = torch.maximum(inner.lower - hull.lower, hull.upper - inner.upper)
    require(bool((short <= allowed).all()), f"the zonotope's hull is {float(short.max()):.3g} short of the set's")
    size = hull.lower[0].numel()
    random = torch.randn(40, size, generator=generator, dtype=torch.float64)
    directions = torch.cat([random, torch.eye(size, dtype=torch.float64)]).to(hull.lower)
    reached = torch.einsum("mbn,dn->mbd", samples.flatten(2), directions).amax(dim=0)
    missing = reached - zonotope.support(directions)
    slack = allowed * directions.abs().sum(dim=1).clamp(min=1)
    require(bool((missing <= slack).all()), f"a sample lies {float(missing.max()):.3g} beyond the zonotope's support")
