"""ONNX operators as torch modules that trace to few, plain operators and that take a batch of any size on axis 0.

Whatever only shapes the computation (axes, sizes, indices) is a Python constant here, so that a traced graph holds no
arithmetic on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Reshape(nn.Module):
    """Reshape to a constant shape; 0 keeps a size, -1 is worked out."""

    def __init__(self, target: Sequence[int]) -> None:
        super().__init__()
        self.target = list(target)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(self.target)])


class Slice(nn.Module):
    """x[..., start:end:step, ...] for each (axis, start, end, step), constants."""

    def __init__(self, cuts: Sequence[tuple[int, int, int, int]]) -> None:
        super().__init__()
        self.cuts = list(cuts)

    def forward(self, x: Tensor) -> Tensor:
        for axis, start, end, step in self.cuts:
            size = x.shape[axis]
            if step > 0:
                x = x[(slice(None),) * (axis % x.dim()) + (slice(start, end, step),)]
            else:
                first = min(max(start + size if start < 0 else start, 0), size - 1)
                last = min(max(end + size if end < 0 else end, -1), size - 1)
                chosen = list(range(first, last, step))
                x = torch.index_select(x, axis, torch.tensor(chosen, dtype=torch.int64, device=x.device))
        return x


class ComputedSlice(nn.Module):
    """Slice with limits that are computed."""

    def forward(
        self, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
    ) -> Tensor:
        count = len(starts)
        along = list(range(count)) if axes is None else axes.tolist()
        strides = [1] * count if steps is None else steps.tolist()
        result: Tensor = Slice(list(zip(along, starts.tolist(), ends.tolist(), strides, strict=True)))(x)
        return result


class Gather(nn.Module):
    """x taken at constant indices >= 0 along an axis; a run of neighbours is a slice.

    Args:
        shape: of the result, with -1 for the batch; needed for indices of two and more axes.
    """

    indices: Tensor

    def __init__(self, axis: int, indices: Tensor, shape: Sequence[int] | None) -> None:
        super().__init__()
        self.axis = axis
        self.scalar = indices.dim() == 0
        self.shape = list(shape) if shape is not None and indices.dim() > 1 else None
        flat = indices.reshape(-1).to(torch.int64)
        listed = flat.tolist()
        self.first, self.count = listed[0], len(listed)
        self.run = indices.dim() <= 1 and listed == list(range(self.first, self.first + self.count))
        self.register_buffer("indices", flat)

    def forward(self, x: Tensor) -> Tensor:
        if self.scalar:
            return x.select(self.axis, self.first)
        if self.run:
            return x[(slice(None),) * (self.axis % x.dim()) + (slice(self.first, self.first + self.count),)]
        result = torch.index_select(x, self.axis, self.indices)
        return result if self.shape is None else result.reshape(self.shape)


class Expand(nn.Module):
    """Broadcast to a constant shape; the batch keeps its size."""

    def __init__(self, target: Sequence[int]) -> None:
        super().__init__()
        self.target = list(target)

    def forward(self, x: Tensor) -> Tensor:
        target = [1] * (x.dim() - len(self.target)) + self.target
        added = len(target) - x.dim()
        return x.expand([-1 if size == 1 and axis >= added else size for axis, size in enumerate(target)])


class Split(nn.Module):
    """Parts of constant sizes along an axis."""

    def __init__(self, sizes: Sequence[int], axis: int) -> None:
        super().__init__()
        self.sizes, self.axis = list(sizes), axis

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, self.sizes, self.axis)


class Squeeze(nn.Module):
    """Drop axes of size one."""

    def __init__(self, axes: Sequence[int]) -> None:
        super().__init__()
        self.axes = sorted(axes, reverse=True)

    def forward(self, x: Tensor) -> Tensor:
        for axis in self.axes:
            x = x.squeeze(axis)
        return x


class Pad(nn.Module):
    """Add a constant margin; `pads` begins and ends per axis, as ONNX has them."""

    def __init__(self, pads: Sequence[int], value: float) -> None:
        super().__init__()
        rank = len(pads) // 2
        margins = [(pads[axis], pads[axis + rank]) for axis in reversed(range(rank))]
        while margins and margins[-1] == (0, 0):
            margins.pop()
        self.margins = [margin for pair in margins for margin in pair]
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x, self.margins, value=self.value) if self.margins else x


class ComputedPad(nn.Module):
    """Pad with margins that are computed, along constant axes, or all where there are none."""

    def __init__(self, axes: Sequence[int] | None, value: float) -> None:
        super().__init__()
        self.axes, self.value = axes, value

    def forward(self, x: Tensor, pads: Tensor) -> Tensor:
        result: Tensor = Pad(every_margin([int(size) for size in pads.tolist()], self.axes, x.dim()), self.value)(x)
        return result


def every_margin(pads: Sequence[int], axes: Sequence[int] | None, rank: int) -> list[int]:
    """Begins and ends along every axis, where they are given along some."""
    if axes is None:
        return list(pads)
    full = [0] * 2 * rank
    for position, axis in enumerate(axes):
        full[axis], full[axis + rank] = pads[position], pads[position + len(axes)]
    return full


class Concat(nn.Module):
    """Join along an axis that is not the batch; parts without a batch of their own (class tokens) are repeated."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *parts: Tensor) -> Tensor:
        if parts[0].dim() > 1 and self.axis % parts[0].dim() != 0:
            batch = max(int(part.shape[0]) for part in parts)
            parts = tuple(part if part.shape[0] == batch else part.expand(batch, *part.shape[1:]) for part in parts)
        return torch.cat(parts, self.axis)


class ComputedClip(nn.Module):
    """min(max(x, low), high) with bounds that are computed."""

    def forward(self, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        if low is not None:
            x = torch.maximum(x, low.to(x.dtype))
        if high is not None:
            x = torch.minimum(x, high.to(x.dtype))
        return x


class OneHot(nn.Module):
    """values[1] where the index says, values[0] elsewhere, along a new axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        size = int(depth)
        axis = self.axis % (indices.dim() + 1)
        wanted = indices.to(torch.int64).unsqueeze(axis)
        shape = [1] * (indices.dim() + 1)
        shape[axis] = size
        places = torch.arange(size, device=indices.device).reshape(shape)
        from_the_end = torch.where(wanted == places - size, values[1], values[0])
        return torch.where(wanted == places, values[1], from_the_end)


class ScatterND(nn.Module):
    """`data` with `updates` written at `indices` of its leading axes."""

    def forward(self, data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        return data.index_put(tuple(indices.to(torch.int64).unbind(-1)), updates)
