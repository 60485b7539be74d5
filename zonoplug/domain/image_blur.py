"""Blur of bounded strength as an input set: a curved path of images in a zonotope, with the curvature enclosed.

A blurred pixel is  y_i = sum_k w_k(t) x_(i+k)  for a kernel w(t) that depends on the strength t. The kernels are
computed at many strengths, the nodes t_j; between two nodes a kernel differs from the straight line between theirs by
at most slack_k, from bounds of its second derivative. The node kernels are written as

    w(t_j) = c + sum_l a_jl d_l + rest_j,    |a_jl| <= 1,    few directions d_l, from a singular value decomposition.

So a blurred image lies in  c * x + sum_l e_l (d_l * x) +/- box  with

    box_i = max_j |(rest_j * x)_i| + sum_k slack_k |x_(i+k) - x_i|,

where the last term uses that kernels, and so their differences to lines, sum up to the same, and vanishes where the
image is flat. Pixels beyond the border repeat the border's. Everything is computed in float64; `MARGIN` covers its
rounding.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import ceil, cos, radians, sin
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zonoplug.domain.affine_image import AffineImage
from zonoplug.domain.image_perturbations import OneSetting, rounding_radius

MARGIN = 1e-12
NODES = 256
CHUNK = 32  # nodes whose residuals are computed at once


class KernelPath(NamedTuple):
    """Kernels on the way from no blur to the strongest.

    Attributes:
        kernels: (nodes, size, size), float64, each summing up to 1.
        slack: (size, size): how far a kernel between two nodes is from the line between theirs, at most.
    """

    kernels: Tensor
    slack: Tensor


class _Blur(OneSetting):
    """A convolution with a kernel that one setting chooses."""

    symbols: int

    @abstractmethod
    def kernels(self, strengths: Tensor) -> Tensor:
        """The kernel of each strength (m,), from 0 to `strength`, all in one window: (m, size, size)."""

    @abstractmethod
    def path(self) -> KernelPath:
        """The kernels of all strengths that are meant, and how far the line between neighbours is off."""

    def raw(self, images: Tensor, settings: Tensor) -> Tensor:
        kernels = self.kernels(self.along(settings).cpu().double() * self.strength).to(images.device)
        pairs = zip(images.double().split(1), kernels.split(1), strict=True)
        return torch.cat([convolve(image, kernel)[:, 0] for image, kernel in pairs]).to(images.dtype)

    def raw_set(self, images: Tensor) -> AffineImage:
        path = KernelPath(*(part.to(images.device) for part in self.path()))
        center, directions, rest = decompose(path.kernels, self.symbols)
        exact = images.double()
        middle = convolve(exact, center[None])[:, 0]
        generators = convolve(exact, directions)
        box = torch.zeros_like(exact)
        for some in rest.split(CHUNK):
            box = torch.maximum(box, convolve(exact, some).abs().amax(dim=1))
        lit = convolve(exact, torch.ones_like(center)[None])[:, 0] > 0  # elsewhere all stays exactly 0
        box = box + spread(exact, path.slack) + MARGIN * lit
        middle, generators, box = (part.to(images.dtype) for part in (middle, generators, box))
        moved = (1 + generators.abs().sum(dim=1) + box) * lit
        return AffineImage(middle, generators, box + rounding_radius(middle, moved))


def convolve(images: Tensor, kernels: Tensor) -> Tensor:
    """(batch, m, channels, height, width): each channel with each of the kernels (m, size, size), size odd."""
    if not len(kernels):
        return images.unsqueeze(1)[:, :0]
    pad = kernels.shape[-1] // 2
    flat = functional.pad(images, (pad, pad, pad, pad), mode="replicate").flatten(0, 1).unsqueeze(1)
    result: Tensor = functional.conv2d(flat, kernels.unsqueeze(1)).unflatten(0, images.shape[:2])
    return result.transpose(1, 2)


def spread(images: Tensor, slack: Tensor) -> Tensor:
    """sum_k slack_k |x_(i+k) - x_i|, (batch, channels, height, width)."""
    pad = slack.shape[-1] // 2
    height, width = images.shape[2:]
    around = functional.pad(images, (pad, pad, pad, pad), mode="replicate")
    total = torch.zeros_like(images)
    for row, column in slack.nonzero().tolist():
        neighbour = around[:, :, row : row + height, column : column + width]
        total = total + slack[row, column] * (neighbour - images).abs()
    return total


def decompose(kernels: Tensor, symbols: int) -> tuple[Tensor, Tensor, Tensor]:
    """Write kernels (m, size, size) as  c + sum_l a_jl d_l + rest_j  with |a_jl| <= 1.

    Returns:
        c (size, size), d (at most symbols, size, size), rest (m, size, size).
    """
    flat = kernels.flatten(1)
    mean = flat.mean(dim=0)
    _, strengths, axes = torch.linalg.svd(flat - mean, full_matrices=False)
    axes = axes[:symbols][strengths[:symbols] > MARGIN]
    amounts = (flat - mean) @ axes.T
    low, high = amounts.amin(dim=0), amounts.amax(dim=0)
    center = mean + ((low + high) / 2) @ axes
    directions = axes * ((high - low) / 2).unsqueeze(1)
    shares = (2 * amounts - low - high) / (high - low)
    rest = flat - center - shares @ directions
    size = kernels.shape[1:]
    return center.reshape(size), directions.reshape(-1, *size), rest.reshape(-1, *size)


@dataclass(frozen=True, slots=True)
class GaussianBlur(_Blur):
    """Convolution with a gaussian of standard deviation s in [0, strength], within 3 * strength and normalised.

        w_k(s) = exp(-|k|^2 / (2 s^2)) / sum

    Attributes:
        strength: largest standard deviation, in pixels.
        symbols: directions that the path of kernels gets; the rest of it goes to the box.
        within: see `OneSetting`.
    """

    name: ClassVar[str] = "gaussian blur"
    unit: ClassVar[str] = "largest standard deviation in pixels"
    strength: float
    symbols: int = 5
    within: tuple[float, float] = (0.0, 1.0)

    def _squares(self) -> Tensor:
        """|k|^2 over the window, (size, size)."""
        steps = torch.arange(-self._reach(), self._reach() + 1, dtype=torch.float64)
        return steps[:, None] ** 2 + steps**2

    def _reach(self) -> int:
        return max(1, ceil(3 * self.strength))

    def kernels(self, strengths: Tensor) -> Tensor:
        return _gaussians(self._squares(), strengths**2)

    def path(self) -> KernelPath:
        """Nodes in v = s^2, and  |w''| <= w (|(q - M)^2 - V| / (4 v^4) + |q - M| / v^3)  with q = |k|^2.

        M and V are the mean and the variance of q under w. M and the mean of q^2 grow with v. Where q > M, w grows with
        v, where q < M it falls; there the change from node to node bounds the slack too, which is all that is needed up
        to v = 0.03, where w has hardly changed.
        """
        first, last = ((self.strength * place) ** 2 for place in self.within)
        still = min(max(first, 0.03), last)
        ratio = torch.linspace(0, 1, NODES, dtype=torch.float64)
        nodes = still * (last / still) ** ratio if still > 0 else torch.zeros(1, dtype=torch.float64)
        nodes[-1] = last
        nodes = torch.cat([nodes.new_tensor([first]), nodes])
        squares = self._squares()
        kernels = _gaussians(squares, nodes)
        change = (kernels[1:] - kernels[:-1]).abs()
        mean, second = ((kernels * power).sum(dim=(1, 2)) for power in (squares, squares**2))
        low, high = (ends.reshape(-1, 1, 1) for ends in (mean[:-1], mean[1:]))
        variance_high = second[1:].reshape(-1, 1, 1) - low**2
        variance_low = (second[:-1].reshape(-1, 1, 1) - high**2).clamp(min=0)
        below, above = (squares - high).abs(), (squares - low).abs()
        farthest = torch.maximum(below, above)
        between = (squares > low) & (squares < high)
        nearest = torch.minimum(below, above).masked_fill(between, 0)
        bend = torch.maximum(farthest**2 - variance_low, variance_high - nearest**2)
        start, end = nodes[:-1].reshape(-1, 1, 1), nodes[1:].reshape(-1, 1, 1)
        totals = torch.exp(-squares / (2 * start)).sum(dim=(1, 2), keepdim=True)
        largest = torch.maximum(kernels[1:], kernels[:-1])
        largest = torch.where(between, torch.exp(-squares / (2 * end)) / totals, largest)
        second_derivative = largest * (bend / (4 * start**4) + farthest / start**3)
        slack = (end - start) ** 2 / 8 * second_derivative
        slack = torch.where(between, slack, torch.fmin(slack, change))
        return KernelPath(kernels, slack.amax(dim=0) * (1 + 1e-9) + MARGIN)


def _gaussians(squares: Tensor, variances: Tensor) -> Tensor:
    """exp(-squares / (2 v)), normalised, for each variance v (m,); a single 1 for v = 0. Returns (m, size, size)."""
    weights = torch.exp(-squares / (2 * variances.reshape(-1, 1, 1)))
    weights = torch.where(squares == 0, torch.ones_like(weights), weights)
    return weights / weights.sum(dim=(1, 2), keepdim=True)


@dataclass(frozen=True, slots=True)
class MotionBlur(_Blur):
    """The mean over a straight move, half of it to each side; between pixels the image is bilinear.

        y(p) = 1 / (2 a) integral_(-a)^a x(p + r u) dr,    a = length / 2,    u the direction

    Attributes:
        strength: greatest length of the move, in pixels.
        angle: of the move, in degrees, counter-clockwise from the horizontal.
        symbols: directions that the path of kernels gets; the rest of it goes to the box.
        within: see `OneSetting`.
    """

    name: ClassVar[str] = "motion blur"
    unit: ClassVar[str] = "greatest length of the move in pixels"
    strength: float
    angle: float = 0.0
    symbols: int = 5
    within: tuple[float, float] = (0.0, 1.0)

    def kernels(self, strengths: Tensor) -> Tensor:
        return self._means(strengths / 2)

    def path(self) -> KernelPath:
        """Nodes in a, denser near 0, and  |w''| <= 2 L / a  where a kernel is not 0, with L = |u_x| + |u_y|.

        For the bilinear weight g along the move, which changes by at most L per pixel, the mean  w(a) = 1/a int_0^a g
        has w' = (g - w) / a  and  w'' = g' / a - 2 (g - w) / a^2,  and  |g - w| <= L a / 2.  So w changes by at most
        L / 2 per pixel, and is off a line over a step h by at most L h / 4, which is the better bound for the first
        step from 0.
        """
        first, last = ((self.strength * place / 2) ** 0.5 for place in self.within)
        nodes = torch.linspace(first, last, NODES, dtype=torch.float64) ** 2
        kernels = self._means(nodes)
        steepest = sum(abs(part) for part in self._direction())
        step = (nodes[1:] - nodes[:-1]).reshape(-1, 1, 1)
        slack = steepest * torch.fmin(step**2 / 4 / nodes[:-1].reshape(-1, 1, 1), step / 4)
        slack = (slack * (1 + 1e-9) + MARGIN) * ((kernels[1:] > 0) | (kernels[:-1] > 0))
        return KernelPath(kernels, slack.amax(dim=0))

    def _direction(self) -> tuple[float, float]:
        """Rows and columns per pixel of the move."""
        return -sin(radians(self.angle)), cos(radians(self.angle))

    def _means(self, halves: Tensor) -> Tensor:
        """The kernels for half lengths a (m,): Simpson's rule between the points where a factor bends, so exact."""
        reach = max(1, ceil(self.strength / 2))
        window = torch.arange(-reach, reach + 1, dtype=torch.float64)
        bends = [window.abs() / abs(part) for part in self._direction() if abs(part) > 1e-9]
        ends = torch.cat([torch.zeros(1, dtype=torch.float64), halves, *bends]).unique()
        ends = ends[ends <= halves.max()]
        points = torch.stack([ends[:-1], (ends[:-1] + ends[1:]) / 2, ends[1:]])

        def weights(r: Tensor) -> Tensor:
            down, right = ((1 - (r[..., None] * part - window).abs()).clamp(min=0) for part in self._direction())
            return down[..., :, None] * right[..., None, :]

        both = (weights(points) + weights(-points)) / 2
        pieces = (both[0] + 4 * both[1] + both[2]) * ((ends[1:] - ends[:-1]) / 6).reshape(-1, 1, 1)
        integrals = torch.cat([weights(ends[:1]) * 0, pieces.cumsum(dim=0)])
        chosen = integrals[torch.searchsorted(ends, halves)]
        means = chosen / halves.reshape(-1, 1, 1)
        return torch.where(halves.reshape(-1, 1, 1) > 0, means, weights(torch.zeros_like(halves)))
