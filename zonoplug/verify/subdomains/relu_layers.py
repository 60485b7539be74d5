"""The ReLU layers of a network, and which of them are affine in the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.rounding import gamma
from zonoplug.domain.zonotope import Interval
from zonoplug.verify.subdomains.neuron_layout import NeuronLayout, Place

if TYPE_CHECKING:
    from zonoplug.lirpa.backward.passes import Backward as BackwardPass


@dataclass(frozen=True, slots=True, eq=False)
class Layer(Place):
    """A ReLU layer.

    Attributes:
        error: how far its input, as the network's evaluation computes it, may be from `matrix` and `middle` as they are
            used, on the whole box, (neurons,).
        matrix, middle: where its input is affine in the network's,  z = middle + matrix (x - c) +/- error  for c the
            middle of the whole box: (neurons, inputs), (neurons,); None elsewhere.
    """

    error: Tensor
    matrix: Tensor | None = None
    middle: Tensor | None = None


class ReluLayers:
    """All ReLU layers behind one input box.

    Args:
        module: the host's.
        backward: its backward bounds.
        box: (1, *input_shape).
        preactivations: the inputs of its ReLUs on the box, by node name.

    Attributes:
        layout: of their neurons.
        all: the layers, in topological order.
        center: the middle of the box, (inputs,).
    """

    def __init__(
        self,
        module: Any,
        backward: BackwardPass,
        box: Box,
        preactivations: Mapping[str, Interval],
    ) -> None:
        from zonoplug.lirpa.backward.passes import Backward

        self._module = module
        self._shape = box.lower.shape[1:]
        point = box.lower + (box.upper - box.lower) / 2
        self.center = point.flatten()
        self.layout = NeuronLayout(backward, preactivations)
        self.all: list[Layer] = []
        for at in self.layout.places:
            passes = Backward(module, at.source)
            error, matrix, middle = torch.zeros_like(preactivations[at.source].lower.flatten()), None, None
            if passes.is_affine:
                rows = torch.eye(passes.size, dtype=point.dtype, device=point.device).unsqueeze(0)
                with torch.no_grad():
                    linear = passes.bound(Box(point, point), {}, rows, errors=passes.errors(box, {}))
                matrix, middle = linear.inputs[0].flatten(1), linear.lower[0]
                # The middle is put in with one error, and products of the matrix with x - c are summed with others.
                terms = middle.abs() + matrix.abs() @ (2 * torch.maximum(box.lower.abs(), box.upper.abs()).flatten())
                error = linear.error[0] + terms * (4 * gamma(matrix.shape[1] + 16, terms.dtype))
            self.all.append(Layer(at.relu, at.source, at.section, at.shape, error, matrix, middle))

    @property
    def affine(self) -> list[tuple[Layer, Tensor, Tensor]]:
        """The layers whose input is affine in the network's, with matrix and middle."""
        return [(at, at.matrix, at.middle) for at in self.all if at.matrix is not None and at.middle is not None]

    @property
    def later(self) -> list[Layer]:
        """The layers whose input is not."""
        return [layer for layer in self.all if layer.matrix is None]

    def values(self, points: Tensor) -> Tensor:
        """The inputs of all ReLUs, (n, neurons), at points (n, inputs)."""
        with torch.no_grad():
            found = []
            for layer in self.all:
                if layer.matrix is not None and layer.middle is not None:
                    found.append(layer.middle + (points - self.center) @ layer.matrix.T)
                else:
                    shaped = points.unflatten(1, self._shape)
                    found.append(self._module(shaped, final_node_name=layer.source).flatten(1))
            return torch.cat(found, dim=1)
