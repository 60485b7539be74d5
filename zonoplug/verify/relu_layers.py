"""The ReLU layers of a network, and which of them are affine in the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.verify.neuron_layout import NeuronLayout, Place

if TYPE_CHECKING:
    from zonoplug.lirpa.backward import Backward as BackwardPass

EXACT_FACTOR = 8.0  # units of rounding, of the absolute terms of a sum, by which hulls are widened


@dataclass(frozen=True, slots=True, eq=False)
class Layer(Place):
    """A ReLU layer.

    Attributes:
        error: what rounding may move its input, on the whole box, (neurons,).
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
        hulls: the inputs of its ReLUs on the box, by node name.
        magnitudes: what rounding errors on the box scale with, see `Backward.magnitudes`.

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
        hulls: Mapping[str, Interval],
        magnitudes: Mapping[str, Tensor],
    ) -> None:
        from zonoplug.lirpa.backward import Backward

        self._module = module
        self._shape = box.lower.shape[1:]
        point = box.lower + (box.upper - box.lower) / 2
        self.center = point.flatten()
        self.layout = NeuronLayout(backward, hulls)
        self.all: list[Layer] = []
        for at in self.layout.places:
            error = EXACT_FACTOR * torch.finfo(point.dtype).eps * magnitudes[at.relu].flatten()
            passes = Backward(module, at.source)
            matrix = middle = None
            if passes.is_affine:
                rows = torch.eye(passes.size, dtype=point.dtype, device=point.device).unsqueeze(0)
                with torch.no_grad():
                    linear = passes.bound(Box(point, point), {}, rows)
                matrix, middle = linear.inputs[0].flatten(1), linear.lower[0]
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
