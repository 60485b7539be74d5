"""Random small networks over images, whose operators one after another are where hosts' bounds were seen to fail."""

from __future__ import annotations

import math
from random import Random

import torch
from torch import Tensor, nn

from zonoplug.testing.operators import Function

Shape = tuple[int, ...]


def convolutions_without_activations(r: Random) -> tuple[nn.Module, Shape]:
    """Reshape, three convolutions without a ReLU between, ReLU, matrix product, and a path around a part of it.

    Returns:
        the network, which maps (n, *shape) to (n, outputs), and the shape.
    """
    channels, height, width = r.choice([1, 2, 3]), r.randint(3, 9), r.randint(3, 9)
    size = channels * height * width
    middle, last = r.choice([1, 2, 3]), r.choice([channels, 2, 4])
    layers = [_convolution(r, channels, middle), _convolution(r, middle, middle), _convolution(r, middle, last)]
    with torch.no_grad():
        image = nn.Sequential(*layers)(torch.zeros(1, channels, height, width))
    count = int(image[0].numel())
    tall, wide = (int(side) for side in image.shape[-2:])
    kind = r.choice(["right", "left", "none"])
    weight = torch.randn(*((3, tall) if kind == "left" else (wide, 3))) / math.sqrt(tall if kind == "left" else wide)
    around = r.choice(["all", "images", "none"])

    def function(x: Tensor, layers: nn.Module, head: nn.Module, skip: nn.Module, weight: Tensor) -> Tensor:
        picture = x.reshape(-1, channels, height, width)
        deep = layers(picture)
        if around == "images" and deep.shape == picture.shape:
            deep = deep + picture
        hidden = torch.relu(deep)
        if kind != "none":
            hidden = torch.matmul(hidden, weight) if kind == "right" else torch.matmul(weight, hidden)
        y: Tensor = head(hidden.flatten(1))
        return y + skip(x) if around == "all" else y

    count = count * 3 // {"right": wide, "left": tall, "none": 3}[kind]
    parts = {"layers": nn.Sequential(*layers), "head": nn.Linear(count, 3), "skip": nn.Linear(size, 3)}
    return Function(function, **parts, weight=weight), (size,)


def _convolution(r: Random, channels: int, out: int) -> nn.Module:
    kernel = r.choice([1, 2, 3, 3])
    stride = r.choice([1, 1, 1, 2])
    padding = r.randint(0 if kernel < 3 else 1, kernel // 2 + r.randint(0, 1))
    return nn.Conv2d(channels, out, kernel, stride, padding, bias=r.random() < 0.8)


def images_through(r: Random) -> tuple[nn.Module, Shape]:
    """A chain of three to six random operators over images, with paths around some of them, and a linear layer.

    Returns:
        as `convolutions_without_activations`.
    """
    shape: Shape = (r.choice([1, 2]), r.randint(4, 6), r.randint(4, 6))
    value, parts = torch.zeros(2, *shape), list[nn.Module]()
    for _ in range(r.randint(3, 6)):
        part = _part(r, tuple(value.shape[1:]))
        with torch.no_grad():
            value = part(value)
        parts.append(part)
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(int(value[0].numel()), 3)).eval(), shape


class Around(nn.Module):
    """x + f(x), or x - f(x), or both joined along the channels."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "join":
            return torch.cat([x, self.inner(x)], 1)
        image: Tensor = x - self.inner(x) if self.kind == "less" else x + self.inner(x)
        return image


def _part(r: Random, shape: Shape) -> nn.Module:
    channels, height, width = shape
    small = min(height, width) < 2
    kinds = ["conv", "conv", "conv", "relu", "relu", "norm", "around", "around", "reshape", "transposed", "pad", "move"]
    kind = r.choice(kinds if small else [*kinds, "average", "largest", "slice"])
    if kind == "conv":
        return _convolution(r, channels, r.choice([1, 2, 3]))
    if kind == "norm":
        return _normalisation(channels)
    if kind == "around":
        inner = nn.Conv2d(channels, channels, 3, padding=1)
        deep = nn.Sequential(inner, nn.ReLU(), nn.Conv2d(channels, channels, r.choice([1, 3]), padding=0))
        fits = deep[2].kernel_size == (1, 1)
        return Around(deep if fits and r.random() < 0.5 else nn.Sequential(inner), r.choice(["add", "less", "join"]))
    if kind == "reshape":
        flat = channels * height * width
        layer = nn.Linear(flat, 8) if r.random() < 0.5 else None
        if layer is None:
            return Function(lambda x: x.reshape(-1, channels, width, height))
        return Function(lambda x, layer: layer(x.flatten(1)).reshape(-1, 2, 2, 2), layer=layer)
    if kind == "transposed":
        stride, kernel = r.choice([1, 2]), r.choice([2, 3])
        return nn.ConvTranspose2d(channels, r.choice([1, 2]), kernel, stride, r.choice([0, 1]) if kernel > 2 else 0)
    if kind == "pad":
        return nn.ZeroPad2d((r.randint(0, 1), r.randint(0, 1), r.randint(0, 1), r.randint(0, 1)))
    if kind == "move":
        return Function(lambda x: x.permute(0, 1, 3, 2))
    if kind == "average":
        return nn.AvgPool2d(2, r.choice([1, 2]))
    if kind == "largest":
        return nn.MaxPool2d(2, r.choice([1, 2]))
    if kind == "slice":
        return Function(lambda x: x[:, :, 1:, :-1] + 0.0)
    return nn.ReLU()


def _normalisation(channels: int) -> nn.Module:
    layer = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias, layer.running_mean):
            assert parameter is not None
            parameter.normal_()
        assert layer.running_var is not None
        layer.running_var.uniform_(0.3, 2)
    return layer.eval()
