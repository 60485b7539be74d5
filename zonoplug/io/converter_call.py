"""One ONNX node about to be converted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import helper
from torch import Tensor, nn


class RefusedError(Exception):
    """A form of an operator that no module stands for; the text goes after the operator's name."""


@dataclass
class Call:
    """One ONNX node about to be converted.

    Attributes:
        opset: the operator set that brought the node's operator in the form it has.
        positions: of the inputs that the module takes; None for all.
    """

    node: Any
    graph: Any
    opset: int
    positions: list[int] | None = None

    def take(self, *positions: int) -> None:
        """The module takes these inputs only."""
        self.positions = list(positions)

    def own_type(self) -> torch.dtype:
        """The network's number type."""
        return torch.float64 if self.own_kind() == np.float64 else torch.float32

    def own_kind(self) -> Any:
        """The network's number type as numpy has it."""
        kinds = {value.type.tensor_type.elem_type for value in self.graph.proto.input}
        return np.float64 if 11 in kinds else np.float32

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        for attribute in self.node.proto.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    @property
    def proto(self) -> Any:
        """The node itself."""
        return self.node.proto

    def given(self, position: int) -> bool:
        """Whether there is an input at this position."""
        return position < len(self.node.input_values) and bool(self.node.input_values[position])

    def constant(self, position: int) -> Tensor | None:
        """The value of a constant input; None if it is absent or computed."""
        from onnx2torch.utils.common import get_const_value

        if not self.given(position):
            return None
        try:
            value = get_const_value(self.node.input_values[position], self.graph)
        except KeyError:
            return None
        return value if isinstance(value, Tensor) else None

    def computed(self, *positions: int) -> bool:
        """Whether one of these inputs is there and not constant."""
        return any(self.given(position) and self.constant(position) is None for position in positions)

    def live_positions(self) -> list[int]:
        """Positions of the inputs that are not constant."""
        return [position for position in range(len(self.node.input_values)) if self.computed(position)]

    def integers(self, position: int) -> list[int] | None:
        """A constant input as a list of integers; None if it is absent or computed."""
        value = self.constant(position)
        return None if value is None else [int(item) for item in value.reshape(-1).tolist()]

    def input_shape(self, position: int = 0) -> list[int] | None:
        """The shape of an input, if all of it is known and not empty."""
        return self._shape(self.node.input_values[position])

    def output_shape(self) -> list[int] | None:
        """As `input_shape`, of the first output."""
        return self._shape(self.node.output_values[0])

    def _shape(self, name: str) -> list[int] | None:
        info = self.graph.value_info.get(name)
        if info is None or not info.type.tensor_type.HasField("shape"):
            return None
        sizes = [dimension.dim_value for dimension in info.type.tensor_type.shape.dim]
        return sizes if all(size > 0 for size in sizes) else None


Maker = Callable[[Call], nn.Module | None]
