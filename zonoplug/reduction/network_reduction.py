"""Reduce a chain of layers for one set of inputs, while a zonotope is propagated through what is left of it.

Source: Ladner & Althoff, Fully Automatic Neural Network Reduction for Formal Verification, arXiv 2305.01932.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from zonoplug.domain.input_sets import InputSet
from zonoplug.domain.linear_maps import NonNegativeMap
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import SettingError
from zonoplug.reduction.neuron_merging import ASYMPTOTES, NeuronMerging, merge_rows, middle_and_radius, patch_reach
from zonoplug.reduction.reduced_network import Layer, ReducedNetwork, activation_range, before, behind


@dataclass(frozen=True, slots=True)
class InputCompression:
    """Merges pixels whose intervals are like those around them, as if an identity layer came first.

    The identity here is exact for inputs of either sign; made of a ReLU, it would need them shifted to be >= 0.

    Attributes:
        merging: its rate or tolerance decides how many pixels stay.
        patch: side in pixels of the patches that are compared; for images (..., height, width). None compares all
            inputs, as neurons.
    """

    merging: NeuronMerging
    patch: int | None = 2

    def marks(self, bounds: Interval) -> Tensor:
        """Which inputs to merge, (batch, n)."""
        if self.patch is None or self.merging.rate == 1:
            return self.merging.merged(bounds).flatten(1)
        if self.patch < 1 or bounds.lower.dim() < 3:
            shape = tuple(bounds.lower.shape[1:])
            raise SettingError(f"InputCompression: patch {self.patch} on inputs of shape {shape}; it needs images.")
        return self.merging.from_reach(*patch_reach(bounds, self.patch))


def reduce_network(
    network: ReducedNetwork,
    inputs: InputSet,
    merging: NeuronMerging,
    compression: InputCompression | None = None,
) -> tuple[ReducedNetwork, Zonotope]:
    """Reduce a chain of layers for one set of inputs, and bound it, in one pass.

    Each layer's pre-activation is bounded through the layers that are reduced already; then its neurons are merged, and
    only what stays is propagated. Where the input set has a batch, one network serves all its elements. Bounds hold for
    exact arithmetic on real numbers: what rounds in the making of the reduced network is not covered.

    Args:
        network: the chain; may have interval biases.
        inputs: (batch, *input_shape).
        merging: which neurons of each layer with an activation are merged; never of the last layer.
        compression: which inputs are merged before; None for none. The reduced network still takes all inputs.
    Returns:
        the reduced network, and a zonotope around its outputs, (batch, outputs), the same as its `bound` gives.

    Cost: as a zonotope pass over the reduced network, and a product of each original layer with the kept generators.
    """
    source = SymbolSource()
    value = inputs.to_zonotope(source, "input").reshape((prod(network.input_shape),))
    hull, layers = inputs.interval_hull(), list(network.layers)
    lost = None if compression is None else (_over_batch(hull), compression.marks(_over_batch(hull))[0])
    reduced: list[Layer] = []
    for index, layer in enumerate(layers):
        if lost is not None:
            layer = _without_inputs(layer, Interval(*(side.flatten() for side in lost[0])), lost[1], index == 0)
            if not index:
                zero = torch.zeros_like(value.center)
                value = merge_rows(value, Interval(zero, zero), lost[1].expand_as(zero))
        sums = before(value, layer)
        bounds, lost = sums.interval_hull(), None
        if layer.activation is not None and index + 1 < len(layers):
            images = _over_batch(activation_range(layer.activation, bounds))
            marks = merging.merged(images, ASYMPTOTES[layer.activation])[0]
            if bool(marks.any()):
                lost, kept = (images, marks), ~marks
                radius = None if layer.radius is None else layer.radius[kept]
                layer = replace(layer, weight=layer.weight[kept], bias=layer.bias[kept], radius=radius)
                sums, bounds = _rows(sums, kept), Interval(*(side[:, kept] for side in bounds))
        reduced.append(layer)
        value = behind(sums, bounds, layer.activation, source, f"layer {index}", merging.tracked)
    return ReducedNetwork(reduced, network.input_shape, network.original), value


def _over_batch(bounds: Interval) -> Interval:
    """Bounds that hold for every element of the batch, (1, *shape)."""
    return Interval(bounds.lower.amin(dim=0, keepdim=True), bounds.upper.amax(dim=0, keepdim=True))


def _without_inputs(layer: Layer, bounds: Interval, marks: Tensor, keep_columns: bool) -> Layer:
    """The layer with the marked inputs (in,) as intervals in its bias; their columns go, or are 0."""
    middle, radius = middle_and_radius(Interval(bounds.lower[marks], bounds.upper[marks]))
    gone = layer.weight[:, marks]
    total = gone.abs() @ radius
    weight = layer.weight.masked_fill(marks, 0) if keep_columns else layer.weight[:, ~marks]
    bias = layer.bias + gone @ middle
    return Layer(weight, bias, layer.activation, total if layer.radius is None else layer.radius + total)


def _rows(zonotope: Zonotope, kept: Tensor) -> Zonotope:
    """The kept coordinates (n,) of a zonotope."""
    return zonotope.map(NonNegativeMap(lambda x: x[:, kept], moves_only=True))
