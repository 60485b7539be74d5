"""The one-page table: host operator -> transformer.

Each entry gets a `Call`: the host's node, the values of its inputs (zonotopes, or tensors where nothing is perturbed),
and the propagation under way. Third parties add entries with `@transforms(HostClass)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from zonoplug.domain.linear_maps import SignedMap, convolution, row_by_row
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.relaxations import absolute, leaky_relu, relu, sigmoid, tanh
from zonoplug.relaxations.base import RelaxationRule
from zonoplug.transformers import affine
from zonoplug.transformers.affine import Operand
from zonoplug.transformers.elementwise import relax

Kind = Literal["exact", "relaxation", "composition"]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One operator during one propagation.

    Attributes:
        node: the host's node, with its attributes.
        operands: values of its inputs; at least one is a zonotope.
        source: gives ids to fresh symbols.
        hulls: bounds of the operands' coordinates, None for constants; filled for non-exact operators only.
    """

    node: Any
    operands: Sequence[Operand]
    source: SymbolSource
    hulls: Sequence[Interval | None] = ()

    @property
    def zonotope(self) -> Zonotope:
        """The first operand, which must be the only perturbed one."""
        first, *rest = self.operands
        if not isinstance(first, Zonotope) or any(isinstance(other, Zonotope) for other in rest):
            raise NotApplicableError
        return first

    @property
    def constants(self) -> list[Tensor]:
        """All operands but the first."""
        return [operand for operand in self.operands[1:] if isinstance(operand, Tensor)]


class NotApplicableError(Exception):
    """Raised by a transformer that does not cover this use of its operator; the fallback takes over."""


Transformer = Callable[[Call], Zonotope]
F = TypeVar("F", bound=Transformer)


@dataclass(frozen=True, slots=True)
class Entry:
    """A transformer and what it gives: an exact image, a linear relaxation, or a composition of others."""

    transformer: Transformer
    kind: Kind


TRANSFORMERS: dict[str, Entry] = {}


def transforms(*host_classes: str | type, kind: Kind = "exact") -> Callable[[F], F]:
    """Decorator that files a transformer under host operator classes (or their names).

    A third party's subclass of a listed class uses the same transformer unless it has its own.
    """

    def file(transformer: F) -> F:
        for host_class in host_classes:
            name = host_class if isinstance(host_class, str) else host_class.__name__
            TRANSFORMERS[name] = Entry(transformer, kind)
        return transformer

    return file


def entry_for(node: Any) -> Entry | None:
    """The table's entry for a host node, or None.

    A class from outside the host may inherit its parent's entry; the host's own classes may not, since the host
    derives operators from one another that compute something else (its tan is a subclass of its tanh).
    """
    for host_class in type(node).__mro__:
        if host_class.__name__ in TRANSFORMERS:
            return TRANSFORMERS[host_class.__name__]
        if host_class.__module__.startswith("auto_LiRPA."):
            return None
    return None


def refuse(node: Any, operands: Sequence[Operand]) -> UnsupportedOperatorError:
    """The error for a node that nothing covers."""
    inputs = ", ".join(
        f"Zonotope {tuple(o.center.shape)} with {o.num_symbols} symbols" if isinstance(o, Zonotope)
        else f"Tensor {tuple(o.shape)}" for o in operands)
    kind = type(node).__name__
    return UnsupportedOperatorError(
        f"No transformer for {kind} (node {node.name!r}, inputs: {inputs})."
        f' Register one with @transforms({kind}), or allow fallback="interval".')


# Exact ---------------------------------------------------------------------------------------------------------------


@transforms("BoundLinear")
def _linear(call: Call) -> Zonotope:
    attributes = call.node.attr or {}
    weight, *bias = call.constants
    if attributes.get("transA"):
        raise NotApplicableError
    weight = (weight if attributes.get("transB") else weight.T) * attributes.get("alpha", 1.0)
    offset = bias[0] * attributes.get("beta", 1.0) if bias else None
    return affine.matrix(call.zonotope, weight, offset)


@transforms("BoundMatMul")
def _matmul(call: Call) -> Zonotope:
    left, right = call.operands
    if isinstance(left, Zonotope) and isinstance(right, Tensor):
        return affine.constant_product(left, right, constant_first=False)
    if isinstance(right, Zonotope) and isinstance(left, Tensor):
        return affine.constant_product(right, left, constant_first=True)
    raise NotApplicableError


@transforms("BoundConv")
def _convolution(call: Call) -> Zonotope:
    attributes = call.node.attr
    weight, *bias = call.constants
    rank = weight.dim() - 2
    begin, end = attributes["pads"][:rank], attributes["pads"][rank:]
    zonotope = call.zonotope
    if list(begin) != list(end):
        margins = [margin for pair in zip(reversed(begin), reversed(end), strict=True) for margin in pair]
        zonotope = affine.rearrange(zonotope, lambda x: functional.pad(x, margins))
        begin = [0] * rank
    linear = convolution(weight, attributes["strides"], begin, attributes["dilations"], attributes["group"])
    return zonotope.map(linear, bias[0].reshape(-1, *[1] * rank) if bias else None)


