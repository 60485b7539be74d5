"""ONNX operators that compute, as torch modules that trace to operators which every bound method knows.

As real functions they are exactly what the file says. Where one form cancels large numbers and another does not, the
form is chosen by the constants.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

CANCELLING = 256.0  # limits beyond this, on the far side of x, would cost x its last digits


class AlongAxes(nn.Module):
    """A product with one constant matrix (new size, size) along each of some axes; a row of one 1 picks a place."""

    def __init__(self, matrices: dict[int, Tensor]) -> None:
        super().__init__()
        self.axes = sorted(matrices)
        self.picks: list[int] = []
        for axis, matrix in matrices.items():
            if bool(((matrix == 1).sum(1) == 1).all() & ((matrix != 0).sum(1) == 1).all()):
                self.picks.append(axis)
                self.register_buffer(f"places_{axis}", matrix.argmax(1))
            else:
                self.register_buffer(f"matrix_{axis}", matrix.T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        for axis in self.axes:
            if axis in self.picks:
                x = torch.index_select(x, axis, self.get_buffer(f"places_{axis}"))
            elif axis == x.dim() - 1:
                x = torch.matmul(x, self.get_buffer(f"matrix_{axis}"))
            else:
                x = torch.matmul(x.transpose(axis, -1), self.get_buffer(f"matrix_{axis}")).transpose(axis, -1)
        return x


class WindowMax(nn.Module):
    """The largest value of every window, axis by axis; `places` (windows, taps) per axis, all inside."""

    def __init__(self, places: dict[int, Tensor]) -> None:
        super().__init__()
        self.sizes = {axis: list(array.shape) for axis, array in places.items()}
        for axis, array in places.items():
            self.register_buffer(f"places_{axis}", array.reshape(-1))

    def forward(self, x: Tensor) -> Tensor:
        for axis, sizes in self.sizes.items():
            taken = torch.index_select(x, axis, self.get_buffer(f"places_{axis}"))
            windows = taken.reshape([-1, *taken.shape[1:axis], *sizes, *taken.shape[axis + 1 :]])
            x = torch.amax(windows, axis + 1)
        return x


class Largest(nn.Module):
    """Elementwise maximum (or minimum) as max(x, y) = x + relu(y - x), which every bound method knows."""

    def __init__(self, smallest: bool = False) -> None:
        super().__init__()
        self.smallest = smallest

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        for y in others:
            x = x - torch.relu(x - y) if self.smallest else x + torch.relu(y - x)
        return x


class Limited(nn.Module):
    """max(x, low) or min(x, high) with a constant, as one relu.

    max(x, c) is c + relu(x - c), whose interval is exact, and x + relu(c - x), which leaves x as it is where c is far
    below. The first cancels if c is negative and large beside x, so the second is taken for such constants.

    Args:
        limit: broadcast against x, which keeps its shape.
    """

    limit: Tensor

    def __init__(self, limit: Tensor, smallest: bool) -> None:
        super().__init__()
        self.smallest = smallest
        self.is_zero = bool((limit == 0).all())
        away = -limit if smallest else limit
        self.keeps_x = bool((away < -CANCELLING).any())
        self.register_buffer("limit", limit)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_zero:
            return -torch.relu(-x) if self.smallest else torch.relu(x)
        if self.smallest:
            return x - torch.relu(x - self.limit) if self.keeps_x else self.limit - torch.relu(self.limit - x)
        return x + torch.relu(self.limit - x) if self.keeps_x else self.limit + torch.relu(x - self.limit)


class Clip(nn.Module):
    """min(max(x, low), high) with constant bounds, in the forms of `Limited`; None for no bound."""

    def __init__(self, low: float | None, high: float | None) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        if self.low is not None:
            low = self.low
            if low == 0:
                x = torch.relu(x)
            else:
                x = x + torch.relu(low - x) if low < -CANCELLING else torch.relu(x - low) + low
        if self.high is not None:
            high = self.high
            x = x - torch.relu(x - high) if high > CANCELLING else high - torch.relu(high - x)
        return x


class Reduce(nn.Module):
    """A reduction along constant axes: Sum, Mean, Max, Min, Prod, L1, L2, LogSum, LogSumExp or SumSquare."""

    def __init__(self, kind: str, axes: Sequence[int], keepdim: bool) -> None:
        super().__init__()
        self.kind, self.axes, self.keepdim = kind, list(axes), keepdim

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "Prod":
            for axis in sorted(self.axes, reverse=True):
                x = torch.prod(x, axis, self.keepdim)
            return x
        if self.kind in ("L1", "L2"):
            norm: Tensor = torch.norm(x, p=int(self.kind[1]), dim=self.axes, keepdim=self.keepdim)
            return norm
        if self.kind == "LogSumExp":
            return torch.logsumexp(x, self.axes, self.keepdim)
        if self.kind in ("LogSum", "SumSquare"):
            total = torch.sum(x * x if self.kind == "SumSquare" else x, self.axes, self.keepdim)
            return total if self.kind == "SumSquare" else torch.log(total)
        function = {"Sum": torch.sum, "Mean": torch.mean, "Max": torch.amax, "Min": torch.amin}[self.kind]
        result: Tensor = function(x, self.axes, self.keepdim)  # type: ignore[operator]
        return result


class Product(nn.Module):
    """alpha A B + beta C, of matrices any of which may be computed; either may be transposed."""

    def __init__(self, alpha: float, beta: float, turned: tuple[bool, bool]) -> None:
        super().__init__()
        self.alpha, self.beta, self.turned = alpha, beta, turned

    def forward(self, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = torch.matmul(a.T if self.turned[0] else a, b.T if self.turned[1] else b)
        product = product if self.alpha == 1 else product * self.alpha
        if c is None:
            return product
        return product + (c if self.beta == 1 else c * self.beta)


class ParametricRelu(nn.Module):
    """relu(x) - slope * relu(-x), with a slope that is broadcast as numpy does it."""

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        channels = x.dim() > 1 and slope.dim() in (x.dim() - 1, x.dim()) and slope.numel() == x.shape[1]
        if slope.numel() == 1 or (channels and slope.shape[slope.dim() - x.dim() + 1] == x.shape[1]):
            return functional.prelu(x, slope.reshape(-1))
        return torch.relu(x) - slope * torch.relu(-x)


class ScaledElu(nn.Module):
    """gamma * elu(x, alpha)."""

    def __init__(self, alpha: float, gamma: float) -> None:
        super().__init__()
        self.alpha, self.gamma = alpha, gamma

    def forward(self, x: Tensor) -> Tensor:
        return functional.elu(x, self.alpha) * self.gamma


class Cast(nn.Module):
    """To a number type; where that is the network's own, it follows the network into another precision."""

    def __init__(self, target: torch.dtype, is_own: bool) -> None:
        super().__init__()
        self.target, self.is_own = target, is_own

    def follow(self, dtype: torch.dtype) -> None:
        """The network computes in `dtype` from now on."""
        if self.is_own:
            self.target = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.target)


class Quotient(nn.Module):
    """x / y, as a product unless y is a constant whose reciprocal is not exact."""

    def __init__(self, divisor: Tensor | None) -> None:
        super().__init__()
        self.factor: Tensor | None
        self.divisor: Tensor | None
        exact = divisor is not None and bool((torch.frexp(divisor)[0].abs() == 0.5).all())
        self.register_buffer("factor", 1 / divisor if divisor is not None and exact else None)
        self.register_buffer("divisor", divisor if divisor is not None and not exact else None)

    def forward(self, x: Tensor, *divisor: Tensor) -> Tensor:
        if self.divisor is not None:
            return x / self.divisor
        return x * (torch.reciprocal(divisor[0]) if self.factor is None else self.factor)


class Square(nn.Module):
    """x * x."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


class Power(nn.Module):
    """x to a constant power."""

    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, x: Tensor) -> Tensor:
        return torch.pow(x, self.exponent)
