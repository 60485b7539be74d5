"""With outward rounding, what float32 computes contains what float64 computes, without any tolerance."""

from __future__ import annotations

import pytest
import torch

from zonoplug.domain.blocks import DenseBlock
from zonoplug.domain.rounding import rounding
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.transformers import bilinear, matrix_product, pooling
from zonoplug.transformers.enclosure import Enclosure
from zonoplug.transformers.softmax import log_softmax, softmax

INDEX = torch.tensor([[0, 1, 2], [2, 3, 4]])
OPERATIONS = {
    "product": (lambda x, y, s: bilinear.product(x, y, s, "node", "precise"), torch.mul),
    "fast product": (lambda x, y, s: bilinear.product(x, y, s, "node", "fast"), torch.mul),
    "square": (lambda x, y, s: bilinear.product(x, x, s, "node"), lambda x, y: x * x),
    "quotient": (lambda x, y, s: bilinear.divide(x, positive(y), s, "node"), lambda x, y: x / y),
    "matrix product": (lambda x, y, s: matrix_product.matrix_product(x, swap(y), s, "node"), lambda x, y: x @ y.mT),
    "max-pool": (
        lambda x, y, s: pooling.max_over_windows(x, INDEX, s, "node"), lambda x, y: x[..., INDEX].amax(-1)
    ),
    "maximum": (lambda x, y, s: pooling.maximum(x, y, s, "node"), torch.maximum),
    "softmax": (lambda x, y, s: softmax(x, -1, s, "node"), lambda x, y: x.softmax(-1)),
    "log-softmax": (lambda x, y, s: log_softmax(x, -1, s, "node"), lambda x, y: x.log_softmax(-1)),
}  # fmt: skip


def positive(zonotope):
    return zonotope.shift(1 + 2 * zonotope.radius().amax() - zonotope.center)


def swap(zonotope):
    blocks = tuple(DenseBlock(block.symbols, block.dense().mT) for block in zonotope.blocks)
    return Zonotope(zonotope.center.mT, blocks, None)


def double(zonotope):
    blocks = tuple(DenseBlock(block.symbols, block.dense().double()) for block in zonotope.blocks)
    return Zonotope(zonotope.center.double(), blocks, None if zonotope.box is None else zonotope.box.double())


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("center", [1.0, 30.0, 1e4])
def test_outward_rounding_covers_its_own_arithmetic(name, size, center):
    operation, function = OPERATIONS[name]
    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        source = SymbolSource()
        ids = source.fresh("input", torch.zeros(2, 6, dtype=torch.int64))
        x, y = (
            Zonotope(
                center * (1 + torch.randn(2, 3, 5, generator=random) / 30),
                (DenseBlock(ids, size / 6 * torch.randn(2, 6, 3, 5, generator=random)),),
            )
            for _ in range(2)
        )
        with rounding("outward"):
            result = operation(x, y, source)
            hull = result.zonotope.interval_hull()
        used = positive(y) if name == "quotient" else y
        wide = Enclosure(double(result.zonotope), Interval(*(side.double() for side in result.bounds)))
        escape = escapes(function, double(x), double(used), wide, ids, random)
        assert escape <= 0, f"a point is {escape:.3g} out of reach"
        assert bool((hull.lower <= hull.upper).all())


def escapes(function, x, y, enclosure, ids, random):
    image = enclosure.zonotope
    kept = image.generators(ids)
    spare = image.generators(image.symbols[~torch.isin(image.symbols, ids)]).abs().sum(1)
    spare = spare if image.box is None else spare + image.box
    worst = -torch.inf
    for _ in range(16):
        noise = (2 * torch.rand(2, 6, generator=random, dtype=torch.float64) - 1).sign()
        value = function(x.point(noise), y.point(noise))
        reach = image.center + (kept * noise.reshape(2, 6, *[1] * len(image.shape))).sum(1)
        outside = torch.maximum(value - enclosure.bounds.upper, enclosure.bounds.lower - value)
        worst = max(worst, float(((value - reach).abs() - spare).max()), float(outside.max()))
    return worst
