"""What is explained: the margins that are positive as long as a network's decision stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zonoplug.errors import SettingError
from zonoplug.lirpa import compat


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """Margins  C y + d,  one for each rival: the decision stands where all are above 0.

    Attributes:
        rows: C, (batch, rivals, outputs).
        offset: d, (batch, rivals).
        rivals: (batch, rivals) the output that each margin is held against.
    """

    rows: Tensor
    offset: Tensor
    rivals: Tensor

    @classmethod
    def between_classes(cls, target: Tensor, outputs: int, like: Tensor, smallest: bool = False) -> Decision:
        """Output `target` is the largest:  y_target - y_r  for every other output r.

        Args:
            target: (batch,) int64.
            outputs: how many there are, at least 2.
            like: gives type and device.
            smallest: the decision is the smallest output instead:  y_r - y_target.
        Raises:
            SettingError: a single output, or a target that is none of them.
        """
        if outputs < 2:
            raise SettingError("A network with one output has no classes: ask for a range around its value instead.")
        if not bool(((target >= 0) & (target < outputs)).all()):
            raise SettingError(f"Target {target.tolist()} is out of range: the network has outputs 0 to {outputs - 1}.")
        identity = torch.eye(outputs, dtype=like.dtype, device=like.device)
        target = target.to(like.device)
        classes = torch.arange(outputs, device=like.device).expand(target.shape[0], outputs)
        rivals = classes[classes != target[:, None]].reshape(target.shape[0], outputs - 1)
        rows = identity[target].unsqueeze(1) - identity[rivals]
        return cls(-rows if smallest else rows, rows.new_zeros(rows.shape[:2]), rivals)

    @classmethod
    def within(cls, values: Tensor, delta: float) -> Decision:
        """Every output stays closer than `delta` to its value:  y - (v - delta)  and  (v + delta) - y.

        Args:
            values: v, (batch, outputs).
            delta: > 0.
        """
        if not delta > 0:
            raise SettingError(f"The allowed change of the output is {delta:g}, and must be above 0.")
        batch, outputs = values.shape
        identity = torch.eye(outputs, dtype=values.dtype, device=values.device).expand(batch, outputs, outputs)
        rivals = torch.arange(outputs, device=values.device).expand(batch, outputs)
        offset = torch.cat([delta - values, delta + values], dim=1)
        return cls(torch.cat([identity, -identity], dim=1), offset, torch.cat([rivals, rivals], dim=1))

    @classmethod
    def outputs(cls, batch: int, outputs: int, like: Tensor) -> Decision:
        """The outputs themselves, (batch, outputs) margins: for maps of a single class score."""
        rows = torch.eye(outputs, dtype=like.dtype, device=like.device).expand(batch, outputs, outputs)
        rivals = torch.arange(outputs, device=like.device).expand(batch, outputs)
        return cls(rows, rows.new_zeros(batch, outputs), rivals)

    @property
    def batch(self) -> int:
        return int(self.rows.shape[0])

    @property
    def num_rivals(self) -> int:
        return int(self.rows.shape[1])

    def margins(self, outputs: Tensor) -> Tensor:
        """Margins (batch, rivals) at flattened outputs (batch, outputs); the decision may be one for all."""
        return torch.einsum("bro,bo->br", self.rows.expand(outputs.shape[0], -1, -1), outputs) + self.offset

    def repeat(self, count: int) -> Decision:
        """The decision of a single element, for a batch of `count`."""
        if self.batch != 1:
            raise SettingError(f"A decision of {self.batch} elements cannot be repeated; take one of them first.")
        return self.take([0] * count)

    def take(self, elements: Sequence[int]) -> Decision:
        """The decisions of some elements of the batch."""
        places = torch.as_tensor(elements, device=self.rows.device)
        return Decision(self.rows[places], self.offset[places], self.rivals[places])


class OneByOne(nn.Module):
    """A network that is given the points of a batch one at a time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, points: Tensor) -> Tensor:
        return torch.cat([self.network(point) for point in points.split(1)])


def takes_batches(module: Any, network: nn.Module, point: Tensor) -> bool:
    """Whether the host's module gives for a batch what the network gives for its points one at a time."""
    points = torch.cat([point, point * 0.9 + 0.05, point * 0.8])
    return compat.takes_batches(module, OneByOne(network), points)


def network_outputs(network: Any, points: Tensor) -> Tensor:
    """A network's flattened outputs (batch, outputs), without gradients."""
    with torch.no_grad():
        outputs: Tensor = network(points)
    return outputs.flatten(1)


def as_target(target: int | Sequence[int] | Tensor | None, outputs: Tensor) -> Tensor:
    """A target in captum's forms as (batch,) int64: a number, one for each input, or None for the largest output."""
    if target is None:
        return outputs.argmax(dim=1)
    chosen = torch.as_tensor(target, device=outputs.device).reshape(-1).to(torch.int64)
    if chosen.shape[0] not in (1, outputs.shape[0]):
        raise SettingError(f"Got {chosen.shape[0]} targets for {outputs.shape[0]} inputs: give one, or one for each.")
    return chosen.expand(outputs.shape[0])
