"""Host perturbation <-> input set.

Only a box becomes one of the host's own perturbations. The host's `PerturbationLpNorm` with a finite norm is no
equivalent of an `LpBall`: its interval bounds take lower = upper = center wherever the first operator is not a linear
layer or a convolution, so they (and CROWN bounds that start from them) miss points. Every other set goes through
`InputSetPerturbation`, which knows its interval hull and its zonotope.
"""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.blocks import DenseBlock, DiagonalBlock, GeneratorBlock, dual_norm
from zonoplug.domain.input_sets import Box, InputSet
from zonoplug.domain.lp_ball import LpBall
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Zonotope
from zonoplug.errors import HostError, SettingError
from zonoplug.lirpa.compat import IS_0_3, BoundedTensor, PerturbationLpNorm
from zonoplug.transformers.affine import specification


class InputSetPerturbation(PerturbationLpNorm):  # type: ignore[misc]
    """Any input set as a host perturbation: IBP bounds over its hull, CROWN and forward bounds over its zonotope.

    The host sees an l-infinity perturbation with the hull as its limits. Coefficients A of the input are concretized to

        A c -/+ (sum of the blocks' dual norms of A g_j + |A| box)

    Args:
        value: the set, (batch, *shape).
    """

    def __init__(self, value: InputSet) -> None:
        hull = value.interval_hull()
        super().__init__(norm=torch.inf, x_L=hull.lower, x_U=hull.upper)
        self.input_set = value
        self.zonotope = value.to_zonotope(SymbolSource(), "input")

    def init(self, x: Tensor, aux: Any = None, forward: bool = False) -> Any:
        """The host's starting bounds: the hull, and for forward methods the identity besides."""
        bound, center, aux = super().init(x, aux, forward=False)
        if forward:
            count = x[0].numel()
            eye = torch.eye(count).to(x).expand(x.shape[0], count, count)
            bound.lw = bound.uw = eye.reshape(x.shape[0], count, *x.shape[1:])
            bound.lb = bound.ub = torch.zeros_like(x)
        return bound, center, aux

    def concretize(self, x: Tensor, A: Any, sign: int = -1, *args: Any, **kwargs: Any) -> Any:
        """The least (sign -1) or largest (sign +1) value of A x over the set.

        Args:
            x: (batch, *shape); its values are not read.
            A: (batch, rows, n), or the host's forms of an identity and of patches.
        Returns:
            (batch, rows), or in the host's shape for patches.
        """
        if A is None:
            return None
        patches = hasattr(A, "patches")
        if isinstance(A, Tensor):
            zonotope = _cast(self.zonotope, A)
            if A.shape[0] != zonotope.batch:
                raise HostError(
                    f"The host asks for bounds of {A.shape[0]} elements over an input set of {zonotope.batch}. Turn off"
                    " what prunes its batch (pruning_in_iteration)."
                )
            image = specification(zonotope, A.reshape(A.shape[0], A.shape[1], -1))
            return image.center + sign * image.radius()
        if not patches or A.identity:
            zonotope = _cast(self.zonotope, x)
            bound = zonotope.center + sign * zonotope.radius()
            return bound if patches and IS_0_3 else bound.flatten(1)
        zonotope = _cast(self.zonotope, A.patches)
        bound = A.matmul(zonotope.center) + sign * _patches_radius(A, zonotope)
        return bound if IS_0_3 else bound.flatten(1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.input_set).__name__})"


def _cast(zonotope: Zonotope, like: Tensor) -> Zonotope:
    """The zonotope in another type, on another device; the box covers the change of type."""
    if zonotope.center.dtype == like.dtype and zonotope.center.device == like.device:
        return zonotope

    def cast(block: GeneratorBlock) -> GeneratorBlock:
        if isinstance(block, DiagonalBlock):
            values, index = block.values.to(like), block.index.to(like.device)
            return DiagonalBlock(block.symbols, values, index, block.coordinates, block.norm)
        return DenseBlock(block.symbols, block.dense().to(like), block.norm)

    box = None if zonotope.box is None else zonotope.box.to(like)
    changed = Zonotope(zonotope.center.to(like), tuple(cast(block) for block in zonotope.blocks), box)
    if torch.finfo(like.dtype).eps <= torch.finfo(zonotope.center.dtype).eps:
        return changed
    return changed.widen(2 * torch.finfo(like.dtype).eps * (changed.center.abs() + changed.radius()))


def _patches_radius(A: Any, zonotope: Zonotope) -> Tensor:
    """How far A x moves over a zonotope of images, for the host's patches A; in the shape of the host's product."""
    radius: Tensor = A.matmul(zonotope.center).new_zeros(())
    if zonotope.box is not None:
        radius = radius + A.matmul(zonotope.box, patch_abs=True)
    for block in zonotope.blocks:
        if isinstance(block, DiagonalBlock) and block.norm == inf:
            radius = radius + A.matmul(block.radius(), patch_abs=True)
        elif isinstance(block, DiagonalBlock):
            radius = radius + block.contract(_matrix(A, zonotope)).radius().reshape_as(A.matmul(zonotope.center))
        else:
            products = [A.matmul(generator) for generator in block.dense().unbind(dim=1)]
            radius = radius + dual_norm(torch.stack(products, dim=1), block.norm)
    return radius


def _matrix(A: Any, zonotope: Zonotope) -> Tensor:
    """Patches written out, (batch, rows, n)."""
    try:
        matrix: Tensor = A.to_matrix(zonotope.center.shape)
    except AssertionError as error:
        raise HostError(
            "The host cannot write these patches out as a matrix, as a unit ball needs it."
            ' Build the module with bound_opts={"conv_mode": "matrix"}.'
        ) from error
    return matrix.flatten(2)


def bounded_input(value: InputSet) -> Any:
    """The host's bounded tensor for an input set, (batch, *shape)."""
    if isinstance(value, Box):
        center = value.lower + (value.upper - value.lower) / 2
        return BoundedTensor(center, PerturbationLpNorm(norm=torch.inf, x_L=value.lower, x_U=value.upper))
    perturbation = InputSetPerturbation(value)
    return BoundedTensor(perturbation.zonotope.center, perturbation)


def input_set(value: Tensor) -> InputSet | None:
    """The input set of a host's bounded tensor; None for a plain tensor.

    Raises:
        SettingError: a perturbation other than an lp norm or one of `bounded_input`.
    """
    perturbation = getattr(value, "ptb", None)
    if perturbation is None:
        return None
    if isinstance(perturbation, InputSetPerturbation):
        known: InputSet = perturbation.input_set
        return known
    if not isinstance(perturbation, PerturbationLpNorm) or not perturbation.norm >= 1:
        raise SettingError(f"Zonotope methods take perturbations by an lp norm, and any InputSet; got {perturbation}.")
    center = torch.Tensor(value.data)
    if perturbation.norm != torch.inf:
        return LpBall(center, perturbation.eps, float(perturbation.norm))
    lower = center - perturbation.eps if perturbation.x_L is None else perturbation.x_L
    upper = center + perturbation.eps if perturbation.x_U is None else perturbation.x_U
    return Box(lower.expand_as(center), upper.expand_as(center))
