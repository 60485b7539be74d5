"""Random small networks around each operator of a host's graph, for `host_laws.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn

from zonoplug.domain.input_sets import Box
from zonoplug.testing import Function


@dataclass(frozen=True)
class Core:
    """An operator with its attributes, and what it is put on.

    Attributes:
        function: maps (n, *shape) to (n, *out_shape).
        shape: of its operand.
        shift: is added to the operand, so that it lies in the operator's domain.
    """

    function: Callable[[Tensor], Tensor] | nn.Module
    shape: tuple[int, ...]
    shift: float = 0.0


Maker = Callable[[Random], Core]


class Net(nn.Module):
    """Layers before an operator, the operator, layers behind it, perhaps a path around all of them."""

    def __init__(self, r: Random, core: Core) -> None:
        super().__init__()
        shape = core.shape
        before: list[nn.Module] = []
        for _ in range(r.choice([0, 1, 1, 2])):
            before += [_mixing(r, shape), nn.ReLU()]
        if core.shift or r.random() < 0.7:  # else the operator is on the input, or on a ReLU
            before.append(
                _scaled(_mixing(r, shape), r.choice([0.5, 1.0, 1.0, 3.0]), core.shift or r.choice([0.0, 0.7, -1.5]))
            )
        self.before, self.core = nn.Sequential(*before), core.function
        with torch.no_grad():
            image = self.core(self.before(torch.zeros(2, *shape)))[:1]
        self.after, self.skip = None, None
        if r.random() < 0.85 or image.dim() < 2:
            after: list[nn.Module] = []
            if image.dim() in (3, 4) and r.random() < 0.4:
                after += [_mixing(r, tuple(image.shape[1:])), nn.ReLU()]
            elif r.random() < 0.6:
                after.append(nn.ReLU())
            flat = [] if image.dim() == 2 else [nn.Flatten()]
            self.after = nn.Sequential(*after, *flat, nn.Linear(int(image[0].numel()), 3))
            if r.random() < 0.35:
                self.skip = nn.Linear(math.prod(shape), 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.core(self.before(x))
        y = y if self.after is None else self.after(y)
        return y if self.skip is None else y + self.skip(x if x.dim() == 2 else x.flatten(1))


def _scaled(layer: nn.Module, scale: float, shift: float) -> nn.Module:
    """A layer whose results are `scale` times as large, less its bias, plus `shift`."""
    with torch.no_grad():
        layer.weight.mul_(scale)
        layer.bias.mul_(scale * 0.3).add_(shift)
    return layer


def _mixing(r: Random, shape: tuple[int, ...]) -> nn.Module:
    """A linear layer from a shape to the same shape."""
    if len(shape) == 3 and r.random() < 0.8:
        wide = min(shape[1:]) > 1 and r.random() < 0.6
        return nn.Conv2d(shape[0], shape[0], 3 if wide else 1, padding=1 if wide else 0)
    if len(shape) == 2 and r.random() < 0.3:
        return nn.Conv1d(shape[0], shape[0], 3, padding=1)
    return nn.Linear(shape[-1], shape[-1])


def random_box(r: Random, shape: tuple[int, ...], dtype: torch.dtype) -> Box:
    """One to three boxes: wide, narrow, points, with some coordinates fixed, anywhere or on one side of zero."""
    batch = r.choice([1, 2, 3])
    center = torch.randn(batch, *shape, dtype=dtype) * r.choice([0.2, 1.0, 2.0])
    radius = torch.rand(batch, *shape, dtype=dtype) * r.choice([0.0, 0.01, 0.1, 0.5, 1.0, 1.0, 3.0])
    if r.random() < 0.3:
        radius = torch.where(torch.rand(shape) < 0.5, torch.zeros_like(radius), radius)
    if r.random() < 0.2:
        center = (center.abs() + radius) * r.choice([1, -1])
    return Box(center - radius, center + radius)


# Shapes and pieces


def vector(r: Random) -> tuple[int, ...]:
    return r.choice([(2,), (3,), (4,), (4,), (6,), (2, 3), (3, 2), (2, 3, 3)])


def matrix(r: Random) -> tuple[int, ...]:
    return r.choice([(2, 3), (3, 4), (4, 2), (1, 4), (3, 1)])


def image(r: Random, least: int = 3) -> tuple[int, ...]:
    return (r.choice([1, 2]), r.randint(least, least + 2), r.randint(least, least + 2))


def unary(function: Callable[[Tensor], Tensor], shift: float = 0.0) -> Maker:
    return lambda r: Core(function, vector(r), shift)


def pair(function: Callable[[Tensor, Tensor], Tensor], shift: float = 0.0, on_second: float = 0.0) -> Maker:
    """A function of two perturbed operands, of equal shapes or shapes to broadcast."""

    def make(r: Random) -> Core:
        n = r.choice([2, 3, 4])
        m = r.choice([n, n, n, 1])
        first, second = nn.Linear(4, n), nn.Linear(4, m)
        kind = r.choice(["both", "fork", "plain second"])
        if kind == "both":
            inner = Function(lambda x, a, b: function(a(x), b(x) + on_second), a=first, b=second)
        elif kind == "fork":
            inner = Function(lambda x, b: function(x, b(x) + on_second), b=nn.Linear(4, r.choice([1, 4])))
        else:
            inner = Function(lambda x, a: function(torch.relu(a(x)), x[:, :1] + on_second), a=first)
        return Core(inner, (4,), shift)

    return make


def with_constant(function: Callable[[Tensor, Tensor], Tensor], positive: bool = False, least: float = 0.3) -> Maker:
    """A function of a perturbed operand and a constant, of the same shape or to broadcast."""

    def make(r: Random) -> Core:
        shape = vector(r)
        value = torch.rand(r.choice([(1, *shape), shape[-1:], (1,)])) + least
        if not positive:
            value = value * (torch.randint(0, 2, value.shape) * 2 - 1)
        return Core(Function(lambda x, c: function(x, c), c=value), shape)

    return make


def slopes(make: Callable[[float], nn.Module], choices: list[float], shift: float = 0.0) -> Maker:
    return lambda r: Core(make(r.choice(choices)), vector(r), shift)


def on_axis(function: Callable[[Tensor, int], Tensor]) -> Maker:
    def make(r: Random) -> Core:
        shape = r.choice([(3,), (4,), (2, 3), (3, 2), (2, 3, 3)])
        axis = r.randint(1, len(shape)) if r.random() < 0.5 else -r.randint(1, len(shape))
        return Core(lambda x: function(x, axis), shape)

    return make


def reduction(function: Callable[..., Tensor], several: bool = True, shift: float = 0.0) -> Maker:
    def make(r: Random) -> Core:
        shape = r.choice([(4,), (2, 3), (3, 4), (2, 3, 3)])
        axes = sorted(r.sample(range(1, len(shape) + 1), r.randint(1, len(shape)) if several else 1))
        axes = [axis - len(shape) - 1 for axis in axes] if r.random() < 0.4 else axes
        keep = r.random() < 0.5
        if len(axes) == len(shape):
            keep = True
        return Core(lambda x: function(x, axes if several else axes[0], keep), shape, shift)

    return make


def conv(r: Random, rank: int = 2) -> Core:
    channels, out = r.choice([1, 2, 4]), r.choice([1, 2, 4])
    groups = r.choice([1, 1, math.gcd(channels, out)])
    kernel = [r.randint(1, 3) for _ in range(rank)]
    pads = [r.randint(0, 2) for _ in range(rank)]
    dilation = [r.choice([1, 1, 2]) for _ in range(rank)]
    sizes = [max(r.randint(3, 6), d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, pads, strict=True)]
    if r.random() < 0.4:  # what is most common
        kernel, pads, dilation, sizes = (
            [r.choice([1, 2, 3])] * rank,
            pads[:1] * rank,
            [1] * rank,
            [r.randint(4, 6)] * rank,
        )
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    stride = [r.choice([1, 1, 2]) for _ in range(rank)]
    layer = kind(channels, out, kernel, stride, pads, dilation, groups, bias=r.random() < 0.7)
    function: nn.Module = layer
    if rank == 2 and r.random() < 0.3:  # uneven padding, as ONNX has it
        uneven = [r.randint(0, 2) for _ in range(4)]
        function = nn.Sequential(nn.ZeroPad2d(uneven), layer)
    return Core(function, (channels, *sizes))


def conv_transpose(r: Random) -> Core:
    rank = r.choice([1, 2, 2, 2])
    channels, out = r.choice([1, 2]), r.choice([1, 2])
    stride = [r.choice([1, 2, 3]) for _ in range(rank)]
    kernel = [r.randint(1, 3) for _ in range(rank)]
    dilation = [r.choice([1, 1, 2]) for _ in range(rank)]
    pads = [r.randint(0, min(1, d * (k - 1))) for k, d in zip(kernel, dilation, strict=True)]
    extra = [r.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[rank - 1]
    groups = r.choice([1, math.gcd(channels, out)])
    layer = kind(channels, out, kernel, stride, pads, extra, groups, r.random() < 0.7, dilation)
    return Core(layer, (channels, *[r.randint(2, 4) for _ in range(rank)]))


def average_pool(r: Random) -> Core:
    rank = r.choice([1, 2, 2, 2, 2])
    same = r.random() < 0.4
    kernel = [r.randint(1, 3) for _ in range(rank)]
    if same:
        kernel = kernel[:1] * rank
    stride = list(kernel) if r.random() < 0.4 else [r.randint(1, 3) for _ in range(rank)]
    pads = [r.randint(0, k // 2) if r.random() < 0.5 else 0 for k in kernel]
    sizes = [r.randint(3, 6) for _ in range(rank)]
    kind = (nn.AvgPool1d, nn.AvgPool2d)[rank - 1]
    take = (lambda v: v[0]) if rank == 1 else tuple
    layer = kind(take(kernel), take(stride), take(pads), r.random() < 0.2, r.random() < 0.5)
    return Core(layer, (r.choice([1, 2]), *sizes))


def max_pool(r: Random) -> Core:
    rank = r.choice([1, 2, 2, 2, 2])
    kernel = [r.randint(1, 3) for _ in range(rank)]
    stride = list(kernel) if r.random() < 0.5 else [r.randint(1, 3) for _ in range(rank)]
    pads = [r.randint(0, k // 2) if r.random() < 0.4 else 0 for k in kernel]
    dilation = [r.choice([1, 1, 1, 2]) for _ in range(rank)]
    sizes = [max(r.randint(3, 6), d * (k - 1) + 1) for k, d in zip(kernel, dilation, strict=True)]
    kind = (nn.MaxPool1d, nn.MaxPool2d)[rank - 1]
    take = (lambda v: v[0]) if rank == 1 else tuple
    layer = kind(take(kernel), take(stride), take(pads), take(dilation), False, r.random() < 0.3)
    return Core(layer, (r.choice([1, 2]), *sizes))


def plain_pool(kind: type, larger: bool) -> Maker:
    """Windows side by side over square images, which the host's own classes serve."""

    def make(r: Random) -> Core:
        kernel = r.choice([2, 3])
        sizes = [kernel * r.randint(1, 2) + (r.randint(0, 1) if larger else 0) for _ in range(2)]
        return Core(kind(kernel), (r.choice([1, 2]), *sizes))

    return make


def batch_norm(r: Random) -> Core:
    rank = r.choice([0, 1, 2, 2])
    channels = r.choice([1, 2, 3])
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[rank]
    layer = kind(channels)
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.1, 2)
        layer.weight.normal_()
        layer.bias.normal_()
    sizes = [r.randint(2, 4) for _ in range(rank)]
    if rank == 2 and r.random() < 0.6:
        return Core(
            nn.Sequential(nn.Conv2d(channels, channels, r.choice([1, 3]), padding=1), layer), (channels, *sizes)
        )
    return Core(layer, (channels, *sizes))
