"""Network reduction: a chain of layers with fewer neurons, whose biases are intervals, for one set of inputs.

    y_k = f_k(W_k y_{k-1} + b_k + r_k * e_k),   every coordinate of e_k in [-1, 1]

Merging neurons M of layer k with values in [l, u] deletes their rows from W_k and their columns from W_{k+1}, and adds
W_{k+1} [l, u], the interval  W m +- |W| d  of middles m and radii d, to the next bias. For each input of the set there
is a noise e that makes the reduced network compute what the original one does, so what holds for all outputs of the
reduced network holds for the original one, on this set and on each part of it.

Source: Ladner & Althoff, Fully Automatic Neural Network Reduction for Formal Verification, arXiv 2305.01932.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

import zonoplug.relaxations as relaxations
from zonoplug.domain.input_sets import InputSet
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import SettingError
from zonoplug.reduction.neuron_merging import ASYMPTOTES, track_box
from zonoplug.relaxations import RelaxationRule
from zonoplug.transformers.affine import matrix
from zonoplug.transformers.elementwise import relax

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], RelaxationRule]] = {
    "relu": (torch.relu, relaxations.relu),
    "sigmoid": (torch.sigmoid, relaxations.sigmoid),
    "tanh": (torch.tanh, relaxations.tanh),
}
EVALUATION_UNITS = 8  # by which a computed sigmoid or tanh may be off, in units of its last place


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """f(W x + b + r * e),  e in [-1, 1].

    Attributes:
        weight: W (out, in).
        bias: b (out,).
        activation: "relu", "sigmoid", "tanh", or None for a linear layer.
        radius: r (out,) >= 0, or None for 0.
    """

    weight: Tensor
    bias: Tensor
    activation: str | None = None
    radius: Tensor | None = None

    @property
    def size(self) -> int:
        return int(self.weight.shape[0])


def activation_range(name: str, bounds: Interval) -> Interval:
    """The exact range of an increasing activation on [lower, upper], rounded outwards where it is not exact."""
    function, _ = FUNCTIONS[name]
    lower, upper = function(bounds.lower), function(bounds.upper)
    if name == "relu":
        return Interval(lower, upper)
    unit, limits = EVALUATION_UNITS * torch.finfo(lower.dtype).eps, ASYMPTOTES[name]
    spread = [unit * side.abs() + torch.finfo(lower.dtype).tiny for side in (lower, upper)]
    return Interval((lower - spread[0]).clamp(min=limits[0]), (upper + spread[1]).clamp(max=limits[1]))


class ReducedNetwork(nn.Module):
    """A chain of fully connected layers with interval biases.

    Args:
        layers: the first takes the flattened input, the last one is linear or not.
        input_shape: of one input, without the batch.
        original: neurons of each layer before merging; by default as now.
    Attributes:
        original: neurons of each layer before merging.
        neurons: (kept, original) for each layer with an activation: the size to report.
        num_noise: how many noise values `forward` takes: the biases' entries that are intervals.

    Raises:
        SettingError: the layers do not fit each other or the input.
    """

    def __init__(
        self, layers: Sequence[Layer], input_shape: tuple[int, ...], original: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        sizes = [prod(input_shape), *(layer.size for layer in layers)]
        for size, layer in zip(sizes, layers, strict=False):
            if layer.weight.shape[1] != size:
                raise SettingError(f"Layer {tuple(layer.weight.shape)} (out, in) follows a value of size {size}.")
        self.input_shape = input_shape
        self._activations = [layer.activation for layer in layers]
        self.original = tuple(original or sizes[1:])
        for index, layer in enumerate(layers):
            self.register_parameter(f"weight_{index}", _fixed(layer.weight))
            self.register_parameter(f"bias_{index}", _fixed(layer.bias))
            self.register_buffer(f"radius_{index}", layer.radius)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, with their interval biases."""
        return tuple(
            Layer(self.get_parameter(f"weight_{index}"), self.get_parameter(f"bias_{index}"), name, self._radius(index))
            for index, name in enumerate(self._activations)
        )

    @property
    def neurons(self) -> tuple[tuple[int, int], ...]:
        sizes = zip(self.layers, self.original, strict=True)
        return tuple((layer.size, all_) for layer, all_ in sizes if layer.activation is not None)

    @property
    def num_noise(self) -> int:
        return sum(int((layer.radius > 0).sum()) for layer in self.layers if layer.radius is not None)

    @property
    def inputs_read(self) -> int:
        """How many inputs the first layer has a weight for."""
        return int((self.layers[0].weight != 0).any(dim=0).sum())

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Outputs (batch, outputs) for inputs (batch, *input_shape) and noise (batch, num_noise); 0 by default.

        One output means nothing by itself; the outputs for all noise values in [-1, 1] include the original's.
        """
        value, used = x.flatten(1), 0
        for layer in self.layers:
            value = functional.linear(value, layer.weight, layer.bias)
            if noise is not None and layer.radius is not None:
                places = (layer.radius > 0).nonzero().squeeze(1)
                part = noise[:, used : used + places.shape[0]] * layer.radius[places]
                value, used = value.index_add(1, places, part), used + places.shape[0]
            value = value if layer.activation is None else FUNCTIONS[layer.activation][0](value)
        return value

    def followed_by(self, rows: Tensor) -> ReducedNetwork:
        """The network with C y for outputs: C (rows, outputs) becomes part of the last layer, which is linear.

        Intervals in the bias lose less so: |C W| d instead of |C| |W| d for what is merged before the last layer.
        """
        *layers, last = self.layers
        if last.activation is not None:
            layers, last = [*layers, last], Layer(rows, rows.new_zeros(rows.shape[0]))
        else:
            radius = None if last.radius is None else rows.abs() @ last.radius
            last = Layer(rows @ last.weight, rows @ last.bias, None, radius)
        return ReducedNetwork([*layers, last], self.input_shape, (*self.original[: len(layers)], last.size))

    def bound(self, inputs: InputSet, tracked: bool = True) -> Zonotope:
        """Enclose the outputs for all inputs of a set, of the set the network was reduced for or a part of it.

        Args:
            inputs: (batch, *input_shape).
            tracked: whether the box becomes symbols behind each activation, as `NeuronMerging.tracked`.
        Returns:
            A zonotope over (batch, outputs).
        """
        source = SymbolSource()
        value = inputs.to_zonotope(source, "input")
        value = value.reshape((prod(self.input_shape),))
        for index, layer in enumerate(self.layers):
            sums = before(value, layer)
            value = behind(sums, sums.interval_hull(), layer.activation, source, f"layer {index}", tracked)
        return value

    def with_noise_as_inputs(self) -> nn.Module:
        """The same network as a plain module of one input (batch, inputs + num_noise): the noise is its last part.

        Any method that bounds or explains networks takes it, the host's too: on a box of inputs with [-1, 1] for the
        noise, bounds of it are bounds of the original network.
        """
        return _Joint(self)

    def _radius(self, index: int) -> Tensor | None:
        radius: Tensor | None = getattr(self, f"radius_{index}")
        return radius


def _fixed(values: Tensor) -> nn.Parameter:
    """A parameter that is not trained: hosts take a network's type and device from its parameters."""
    return nn.Parameter(values, requires_grad=False)


