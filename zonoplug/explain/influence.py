"""Symbol influence: how far each input moves each margin, by one zonotope pass, and what no input explains.

After one propagation a margin is

    m  in  c + sum_i a_i e_i + sum_j b_j e_j +/- box,      e_i of the inputs, e_j introduced inside the network,

so |a_i| is how far input i moves it within the certified relaxation, the sign of a_i says which way, and
sum_j |b_j| + box is the *unattributed mass*: what the relaxation adds and no input accounts for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zonoplug.domain.input_sets import Box, InputSet
from zonoplug.domain.rounding import Rounding
from zonoplug.domain.symbols import Origin, SymbolSource
from zonoplug.domain.zonotope import Zonotope
from zonoplug.errors import SettingError
from zonoplug.explain.decision import Decision, as_target, network_outputs, takes_batches
from zonoplug.lirpa.compat import check_graph
from zonoplug.lirpa.forward.propagation import Propagation
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import ZonotopeModule, build, forward_propagation


@dataclass(frozen=True, slots=True, eq=False)
class NodeMass:
    """The unattributed mass that entered at one node.

    Attributes:
        node, kind: the graph node's name, and the operator it is.
        index: (batch, count) flat coordinate of each neuron in the node's output.
        mass: (batch, rivals, count) |b_j| of its symbols.
    """

    node: str
    kind: str
    index: Tensor
    mass: Tensor

    @property
    def total(self) -> Tensor:
        """(batch, rivals)."""
        return self.mass.sum(dim=2)

    def neurons(self, element: int, rival: int, count: int = 5) -> list[tuple[int, float]]:
        """The neurons with the largest mass, and it."""
        values, places = self.mass[element, rival].topk(min(count, self.mass.shape[2]))
        found = self.index[element, places].tolist()
        return [(int(n), float(v)) for n, v in zip(found, values.tolist(), strict=True) if v > 0]


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """Margins over an input set, taken apart.

    Attributes:
        center: c, (batch, rivals).
        symbols: a, (batch, rivals, k): of each symbol of the input set.
        index: (batch, k) the input coordinate of each symbol; of the one it moves most, if it moves several.
        shape: of one input.
        explained: (batch, rivals) how far the inputs move the margin together: sum |a_i| for a box.
        nodes: where the other symbols entered.
        box: (batch, rivals) mass without named symbols.
        inputs: the input set's zonotope.
        decision: whose margins.
    """

    center: Tensor
    symbols: Tensor
    index: Tensor
    shape: tuple[int, ...]
    explained: Tensor
    nodes: tuple[NodeMass, ...]
    box: Tensor
    inputs: Zonotope
    decision: Decision

    @property
    def unattributed(self) -> Tensor:
        """sum_j |b_j| + box, (batch, rivals)."""
        total = self.box
        for node in self.nodes:
            total = total + node.total
        return total

    @property
    def radius(self) -> Tensor:
        """(batch, rivals): explained and unattributed."""
        return self.explained + self.unattributed

    @property
    def lower(self) -> Tensor:
        """A lower bound of each margin over the input set, (batch, rivals)."""
        return self.center - self.radius

    def signed(self) -> Tensor:
        """a_i for each input coordinate, (batch, rivals, *shape): what raising it does to the margin."""
        return self._on_inputs(self.symbols)

    def magnitude(self) -> Tensor:
        """|a_i| for each input coordinate, (batch, rivals, *shape)."""
        return self._on_inputs(self.symbols.abs())

    def shares(self) -> tuple[Tensor, Tensor]:
        """Parts of the radius: of each input coordinate (batch, rivals, *shape), and unattributed (batch, rivals).

        They add up to 1; all are 0 where the radius is.
        """
        radius = self.radius
        whole = torch.where(radius > 0, radius, torch.ones_like(radius))
        magnitude = self.magnitude()
        flat = magnitude.flatten(2)
        total = flat.sum(dim=2)
        scale = torch.where(total > 0, self.explained / torch.where(total > 0, total, torch.ones_like(total)), total)
        parts = flat * (scale / whole).unsqueeze(2)
        return parts.reshape(magnitude.shape), self.unattributed / whole

    def nearest(self) -> Tensor:
        """(batch,): the rival whose margin has the least lower bound; NaN counts as least."""
        return self.lower.nan_to_num(nan=-torch.inf).argmin(dim=1)

    def _on_inputs(self, values: Tensor) -> Tensor:
        size = int(torch.Size(self.shape).numel())
        flat = values.new_zeros(*values.shape[:2], size)
        place = self.index.unsqueeze(1).expand(values.shape)
        return flat.scatter_add(2, place, values).reshape(*values.shape[:2], *self.shape)


def decompose(propagation: Propagation, module: Any, inputs: Zonotope, decision: Decision) -> Influence:
    """Take apart the output of a propagation whose rows were the decision's.

    Args:
        propagation: over one input node, with the decision's rows.
        module: the host's module, which names the nodes.
        inputs: the zonotope that the propagation started from.
    """
    output = propagation.output
    names = set(module.input_name)
    own = [origin for origin in propagation.symbols.origins if origin.node in names]
    symbols = [_coefficients(output, origin) for origin in own]
    batch, rivals = output.center.shape
    empty = output.center.new_zeros(batch, rivals, 0)
    values = torch.cat([empty, *symbols], dim=2)
    no_index = torch.zeros(batch, 0, dtype=torch.int64, device=values.device)
    explained = values.abs().sum(dim=2)
    for block in output.blocks:
        if block.norm != torch.inf:
            explained = explained - block.dense().abs().sum(dim=1) + block.radius()
    nodes = tuple(
        NodeMass(origin.node, _kind(module, origin.node), origin.index, _coefficients(output, origin).abs())
        for origin in propagation.symbols.origins
        if origin.node not in names
    )
    return Influence(
        output.center + decision.offset,
        values,
        torch.cat([no_index, *(origin.index for origin in own)], dim=1),
        inputs.shape,
        explained,
        nodes,
        torch.zeros_like(output.center) if output.box is None else output.box,
        inputs,
        decision,
    )


def _kind(module: ZonotopeModule, node: str) -> str:
    """The class of a node; symbols that were merged belong to none."""
    return type(module[node]).__name__ if node in module._modules else "merged symbols"


def _coefficients(output: Zonotope, origin: Origin) -> Tensor:
    """(batch, rivals, count): the output's generators of an origin's symbols; 0 for those that were reduced away."""
    ids = torch.arange(origin.first, origin.first + origin.count)
    return output.generators(ids).transpose(1, 2)


class SymbolInfluence:
    """Attribution by noise symbols, in captum's habit:

        SymbolInfluence(module).attribute(inputs, target=3, input_set=Box.ball(inputs, 0.03))

    Args:
        network: a torch module, or a ZonotopeModule; (batch, *shape) to (batch, *outputs).
        method: a zonotope bound method; its zonotope is read, the host's part of "zonotope+crown" is not.
        rounding: "outward" or "inference" makes the bounds hold in floating point too; see `domain.rounding`.
    Raises:
        SettingError: a method without a zonotope.
    """

    def __init__(
        self, network: nn.Module, method: str | BoundMethod = "zonotope", rounding: Rounding = "nearest"
    ) -> None:
        self.network = network
        self.method = method if isinstance(method, BoundMethod) else BoundMethod.parse(method)
        if not self.method.zonotope:
            raise SettingError(
                f"Symbol influence needs a zonotope, and method {str(self.method)!r} has none. Use 'zonotope'."
            )
        self.rounding = rounding
        self._module: ZonotopeModule | None = network if isinstance(network, ZonotopeModule) else None
        self._batches: bool | None = None

    def module(self, like: Tensor) -> ZonotopeModule:
        """The host's module for the network; built at the first call, from an input (1 or more, *shape).

        Raises:
            HostError: the host cannot build the network, or its graph computes something else.
        """
        if self._module is None:
            module = build(self.network, like[:1])
            check_graph(module, self.network, like[:1])
            self._module = module
        return self._module

    def takes_batches(self, like: Tensor) -> bool:
        """Whether several inputs can be propagated at once; a network with a fixed batch takes one at a time."""
        if self._batches is None:
            self._batches = takes_batches(self.module(like), self.network, like[:1])
        return self._batches

    def influence(self, inputs: Tensor, decision: Decision, input_set: InputSet) -> Influence:
        """Margins over an input set, taken apart.

        Args:
            inputs: (batch, *shape), of the network's type.
            decision: whose margins; one element, or one for each input.
            input_set: around them, (batch, *shape).
        Raises:
            SettingError: several inputs for a network that takes one at a time.
        """
        module = self.module(inputs)
        if inputs.shape[0] > 1 and not self.takes_batches(inputs):
            raise SettingError(f"The network takes one input at a time, and got {inputs.shape[0]}.")
        decision = decision if decision.batch == inputs.shape[0] else decision.repeat(inputs.shape[0])
        with torch.no_grad():
            propagation = forward_propagation(module, [input_set], self.method, decision.rows, rounding=self.rounding)
            zonotope = input_set.to_zonotope(SymbolSource(), module.input_name[0])
        return decompose(propagation, module, zonotope, decision)

    def attribute(
        self,
        inputs: Tensor,
        target: int | Sequence[int] | Tensor | None = None,
        input_set: InputSet | float = 0.03,
        against: str | int = "nearest",
        return_unattributed: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Signed influence of each input coordinate.

        Args:
            inputs: (batch, *shape).
            target: output to explain: one for all, one for each input, or None for the network's own decision.
            input_set: around the inputs; a number is the radius of the l-infinity ball.
            against: "nearest" for the margin over the rival with the least bound, "all" for every rival's margin, a
                number for one class, "none" for the target's own output.
            return_unattributed: also return what no input explains.
        Returns:
            a_i, in the shape of `inputs`, with "all" (batch, rivals, *shape); and the unattributed mass (batch,) or
            (batch, rivals) if asked for. Both are in units of the margin.
        """
        if not isinstance(input_set, InputSet):
            input_set = Box.ball(inputs, input_set)
        outputs = network_outputs(self.network, inputs)
        chosen = as_target(target, outputs)
        if outputs.shape[1] == 1 or against == "none":
            found = self.influence(inputs, Decision.outputs(outputs.shape[0], outputs.shape[1], outputs), input_set)
            row = chosen
        else:
            found = self.influence(inputs, Decision.between_classes(chosen, outputs.shape[1], outputs), input_set)
            if against == "all":
                return (found.signed(), found.unattributed) if return_unattributed else found.signed()
            row = found.nearest() if against == "nearest" else _row_of(found.decision, against)
        places = torch.arange(inputs.shape[0], device=inputs.device)
        signed = found.signed()[places, row]
        return (signed, found.unattributed[places, row]) if return_unattributed else signed


def _row_of(decision: Decision, rival: str | int) -> Tensor:
    """(batch,): the row of a rival class."""
    hits = decision.rivals == rival if isinstance(rival, int) else torch.zeros_like(decision.rivals, dtype=torch.bool)
    if not bool(hits.any(dim=1).all()):
        raise SettingError(
            f'There is no rival {rival!r}: use "nearest", "all", "none" or the number of a class other than the target.'
        )
    return hits.to(torch.int64).argmax(dim=1)
