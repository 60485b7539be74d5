"""A network on an input box, written in its inputs and in the outputs of the ReLUs that are unstable there.

    z  =  inputs . x  +  before . relu(z before)  +  constant  +/-  error

All that is linear on the box is multiplied out: stable ReLUs among it, convolutions, sums of branches. What is
left is small where few neurons are unstable, and the same for every architecture; bounds of many subdomains cost a few
products of matrices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.rounding import gamma
from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.backward.triangle import Triangle

if TYPE_CHECKING:
    from zonoplug.lirpa.backward.passes import Backward

ROWS_AT_ONCE = 256
SPARE = 64  # roundings of a mixture of rows and of steps through ReLUs
BLOCK = 64  # terms at the inputs that are summed in single precision, before sums of them are in double


@dataclass(frozen=True, slots=True, eq=False)
class Forms:
    """Affine forms in the inputs and in the outputs of unstable neurons.

    Attributes:
        inputs: (r, inputs).
        before: (r, unstable neurons).
        constant: (r,).
        error: (r,) how far rounding may move a value from its form, in the network's evaluation, where the form was
            found, and where forms are put into one another.
    """

    inputs: Tensor
    before: Tensor
    constant: Tensor
    error: Tensor

    def parts(self) -> tuple[Tensor, ...]:
        """The attributes, in their order."""
        return self.inputs, self.before, self.constant, self.error

    def pick(self, index: Tensor) -> Forms:
        """Some of them."""
        return Forms(*(part[index] for part in self.parts()))

    @staticmethod
    def join(many: list[Forms]) -> Forms:
        """All of them."""
        return Forms(*(torch.cat(parts) for parts in zip(*(one.parts() for one in many), strict=True)))


def unstable_places(preactivation: Interval) -> Tensor:
    """where the neuron is unstable, of the flattened layer (neurons,); NaN is not known."""
    return ~((preactivation.lower >= 0) | (preactivation.upper <= 0)).flatten()


class UnstableNetwork:
    """The unstable neurons of a network on one box, layer by layer.

    Args:
        box: (1, *input_shape).
        most: unstable neurons that there will be in all layers, at most: sums over them are rounded.

    Attributes:
        sections: of each layer, among all unstable neurons.
        numbers: (n,) of the unstable neurons among all neurons of the layers, rising.
        all_lower, all_upper: (all neurons,) of the pre-activations.
        forms: of the unstable neurons, in the neurons of the layers before.
    """

    def __init__(self, box: Box, most: int) -> None:
        self.box = box
        self._most = most
        size = box.lower.numel()
        none = box.lower.new_zeros(0)
        self.sections: list[slice] = []
        self.numbers = torch.zeros(0, dtype=torch.int64, device=none.device)
        self.all_lower, self.all_upper = none, none
        self.forms = Forms(none.new_zeros(0, size), none.new_zeros(0, 0), none, none)
        self._unstable: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return int(self.numbers.shape[0])

    @property
    def lower(self) -> Tensor:
        """(n,) of the unstable neurons."""
        return self.all_lower[self.numbers]

    @property
    def upper(self) -> Tensor:
        """(n,) of the unstable neurons."""
        return self.all_upper[self.numbers]

    @staticmethod
    def bytes_for(box: Box, preactivations: Iterable[Interval]) -> int:
        """How much the forms take of all unstable neurons in pre-activation bounds (1, *shape)."""
        count = sum(int(unstable_places(preactivation).sum()) for preactivation in preactivations)
        return count * (count + box.lower.numel()) * box.lower.element_size()

    def append(self, relu: str, neurons: Tensor, preactivation: Interval, forms: Forms | None = None) -> None:
        """Add the unstable neurons of one more layer.

        Args:
            relu: the name of its node.
            neurons: (m,) places in the flattened layer.
            preactivation: of all its neurons.
            forms: of the unstable ones, if there are any.
        """
        count = len(self)
        if count + neurons.shape[0] > self._most:
            raise ValueError(f"{count + neurons.shape[0]} unstable neurons, where at most {self._most} were expected.")
        self.sections.append(slice(count, count + neurons.shape[0]))
        self._unstable[relu] = neurons
        self.numbers = torch.cat([self.numbers, self.all_lower.shape[0] + neurons])
        self.all_lower = torch.cat([self.all_lower, preactivation.lower.flatten()])
        self.all_upper = torch.cat([self.all_upper, preactivation.upper.flatten()])
        if forms is None:
            return
        shape = len(self), len(self) - count
        joined = Forms.join([self.forms, forms])
        self.forms = replace(joined, before=torch.cat([joined.before, joined.before.new_zeros(shape)], dim=1))

    def forms_of(self, passes: Backward, preactivations: Mapping[str, Interval], rows: Tensor) -> Forms:
        """Forms of rows of the value that `passes` end at.

        Args:
            passes: over ReLUs and exact operators alone; over a module in double precision their own rounding, which
                counts too, is small.
            preactivations: of the box, (1, *shape) by node name.
            rows: (r, size).
        Raises:
            ValueError: a ReLU on the way has unstable neurons that have not been appended.
        """
        kind = passes.dtype
        box = Box(self.box.lower.to(kind), self.box.upper.to(kind))
        preactivations = {
            name: Interval(preactivation.lower.to(kind), preactivation.upper.to(kind))
            for name, preactivation in preactivations.items()
        }
        triangles = {
            node.name: self._side(node.name, preactivations[passes.source(node.name)]) for node in passes.relus
        }
        errors = passes.errors(box, preactivations)
        origin = Box(torch.zeros_like(box.lower), torch.zeros_like(box.lower))
        parts = []
        for some in rows.split(ROWS_AT_ONCE):
            with torch.no_grad():
                found = passes.bound(origin, preactivations, some.unsqueeze(0).to(kind), None, triangles, errors)
                before = some.new_zeros(len(some), len(self))
                for section, (relu, neurons) in zip(self.sections, self._unstable.items(), strict=True):
                    if relu in found.coefficients:
                        before[:, section] = found.coefficients[relu].flatten(2)[0, :, neurons].to(before.dtype)
                inputs, constant = found.inputs[0].flatten(1).to(some.dtype), found.lower[0].to(some.dtype)
            error = found.error[0].to(some.dtype) + self._own_error(inputs, before, constant)
            parts.append(Forms(inputs, before, constant, error))
        return Forms.join(parts)

    def _side(self, relu: str, preactivation: Interval) -> Triangle:
        """What passes a ReLU: neurons that are positive; those that have been appended end there."""
        slope, unstable = (preactivation.lower >= 0).flatten(1), unstable_places(preactivation)
        appended = torch.zeros_like(unstable).index_fill(0, self._unstable.get(relu, self.numbers[:0]), True)
        if bool((unstable & ~appended).any()):
            raise ValueError(f"{relu!r} has unstable neurons that have not been appended.")
        passed = (slope & ~appended).reshape(preactivation.lower.shape).to(preactivation.lower.dtype).unsqueeze(1)
        return Triangle(passed, torch.zeros_like(passed), torch.zeros_like(passed, dtype=torch.bool))

    def _own_error(self, inputs: Tensor, before: Tensor, constant: Tensor) -> Tensor:
        largest = torch.maximum(self.box.lower.abs(), self.box.upper.abs()).flatten()
        terms = inputs.abs() @ largest + before.abs() @ self.upper.clamp(min=0) + constant.abs()
        size = largest.shape[0]
        # Coefficients of neurons, of inputs, and constants are sums over neurons; inputs are summed in blocks.
        count = 3 * self._most + min(size, BLOCK) + SPARE
        return terms * (1.01 * gamma(count, terms.dtype)) + (count + size) * torch.finfo(terms.dtype).tiny
