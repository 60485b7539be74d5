"""The one policy for rounding: bounds that hold for what machines compute, not only for real numbers.

    with rounding("outward"):
        ...                             # zonotopes made here cover the rounding of their own arithmetic
    with rounding("inference"):
        ...                             # and that of the network's evaluation in the same precision

In the second mode a zonotope holds the *computed* values of a node: what any evaluation of the network in its own
number type may give there, and what the real function gives. Each operator adds the error of its own evaluation, a
local error, to what its computed operands make of it. With unit roundoff u and gamma(m) = m u / (1 - m u), a sum of m
products computed in any order, with or without fused multiply-add, is off by at most gamma(m) times the sum of absolute
products. So for an affine map of a zonotope with k symbols one extra product with |A| covers all k + 1 columns:

    box >= |A| box + gamma(m + 16) (|A| (|c| + sum_j |g_j| + box) + |b|)

where 16 is for what a runtime may fold into weights and biases. Carried on as a box, an error would grow by |A| in
every layer, whatever its sign does. With `named`, boxes get noise symbols, so that errors cancel as other symbols do:
at the next relaxation, joined with the symbol that it makes anyway, and at bottlenecks, where coordinates are few.

Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1. Underflow is covered by a few times the
smallest normal number, so flushing subnormals to zero is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Rounding = Literal["nearest", "outward", "inference"]
FOLDED = 16  # further roundings of a product, where normalisations and factors were folded into its weight
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "outward", "inference")

_mode: ContextVar[Rounding] = ContextVar("zonoplug_rounding", default="nearest")
_named: ContextVar[bool] = ContextVar("zonoplug_named_rounding", default=False)


class Accuracy(NamedTuple):
    """How well a function is evaluated:  |computed f(x) - f(x)|  <=  u (relative |f(x)| + absolute + operand |x|)."""

    relative: float = 0.0
    absolute: float = 0.0
    operand: float = 0.0


EXACT = Accuracy()
_accuracy: ContextVar[Accuracy] = ContextVar("zonoplug_accuracy", default=EXACT)


@contextmanager
def rounding(mode: Rounding, named: bool = False) -> Iterator[None]:
    """Zonotope arithmetic inside covers: nothing; its own rounding; its own and that of the network's evaluation.

    Args:
        named: whether what is in the box gets symbols.

    On CUDA, TF32, accumulation in reduced precision and cuDNN's transform-based convolutions, whose errors the formula
    does not bound, are off inside.
    """
    token, second = _mode.set(mode), _named.set(named)
    try:
        if mode == "nearest" or not torch.cuda.is_available():
            yield
        else:
            with _plain_cuda():
                yield
    finally:
        _mode.reset(token)
        _named.reset(second)


@contextmanager
def evaluating(accuracy: Accuracy) -> Iterator[None]:
    """Relaxations inside are of a function that the network evaluates so well."""
    token = _accuracy.set(accuracy)
    try:
        yield
    finally:
        _accuracy.reset(token)


# What loosens CUDA's arithmetic beyond the formula's, and the setting under which it does not.
_PLAIN_CUDA: tuple[tuple[Any, str, bool], ...] = (
    (torch.backends.cuda.matmul, "allow_tf32", False),
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
    (torch.backends.cudnn, "allow_tf32", False),
    (torch.backends.cudnn, "enabled", False),
)


@contextmanager
def _plain_cuda() -> Iterator[None]:
    before = [getattr(place, name) for place, name, _ in _PLAIN_CUDA]
    try:
        for place, name, value in _PLAIN_CUDA:
            setattr(place, name, value)
        yield
    finally:
        for (place, name, _), value in zip(_PLAIN_CUDA, before, strict=True):
            setattr(place, name, value)


def active() -> bool:
    """Whether rounding errors are to be covered."""
    return _mode.get() != "nearest"


def covers_inference() -> bool:
    """Whether the rounding of the network's evaluation is to be covered."""
    return _mode.get() == "inference"


def names_boxes() -> bool:
    """Whether what is in the box gets symbols."""
    return _named.get() and active()


def unit(dtype: torch.dtype) -> float:
    """u, half a unit in the last place of 1."""
    return torch.finfo(dtype).eps / 2


