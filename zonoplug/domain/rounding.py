"""Outward rounding: error terms that make a zonotope hold for what the machine computes, not only for real numbers.

    with rounding("outward"):
        ...                             # zonotopes made here cover the rounding of their own arithmetic
    with rounding("inference"):
        ...                             # and that of the network's evaluation in the same precision

Errors go to the box. With unit roundoff u and gamma(m) = m u / (1 - m u), a sum of m products computed in any order,
with or without fused multiply-add, is off by at most gamma(m) times the sum of absolute products. So for an affine
map of a zonotope with k symbols one extra product with |A| covers all k + 1 columns:

    box >= |A| box + gamma(m + 4) (|A| (|c| + sum_j |g_j| + box) + |b|)

Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1. Underflow is covered by a few times the
smallest normal number, so flushing subnormals to zero is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor

Rounding = Literal["nearest", "outward", "inference"]
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "outward", "inference")

_mode: ContextVar[Rounding] = ContextVar("zonoplug_rounding", default="nearest")


@contextmanager
def rounding(mode: Rounding) -> Iterator[None]:
    """Zonotope arithmetic inside covers: nothing; its own rounding; its own and that of the network's evaluation.

    On CUDA, TF32, accumulation in reduced precision and cuDNN's transform-based convolutions, whose errors the formula
    does not bound, are off inside.
    """
    token = _mode.set(mode)
    try:
        if mode == "nearest" or not torch.cuda.is_available():
            yield
        else:
            with _plain_cuda():
                yield
    finally:
        _mode.reset(token)


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


def gamma(terms: int, dtype: torch.dtype) -> float:
    """m u / (1 - m u): the relative error of a sum of m products; infinite where m u >= 1."""
    product = terms * torch.finfo(dtype).eps / 2
    return product / (1 - product) if product < 1 else float("inf")


def affine_error(spread: Tensor, offset: Tensor | None, terms: int, symbols: int) -> Tensor:
    """What an affine map's rounding may add to the box: the shape of `spread`.

    Args:
        spread: |A| (|c| + sum_j |g_j| + box) as computed, (batch, *shape).
        offset: b, broadcasts against spread.
        terms: products summed for one output coordinate, at most.
        symbols: k.
    """
    passes = 2 if _mode.get() == "inference" else 1
    magnitude = spread if offset is None else spread + offset.abs()
    underflow = (terms + 1) * (symbols + 2) * torch.finfo(spread.dtype).tiny
    return magnitude * (1.01 * passes * gamma(terms + 4, spread.dtype)) + passes * underflow


def sum_up(total: Tensor, terms: int) -> Tensor:
    """A sum of `terms` non-negative numbers, made too large rather than too small while rounding is covered."""
    if not active():
        return total
    return total * (1 + 1.01 * gamma(terms + 2, total.dtype))


def up(x: Tensor) -> Tensor:
    """The next larger number while rounding is covered."""
    return torch.nextafter(x, torch.full_like(x, torch.inf)) if active() else x


def down(x: Tensor) -> Tensor:
    """The next smaller number while rounding is covered."""
    return torch.nextafter(x, torch.full_like(x, -torch.inf)) if active() else x


def relaxation_error(slope: Tensor, offset: Tensor, radius: Tensor, largest: Tensor) -> Tensor:
    """What the rounding of a relaxation's own parameters may amount to.

    Args:
        slope, offset, radius: the relaxation.
        largest: max(|lower|, |upper|) of its interval.
    """
    magnitude = offset.abs() + radius + slope.abs() * largest
    passes = 2 if _mode.get() == "inference" else 1
    return magnitude * (8 * passes * torch.finfo(slope.dtype).eps)
