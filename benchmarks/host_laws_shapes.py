"""Operators that move values about, or are linear, for `host_laws_families.py`."""

from __future__ import annotations

from random import Random

import torch
from host_laws_cases import Core, image, vector
from torch import Tensor, nn
from torch.nn import functional

from zonoplug.testing import Function


def linear(r: Random) -> Core:
    shape = r.choice([(3,), (2, 3), (2, 2, 3)])
    return Core(nn.Linear(3, r.randint(1, 4), bias=r.random() < 0.7), shape)


def reshape(r: Random) -> Core:
    shape, targets = r.choice(
        [
            ((6,), [(2, 3), (3, 2, 1), (1, 2, 3)]),
            ((2, 6), [(12,), (3, 4), (3, 2, 2)]),
            ((2, 3, 4), [(6, 4), (24,), (3, 2, 4)]),
        ]
    )
    target = r.choice(targets)
    return Core(lambda x: x.reshape(-1, *target), shape)


def reshape_before_convolution(r: Random) -> Core:
    channels, height, width = r.choice([(1, 4, 4), (2, 3, 3), (2, 3, 4), (1, 4, 3)])
    layer = nn.Conv2d(channels, 2, r.choice([1, 2, 3]), padding=r.choice([0, 1]))
    shape = r.choice([(channels * height * width,), (channels, height * width)])
    return Core(
        nn.Sequential(
            nn.Unflatten(1, (channels, height, width))
            if len(shape) == 1
            else Function(lambda x: x.reshape(-1, channels, height, width)),
            layer,
        ),
        shape,
    )


def flatten(r: Random) -> Core:
    shape = image(r)
    layer = nn.Conv2d(shape[0], 2, 3, stride=r.choice([1, 2]), padding=1)
    return Core(nn.Sequential(layer, nn.Flatten()) if r.random() < 0.5 else nn.Flatten(), shape)


def transpose(r: Random) -> Core:
    shape = r.choice([(2, 3), (3, 4), (2, 3, 4)])
    order = r.sample(range(1, len(shape) + 1), len(shape))
    return Core(lambda x: x.permute(0, *order), shape)


def squeeze(r: Random) -> Core:
    axis = r.choice([1, 2])
    shape = (1, 3) if axis == 1 else (3, 1)
    return Core(lambda x: x.squeeze(axis), shape)


def unsqueeze(r: Random) -> Core:
    shape = r.choice([(3,), (2, 3)])
    axis = r.choice([1, 2, -1])
    return Core(lambda x: x.unsqueeze(axis), shape)


def concat(r: Random) -> Core:
    if r.random() < 0.4:
        shape = image(r)
        layer = nn.Conv2d(shape[0], 2, 3, padding=1)
        return Core(Function(lambda x, a: torch.cat([x, torch.relu(a(x))], 1), a=layer), shape)
    shape = r.choice([(3,), (2, 3)])
    axis = r.choice([-1, len(shape)])
    constant = torch.randn(1, *shape)
    kind = r.choice(["twice", "constant", "three"])
    if kind == "twice":
        return Core(lambda x: torch.cat([x, 0.5 - x * 2], axis), shape)
    if kind == "constant":
        return Core(Function(lambda x, c: torch.cat([c.expand(x.shape[0], *shape), x], axis), c=constant), shape)
    return Core(lambda x: torch.cat([x, torch.relu(x), -x], axis), shape)


def split(r: Random) -> Core:
    shape = r.choice([(5,), (2, 5), (2, 3, 5)])
    axis = r.choice([-1, len(shape)])
    sizes = r.choice([[2, 3], [1, 4], [2, 2, 1]])
    chosen = r.randrange(len(sizes))

    def function(x: Tensor) -> Tensor:
        parts = torch.split(x, sizes, axis)
        return parts[chosen] + parts[chosen - 1].sum(axis, keepdim=True)

    return Core(function, shape)


def piece(r: Random) -> Core:
    shape = r.choice([(6,), (3, 6), (2, 4, 4)])
    axis = r.randint(1, len(shape))
    size = shape[axis - 1]
    first = r.randint(0, size - 2)
    last, step = r.randint(first + 1, size), r.choice([1, 1, 2])
    counted = r.random() < 0.4

    def function(x: Tensor) -> Tensor:
        index: list[slice] = [slice(None)] * x.dim()
        index[axis] = slice(first - size, last - size or None, step) if counted else slice(first, last, step)
        return x[tuple(index)] + 0.0

    return Core(function, shape)


def gather(r: Random) -> Core:
    shape = r.choice([(5,), (3, 4), (2, 3, 3)])
    axis = r.randint(1, len(shape))
    chosen = [r.randrange(shape[axis - 1]) for _ in range(r.randint(1, 4))]
    if r.random() < 0.3 and len(shape) > 1:
        return Core(lambda x: x.select(axis, chosen[0]) + 0.0, shape)
    return Core(lambda x: torch.index_select(x, axis, torch.tensor(chosen)) + 0.0, shape)


def gather_elements(r: Random) -> Core:
    shape = r.choice([(4,), (3, 4)])
    axis = len(shape)
    index = torch.randint(0, 4, (1, *shape))
    return Core(lambda x: torch.gather(x, axis, index.expand(x.shape[0], *shape)), shape)


def expand(r: Random) -> Core:
    shape, target = r.choice([((1, 3), (2, 3)), ((3, 1), (3, 4)), ((1, 1, 3), (2, 2, 3))])
    return Core(lambda x: x.expand(-1, *target) + 0.0, shape)


def tile(r: Random) -> Core:
    shape = vector(r)
    return Core(lambda x: x.repeat(1, *[2 if axis == len(shape) - 1 else 1 for axis in range(len(shape))]), shape)


def pad(r: Random) -> Core:
    shape = image(r)
    margins = [r.randint(0, 2) for _ in range(4)]
    mode = r.choice(["constant", "constant", "reflect", "replicate", "circular"])
    value = {"value": r.choice([0.0, 0.5, -1.0])} if mode == "constant" else {}
    return Core(lambda x: functional.pad(x, margins, mode, **value), shape)


def resize(r: Random) -> Core:
    shape = image(r, 2)
    mode = r.choice(["nearest", "bilinear"])
    factor = r.choice([2, 3, 0.5, 1.5])
    return Core(lambda x: functional.interpolate(x, scale_factor=factor, mode=mode), shape)