@transforms("BoundConvTranspose")
def _transposed_convolution(call: Call) -> Zonotope:
    attributes = call.node.attr
    weight, *bias = call.constants
    rank = weight.dim() - 2
    begin, end = attributes["pads"][:rank], attributes["pads"][rank:]
    if list(begin) != list(end) or rank > 2:
        raise NotApplicableError
    operator = functional.conv_transpose2d if rank == 2 else functional.conv_transpose1d
    extra = attributes.get("output_padding") or [0] * rank
    linear = SignedMap(
        lambda x, w: operator(x, w, None, attributes["strides"], begin, extra, attributes["group"],
                              attributes["dilations"]), weight)
    return call.zonotope.map(linear, bias[0].reshape(-1, *[1] * rank) if bias else None)


@transforms("BoundBatchNormalization")
def _batch_normalization(call: Call) -> Zonotope:
    weight, bias, mean, variance = call.constants
    factor = weight / torch.sqrt(variance + call.node.eps)
    shape = (1, -1, *[1] * (len(call.zonotope.shape) - 1))
    return call.zonotope.scale(factor.reshape(shape), (bias - mean * factor).reshape(shape))


@transforms("BoundAdd")
def _add(call: Call) -> Zonotope:
    return affine.add(*call.operands)


@transforms("BoundSub")
def _subtract(call: Call) -> Zonotope:
    left, right = call.operands
    return affine.add(left, affine.negate(right))


@transforms("BoundNeg")
def _negate(call: Call) -> Zonotope:
    result = affine.negate(call.zonotope)
    assert isinstance(result, Zonotope)
    return result


@transforms("BoundMul")
def _multiply(call: Call) -> Zonotope:
    left, right = call.operands
    if isinstance(left, Zonotope) and isinstance(right, Tensor):
        return affine.multiply(left, right)
    if isinstance(right, Zonotope) and isinstance(left, Tensor):
        return affine.multiply(right, left)
    raise NotApplicableError


@transforms("BoundDiv")
def _divide(call: Call) -> Zonotope:
    (divisor,) = call.constants
    return affine.multiply(call.zonotope, 1 / divisor)


@transforms("BoundReshape", "BoundFlatten", "BoundSqueeze", "BoundUnsqueeze", "BoundATenUnflatten")
def _reshape(call: Call) -> Zonotope:
    example = _forward(call)(call.zonotope.center[:1])
    if example.shape[0] != 1:
        raise NotApplicableError
    return call.zonotope.reshape(tuple(example.shape[1:]))


@transforms("BoundTranspose", "BoundSlice", "BoundSplit", "BoundGather", "BoundExpand", "BoundAveragePool",
            "BoundGlobalAveragePool", "BoundReduceMean", "BoundReduceSum", "BoundTile")
def _rearrange(call: Call) -> Zonotope:
    return affine.rearrange(call.zonotope, row_by_row(_forward(call)))


@transforms("BoundPad")
def _pad(call: Call) -> Zonotope:
    forward = row_by_row(_forward(call))
    padding = forward(torch.zeros_like(call.zonotope.center[:1]))
    padded = affine.rearrange(call.zonotope, lambda x: forward(x) - padding)
    return affine.add(padded, padding)


@transforms("BoundConcat")
def _concatenate(call: Call) -> Zonotope:
    operands = [_with_batch(operand) for operand in call.operands]
    rank = next(o.center.dim() for o in operands if isinstance(o, Zonotope))
    axis = call.node.axis % rank
    if axis == 0:
        raise NotApplicableError
    return affine.concatenate(operands, axis)


@transforms("BoundIdentity", "BoundDropout", "BoundCast")
def _identity(call: Call) -> Zonotope:
    return call.zonotope


def _forward(call: Call) -> Callable[[Tensor], Tensor]:
    """The host's own forward as a function of the perturbed operand."""
    return lambda x: call.node.forward(x, *call.constants)


def _with_batch(operand: Operand) -> Operand:
    return operand if isinstance(operand, Zonotope) or operand.dim() else operand.reshape(1)


# Relaxations ---------------------------------------------------------------------------------------------------------


def _elementwise(rule: RelaxationRule, call: Call) -> Zonotope:
    (hull, *_) = call.hulls
    assert hull is not None
    return relax(call.zonotope, rule, hull, call.source, call.node.name)


for _name, _rule in {"BoundRelu": relu, "BoundSigmoid": sigmoid, "BoundTanh": tanh, "BoundAbs": absolute}.items():
    TRANSFORMERS[_name] = Entry(partial(_elementwise, _rule), "relaxation")


@transforms("BoundLeakyRelu", kind="relaxation")
def _leaky_relu(call: Call) -> Zonotope:
    negative_slope = float((call.node.attr or {}).get("alpha", 0.01))
    return _elementwise(partial(leaky_relu, negative_slope=negative_slope), call)
