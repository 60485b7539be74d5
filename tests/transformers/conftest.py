"""Laws of transformers of several operands, checked on sampled noise."""

from __future__ import annotations

import pytest
import torch

from zonoplug.domain.blocks import DenseBlock
from zonoplug.domain.symbols import SymbolSource, merge_ids
from zonoplug.domain.zonotope import Zonotope


def image_escapes(function, operands, enclosure, samples=24):
    """How far the image of a sampled point leaves the bounds, the hull, and the reach of its own noise values.

    The last one is the law that makes reduction and graphs sound: for the *same* values of the symbols that the
    operands have, some values of the fresh ones and of the box give the image.
    """
    zonotopes = [operand for operand in operands if isinstance(operand, Zonotope)]
    ids = merge_ids(*(zonotope.symbols for zonotope in zonotopes))
    image = enclosure.zonotope
    kept = image.generators(ids)
    spare = image.generators(image.symbols[~torch.isin(image.symbols, ids)]).abs().sum(dim=1)
    spare = spare if image.box is None else spare + image.box
    hull, bounds = image.interval_hull(), enclosure.bounds
    worst = torch.tensor(-torch.inf, dtype=image.center.dtype)
    for sample in range(samples):
        noise = 2 * torch.rand(image.batch, ids.shape[0], dtype=image.center.dtype) - 1
        noise = noise.sign() if sample % 2 else noise
        points = []
        sides = {}
        for operand in operands:
            if not isinstance(operand, Zonotope):
                points.append(operand)
                continue
            side = sides.setdefault(id(operand), (2 * torch.rand_like(operand.center) - 1).sign())
            points.append(operand.point(noise[:, torch.searchsorted(ids, operand.symbols)], side))
        y = function(*points)
        reach = image.center + (kept * noise.reshape(*noise.shape, *[1] * len(image.shape))).sum(dim=1)
        escapes = ((y - reach).abs() - spare, y - hull.upper, hull.lower - y, y - bounds.upper, bounds.lower - y)
        worst = torch.stack([worst, *(escape.max() for escape in escapes)]).max()
    return float(worst)


@pytest.fixture
def check_image():
    """A function that raises where an enclosure loses the image of a sampled point, up to rounding."""

    def check(function, operands, enclosure, scale=None, samples=24):
        image = enclosure.zonotope
        size = float((image.center.abs() + image.radius()).max()) if scale is None else scale
        allowed = 256 * torch.finfo(image.center.dtype).eps * max(size, 1e-30)
        escape = image_escapes(function, operands, enclosure, samples)
        assert escape <= allowed, f"a point is {escape:.3g} out of reach, {allowed:.3g} allowed for rounding"

    return check


@pytest.fixture
def make_pair(make_zonotope):
    """A function that makes zonotopes that share dense symbols; each has diagonal ones and perhaps a box of its own."""

    def make(shapes=((4,), (4,)), shared=5, radius=0.5, seed=0, dtype=torch.float64, batch=2, **options):
        source = SymbolSource()
        ids = source.fresh("input", torch.zeros(batch, shared, dtype=torch.int64))
        made = []
        for place, shape in enumerate(shapes):
            zonotope = make_zonotope(
                shape=shape, batch=batch, dense=0, seed=100 * seed + place, dtype=dtype, source=source, **options
            )
            random = torch.Generator().manual_seed(100 * seed + 50 + place)
            generators = torch.randn(batch, shared, *shape, generator=random, dtype=dtype)
            blocks = (DenseBlock(ids, generators), *zonotope.blocks) if shared else zonotope.blocks
            full = Zonotope(zonotope.center, blocks, zonotope.box)
            size = full.radius().amax().clamp(min=1e-6)
            factor = torch.full((1, *[1] * len(shape)), float(radius / size), dtype=dtype)
            made.append(
                Zonotope(
                    full.center,
                    tuple(block.scale(factor) for block in full.blocks),
                    None if full.box is None else full.box * factor,
                )
            )
        return (*made, source)

    return make