class _Joint(nn.Module):
    """Linear layers that see the whole input besides the value before them, so that the noise needs no slicing."""

    def __init__(self, network: ReducedNetwork) -> None:
        super().__init__()
        total, used = prod(network.input_shape) + network.num_noise, prod(network.input_shape)
        self._activations = [layer.activation for layer in network.layers]
        for index, layer in enumerate(network.layers):
            noise = layer.weight.new_zeros(layer.size, total)
            if layer.radius is not None:
                places = (layer.radius > 0).nonzero().squeeze(1)
                noise[places, used + torch.arange(places.shape[0], device=places.device)] = layer.radius[places]
                used += places.shape[0]
            if index == 0:
                noise[:, : layer.weight.shape[1]] = layer.weight
            else:
                self.register_parameter(f"weight_{index}", _fixed(layer.weight))
            self.register_parameter(f"joint_{index}", _fixed(noise))
            self.register_parameter(f"bias_{index}", _fixed(layer.bias))

    def forward(self, x: Tensor) -> Tensor:
        value = x
        for index, name in enumerate(self._activations):
            sum_ = functional.linear(x, self.get_parameter(f"joint_{index}"), self.get_parameter(f"bias_{index}"))
            if index:
                sum_ = sum_ + functional.linear(value, self.get_parameter(f"weight_{index}"))
            value = sum_ if name is None else FUNCTIONS[name][0](sum_)
        return value


def before(value: Zonotope, layer: Layer) -> Zonotope:
    """The pre-activation: W x + b, the interval part of the bias in the box."""
    image = matrix(value, layer.weight, layer.bias)
    return image if layer.radius is None else image.widen(layer.radius.expand_as(image.center))


def behind(
    sums: Zonotope, bounds: Interval, activation: str | None, source: SymbolSource, node: str, tracked: bool
) -> Zonotope:
    """The activation's image; `tracked` turns its box into symbols."""
    if activation is None:
        return sums
    image = relax(sums, FUNCTIONS[activation][1], bounds, source, node)
    nothing = torch.zeros_like(image.center, dtype=torch.bool)
    return track_box(image, nothing, source, node) if tracked else image
