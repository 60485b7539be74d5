"""Network reduction on host graphs: inside the propagation on any graph, or written out where the graph is a chain."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.blocks import DiagonalBlock
from zonoplug.domain.input_sets import InputSet
from zonoplug.domain.linear_maps import Shape
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Zonotope
from zonoplug.errors import SettingError, UnsupportedOperatorError
from zonoplug.lirpa.forward.propagation import Propagation
from zonoplug.lirpa.fusion.plan import NEURON_LAYERS, constant_value, plan_for
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import forward_propagation
from zonoplug.lirpa.operators.all import Call, NotApplicableError, entry_for
from zonoplug.reduction.neuron_merging import NeuronMerging
from zonoplug.reduction.reduced_network import FUNCTIONS, Layer, ReducedNetwork
from zonoplug.transformers.affine import Operand

LIMIT_ENTRIES = 1 << 27
ADVICE = "Merge neurons in the propagation over the graph instead: PropagationOptions(merging=...) takes any network."


def propagate_merged(
    module: Any, inputs: InputSet, merging: NeuronMerging, rows: Tensor | None = None, **choices: Any
) -> Propagation:
    """The propagation with neurons merged behind each activation, on a BoundedModule with one input.

    Args:
        inputs: (batch, *input_shape); each element's neurons are chosen on their own.
        rows: specification matrix C (batch or 1, rows, outputs).
        choices: further fields of `PropagationOptions`.
    Returns:
        output, bounds, and how many neurons stayed (`kept`).
    """
    return forward_propagation(module, [inputs], BoundMethod.parse("zonotope"), rows, merging=merging, **choices)


def chain_of(module: Any, example: Tensor) -> ReducedNetwork:
    """The network of a BoundedModule with one input as a chain of layers, with nothing merged yet.

    What lies between two activations (products with constants, sums, convolutions, reshapes) becomes one weight and
    one bias: the images of the unit vectors without biases, and of 0, under our own transformers. A convolution is
    written out as a matrix. Where several operators become one, weights are rounded as products of theirs.

    Args:
        module: the host's graph.
        example: an input, (1, *input_shape), for shape, type and device.
    Raises:
        UnsupportedOperatorError: an operator is neither exact nor ReLU, sigmoid or tanh; a branch leads around an
            activation; or a matrix would have more than 2^27 entries.
    """
    symbols, layers = SymbolSource(), list[Layer]()
    first = _input_name(module)
    shape = tuple(example.shape[1:])
    constants: dict[str, Tensor] = {}
    current: dict[str, Zonotope] = {}  # values since the last activation, as functions of its outputs
    for node in plan_for(module, module.final_name).order:
        if node.name == first:
            current[node.name] = _unit_vectors(example.new_zeros(1, *shape), symbols)
            continue
        operands = [_operand(node, parent, constants, current) for parent in node.inputs]
        kind = type(node).__name__
        if not any(isinstance(operand, Zonotope) for operand in operands):
            constants[node.name] = constant_value(module, node, operands)
        elif kind == "BoundShape":
            constants[node.name] = torch.tensor(operands[0].center.shape)  # type: ignore[union-attr]
        elif NEURON_LAYERS.get(kind) in FUNCTIONS:
            (value,) = operands
            assert isinstance(value, Zonotope)
            layers.append(_layer(value, NEURON_LAYERS[kind]))
            current = {node.name: _unit_vectors(torch.zeros_like(value.center), symbols)}
        else:
            current[node.name] = _exact_image(node, operands, symbols)
    layers.append(_layer(current[module.final_name], None))
    return ReducedNetwork(layers, shape)


def _input_name(module: Any) -> str:
    """The node of the module's only input. Raises SettingError if it has several."""
    names = [name for name, index in zip(module.input_name, module.input_index, strict=True) if index is not None]
    if len(names) != 1:
        raise SettingError(f"Network reduction takes networks with one input, not with {len(names)}.")
    return str(names[0])


def _operand(node: Any, parent: Any, constants: dict[str, Tensor], current: dict[str, Zonotope]) -> Operand:
    if parent.name in constants:
        return constants[parent.name]
    if parent.name in current:
        return current[parent.name]
    raise UnsupportedOperatorError(
        f"{type(node).__name__} (node {node.name!r}) reads a value from before the last activation:"
        f" the network is not a chain of layers. {ADVICE}"
    )


def _unit_vectors(zeros: Tensor, symbols: SymbolSource) -> Zonotope:
    """A symbol of radius 1 for each coordinate, around 0; zeros (1, *shape)."""
    shape: Shape = tuple(zeros.shape[1:])
    index = torch.arange(prod(shape), device=zeros.device).unsqueeze(0)
    values = torch.ones_like(zeros).flatten(1)
    return Zonotope(zeros, (DiagonalBlock(symbols.fresh("layer", index), values, index, shape),))


def _exact_image(node: Any, operands: list[Operand], symbols: SymbolSource) -> Zonotope:
    """The image under an exact operator."""
    entry, kind = entry_for(node), type(node).__name__
    where = f"{kind} (node {node.name!r})"
    if entry is None or entry.kind != "exact":
        raise UnsupportedOperatorError(
            f"{where} is neither linear nor one of {', '.join(FUNCTIONS)}: not part of a chain of layers. {ADVICE}"
        )
    try:
        image = entry.transformer(Call(node, operands, symbols))
    except NotApplicableError as error:
        raise UnsupportedOperatorError(
            f"{where} is not linear here: not part of a chain of layers. {ADVICE}"
        ) from error
    assert isinstance(image, Zonotope)
    if image.num_symbols * image.center.numel() > LIMIT_ENTRIES:
        raise UnsupportedOperatorError(
            f"{where} as a matrix is {image.center.numel()} x {image.num_symbols}: too large. {ADVICE}"
        )
    return image


def _layer(value: Zonotope, activation: str | None) -> Layer:
    """The layer from the last activation's outputs to `value`."""
    flat = value.reshape((value.center[0].numel(),))
    return Layer(flat.generators()[0].T.contiguous(), flat.center[0], activation)
