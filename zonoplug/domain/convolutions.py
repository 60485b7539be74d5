"""Convolutions as linear maps: what they do to whole tensors, and to patches that are zero but for a small window.

A window is an axis-parallel box of coordinates, `window` (one size for each spatial axis) from a `corner` on, which may
lie outside the tensor. A convolution sends a window to a window, so columns born at one neuron stay small.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from zonoplug.domain.linear_maps import Shape, SignedMap


class LocalMap(SignedMap):
    """A linear map of (channels, *size) that commutes with translation, up to its stride, and reaches only so far.

    Attributes:
        rank: number of spatial axes.
    """

    rank: int
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        weight: Tensor,
        terms: int,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        super().__init__(function, weight, terms)
        self.rank = weight.dim() - 2
        self.kernel = tuple(weight.shape[2:])
        self.stride, self.padding, self.dilation = tuple(stride), tuple(padding), tuple(dilation)
        self.groups = groups

    @abstractmethod
    def out_shape(self, shape: Shape) -> Shape:
        """Shape of the image of a tensor of `shape`."""

    @abstractmethod
    def out_window(self, window: Shape) -> Shape:
        """Size of the image of a window."""

    def read_window(self, window: Shape) -> Shape:
        """Size of what `move` makes of a window before it maps it."""
        return window

    @abstractmethod
    def out_corner(self, corner: Tensor) -> Tensor:
        """(..., rank) corners of the images of windows at `corner` (..., rank)."""

    @abstractmethod
    def move(self, patches: Tensor, corner: Tensor) -> Tensor:
        """Images of patches (rows, channels, *window) at corners (rows, rank): (rows, channels', *window')."""

    @abstractmethod
    def taps(self, axis: int, place: Tensor, out: Tensor) -> Tensor:
        """Which kernel entry, times the dilation, takes inputs at place (rows, 1) to outputs at out (rows, m)."""

    @property
    @abstractmethod
    def table(self) -> Tensor:
        """Kernels by input channel: (in, out, *kernel), 0 between groups."""

    def impulses(self, channel: Tensor, place: Tensor, outs: Sequence[Tensor]) -> Tensor:
        """Images of 1 at one channel (rows,) and place (rows, rank), at outputs `outs`: one (rows, m) for each axis.

        Returns (rows, channels', *m).
        """
        rows, table = channel.shape[0], self.table
        flat = channel.reshape([rows] + [1] * self.rank)
        inside = torch.ones_like(flat, dtype=torch.bool)
        for axis, (out, size, spread) in enumerate(zip(outs, self.kernel, self.dilation, strict=True)):
            view = [rows] + [1] * self.rank
            view[axis + 1] = out.shape[1]
            offset = self.taps(axis, place[:, axis, None], out)
            tap = torch.div(offset, spread, rounding_mode="floor")
            fits = (tap >= 0) & (tap < size) & (tap * spread == offset)
            flat = flat * size + tap.clamp(0, size - 1).reshape(view)
            inside = inside & fits.reshape(view)
        entries = table.transpose(0, 1).flatten(1)[:, flat].movedim(0, 1).contiguous()
        return entries.masked_fill_(~inside.unsqueeze(1), 0)

    def _by_channel(self, weight: Tensor) -> Tensor:
        """A weight (in, out / groups, *kernel) as (in, out, *kernel), with 0 between groups."""
        if self.groups == 1:
            return weight
        channels, per_group = weight.shape[:2]
        table = weight.new_zeros(channels, self.groups, per_group, *self.kernel)
        group = torch.arange(channels, device=weight.device) // (channels // self.groups)
        table[torch.arange(channels, device=weight.device), group] = weight
        return table.flatten(1, 2)


class Convolution(LocalMap):
    """Convolution in one, two or three spatial dimensions without bias.

        y[o] = sum_j w[j] x[stride o - padding + dilation j]

    Args:
        weight: (out, in / groups, *kernel).
        stride, padding, dilation: one number for each spatial dimension.
    """

    def __init__(
        self, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
    ) -> None:
        settings = tuple(stride), tuple(padding), tuple(dilation), groups
        forward = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[weight.dim() - 2]
        super().__init__(lambda x, w: forward(x, w, None, *settings), weight, weight[0].numel(), *settings)
        self._forward = forward

    def transposed_terms(self, shape: Shape, out_shape: Shape) -> int:
        return self._weight[:, 0].numel() // self.groups

    def transpose(self, a: Tensor, shape: Shape) -> Tensor:
        by_rank = {1: conv1d_input, 2: conv2d_input, 3: conv3d_input}
        settings = self.stride, self.padding, self.dilation, self.groups
        result: Tensor = by_rank[self.rank]((a.shape[0], *shape), self._weight, a, *settings)  # type: ignore[no-untyped-call]
        return result

    @property
    def _reach(self) -> list[int]:
        return [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]

    def out_shape(self, shape: Shape) -> Shape:
        sizes = zip(shape[1:], self.padding, self._reach, self.stride, strict=True)
        return (int(self._weight.shape[0]), *((n + 2 * p - reach - 1) // s + 1 for n, p, reach, s in sizes))

    def out_window(self, window: Shape) -> Shape:
        return tuple((w - 1 + r) // s + 1 for w, r, s in zip(window, self._reach, self.stride, strict=True))

    def read_window(self, window: Shape) -> Shape:
        if all(s == 1 for s in self.stride):
            return window
        out = zip(self.out_window(window), self.stride, self._reach, strict=True)
        return tuple((count - 1) * step + reach + 1 for count, step, reach in out)

    def out_corner(self, corner: Tensor) -> Tensor:
        """The first output that reads the window:  o >= (corner + padding - reach) / stride."""
        first = corner + torch.tensor([p - r for p, r in zip(self.padding, self._reach, strict=True)]).to(corner)
        return -torch.div(-first, torch.tensor(self.stride).to(corner), rounding_mode="floor")

    def move(self, patches: Tensor, corner: Tensor) -> Tensor:
        if all(s == 1 for s in self.stride):
            return self._forward(patches, self._weight, None, 1, tuple(self._reach), self.dilation, self.groups)
        # What the outputs read, from the first one's first input on, with the patch somewhere in it.
        shift = corner - self._first_read(corner)
        for axis, size in enumerate(self.read_window(tuple(patches.shape[2:]))):
            patches = _embed(patches, shift[:, axis], axis + 2, size)
        return self._forward(patches, self._weight, None, self.stride, 0, self.dilation, self.groups)

    def taps(self, axis: int, place: Tensor, out: Tensor) -> Tensor:
        return place + self.padding[axis] - self.stride[axis] * out

    @property
    def table(self) -> Tensor:
        out, per_group = self._weight.shape[:2]
        swapped = self._weight.reshape(self.groups, out // self.groups, per_group, *self.kernel).transpose(1, 2)
        return self._by_channel(swapped.flatten(0, 1))

    def _first_read(self, corner: Tensor) -> Tensor:
        """The first input that the first output of a window's image reads."""
        return self.out_corner(corner) * torch.tensor(self.stride).to(corner) - torch.tensor(self.padding).to(corner)


class TransposedConvolution(LocalMap):
    """Transposed convolution in one, two or three spatial dimensions without bias.

        y[stride i - padding + dilation j] += w[j] x[i]

    Args:
        weight: (in, out / groups, *kernel).
        stride, padding, output_padding, dilation: one number for each spatial dimension.
    """

    def __init__(
        self,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        output_padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        rank = weight.dim() - 2
        forward = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[rank]
        settings = tuple(stride), tuple(padding), tuple(output_padding), groups, tuple(dilation)
        terms = weight[:, 0].numel() // groups
        super().__init__(
            lambda x, w: forward(x, w, None, *settings), weight, terms, stride, padding, dilation, groups
        )  # fmt: skip
        self._forward = forward
        self._extra = tuple(output_padding)

    def transposed_terms(self, shape: Shape, out_shape: Shape) -> int:
        return self._weight[0].numel()

    def out_shape(self, shape: Shape) -> Shape:
        sizes = self.out_window(shape[1:])
        ends = zip(sizes, self.padding, self._extra, strict=True)
        return (int(self._weight.shape[1]) * self.groups, *(n - 2 * p + extra for n, p, extra in ends))

    def out_window(self, window: Shape) -> Shape:
        sizes = zip(window, self.stride, self.dilation, self.kernel, strict=True)
        return tuple((w - 1) * s + d * (k - 1) + 1 for w, s, d, k in sizes)

    def out_corner(self, corner: Tensor) -> Tensor:
        return corner * torch.tensor(self.stride).to(corner) - torch.tensor(self.padding).to(corner)

    def move(self, patches: Tensor, corner: Tensor) -> Tensor:
        return self._forward(patches, self._weight, None, self.stride, 0, 0, self.groups, self.dilation)

    def taps(self, axis: int, place: Tensor, out: Tensor) -> Tensor:
        return out + self.padding[axis] - self.stride[axis] * place

    @property
    def table(self) -> Tensor:
        return self._by_channel(self._weight)


def _embed(patches: Tensor, shift: Tensor, axis: int, size: int) -> Tensor:
    """Each patch along `axis` within `size` zeros, from its own shift (rows,) on."""
    source = torch.arange(size, device=patches.device) - shift[:, None]
    width = patches.shape[axis]
    inside = (source >= 0) & (source < width)
    view = [1] * patches.dim()
    view[0], view[axis] = source.shape
    shape = list(patches.shape)
    shape[axis] = size
    picked = patches.gather(axis, source.clamp(0, width - 1).reshape(view).expand(shape))
    return picked.masked_fill_(~inside.reshape(view), 0)