def gamma(terms: int, dtype: torch.dtype) -> float:
    """m u / (1 - m u): the relative error of a sum of m products; infinite where m u >= 1."""
    product = terms * torch.finfo(dtype).eps / 2
    return product / (1 - product) if product < 1 else float("inf")


def gammas(terms: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same for counts in a tensor, for sums in its type or another; a little more, for its own rounding."""
    product = terms * (1.001 * unit(dtype or terms.dtype))
    return torch.where(product < 1, product / (1 - product), torch.inf)


def affine_error(spread: Tensor, offset: Tensor | None, terms: int | Tensor, symbols: int) -> Tensor:
    """What an affine map's rounding may add to the box: the shape of `spread`.

    Args:
        spread: |A| (|c| + sum_j |g_j| + box) as computed, (batch, *shape).
        offset: b, broadcasts against spread.
        terms: products that are not 0 and summed for one output coordinate, at most; or their count for each.
        symbols: k.
    """
    passes = 2 if _mode.get() == "inference" else 1
    magnitude = spread if offset is None else spread + offset.abs()
    underflow = (terms + 1) * ((symbols + 2) * torch.finfo(spread.dtype).tiny)
    growth = gammas(terms + FOLDED) if isinstance(terms, Tensor) else gamma(terms + FOLDED, spread.dtype)
    return overflowing(magnitude, magnitude * (1.01 * passes * growth) + passes * underflow)


def sum_up(total: Tensor, terms: int) -> Tensor:
    """A sum of `terms` non-negative numbers, made too large rather than too small while rounding is covered."""
    if not active():
        return total
    return total * (1 + 1.01 * gamma(terms + 2, total.dtype))


def up(x: Tensor) -> Tensor:
    """The next larger number while rounding is covered."""
    return _next(x, torch.inf) if active() else x


def _next(x: Tensor, end: float) -> Tensor:
    """The neighbour of x on the way to `end`; for autograd the same as x."""
    neighbour = torch.nextafter(x.detach(), torch.full_like(x, end))
    return neighbour if not x.requires_grad else x + (neighbour - x.detach())


def down(x: Tensor) -> Tensor:
    """The next smaller number while rounding is covered."""
    return _next(x, -torch.inf) if active() else x


def relaxation_error(slope: Tensor, offset: Tensor, radius: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """What the rounding of a relaxation's own parameters may amount to, and that of the function's evaluation.

    Args:
        slope, offset, radius: the relaxation.
        largest: max(|lower|, |upper|) of its interval.
    """
    magnitude = offset.abs() + radius + slope.abs() * largest
    return own_error(magnitude), evaluation_error(magnitude, largest)


def own_error(magnitude: Tensor) -> Tensor:
    """What the rounding of a few steps here may amount to, whose terms add up to `magnitude`."""
    return units(magnitude, 16)


def evaluation_error(image: Tensor, operand: Tensor) -> Tensor:
    """What the network's evaluation of the current function may add, for |f(x)| <= image and |x| <= operand."""
    accuracy = _accuracy.get()
    if accuracy == EXACT or not covers_inference():
        return torch.zeros_like(image)
    return function_error(accuracy, image, operand)


def function_error(
    accuracy: Accuracy, image: Tensor, operand: Tensor | float, dtype: torch.dtype | None = None
) -> Tensor:
    """What the evaluation of a function may add, for |f(x)| <= image and |x| <= operand; infinite where it overflows.

    Args:
        dtype: in which the function is evaluated; that of `image` by default.
    """
    total = image * accuracy.relative + accuracy.absolute + operand * accuracy.operand
    error = units(total, 1.01, dtype) + 4 * torch.finfo(dtype or image.dtype).tiny
    return overflowing(image, error, dtype)


def units(size: Tensor, count: float, dtype: torch.dtype | None = None) -> Tensor:
    """So many units of the last place of numbers of that size, in their type or another."""
    return size * (count * unit(dtype or size.dtype))


def overflowing(size: Tensor, error: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An error; infinite where values of that size, or sums on the way to them, may leave the type."""
    return error.masked_fill(~(size < torch.finfo(dtype or size.dtype).max / 4), torch.inf)
