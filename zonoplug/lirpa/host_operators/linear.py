"""Linear operators that the host lacks, or has in a form that fails or is wrong; named as the host names them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zonoplug.lirpa.host_operators.bases import LinearOperator, box_of, is_constant, make_interval


class BoundGather(LinearOperator):
    """x.take(indices, axis), for constant indices of any shape; repeated indices are counted as often as they occur."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        indices = constants[0].to(x.device, torch.int64)
        axis = int(self.attr.get("axis", 0)) % x.dim()
        of_shape = type(self.inputs[0]).__name__ == "BoundShape"  # the host calls shapes perturbed, too
        if axis == 0 and self.is_input_perturbed(0) and not of_shape:
            raise NotImplementedError("Gather along the batch axis")
        chosen = torch.index_select(x, axis, torch.remainder(indices.reshape(-1), x.shape[axis]))
        return chosen.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


class BoundSlice(LinearOperator):
    """x[start:end:step] along one or several axes, from inputs (starts, ends, axes, steps) or from attributes."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        lists = [constant.reshape(-1).tolist() for constant in constants]
        for name in ("starts", "ends", "axes")[len(lists) :]:
            lists.append(list(self.attr.get(name) or range(len(lists[0]))))
        steps = lists[3] if len(lists) > 3 else [1] * len(lists[0])
        for start, end, axis, step in zip(lists[0], lists[1], lists[2], steps, strict=True):
            size = x.shape[int(axis)]
            if step > 0:
                x = x[(slice(None),) * (int(axis) % x.dim()) + (slice(int(start), int(end), int(step)),)]
                continue
            chosen = range(size)[slice(int(start), int(end) if end >= -size else None, int(step))]
            x = torch.index_select(x, int(axis), torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
        return x


class BoundExpand(LinearOperator):
    """Broadcasting to a constant shape; the batch keeps its size."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        target = [int(size) for size in constants[0].tolist()]
        if len(target) < x.dim():
            target = [1] * (x.dim() - len(target)) + target
        kept = [1] * (len(target) - x.dim()) + list(x.shape)
        if len(target) > x.dim() and self.is_input_perturbed(0):
            raise NotImplementedError("Expand that adds axes before the batch")
        sizes = [kept[axis] if axis == 0 or size == 1 else size for axis, size in enumerate(target)]
        return x.expand(*sizes)


class BoundTile(LinearOperator):
    """x repeated along its axes, but for the batch. 0.3 has none; 0.7's backward bounds do not hold."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        counts = [int(count) for count in constants[0].tolist()]
        if len(counts) != x.dim() or counts[0] != 1:
            raise NotImplementedError("Tile of the batch, or with more axes than its input")
        return x.repeat(counts)


class BoundTranspose(LinearOperator):
    """Axes in another order; the batch stays first. Contiguous, because the host takes views of what follows."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        return x.permute(*self.attr["perm"]).contiguous()

    @property
    def perm(self) -> list[int]:
        return list(self.attr["perm"])


class BoundResize(LinearOperator):
    """Nearest or linear interpolation as torch writes it; inputs (x, roi, scales, sizes) or (x, scales)."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        mode = self.attr.get("mode", "nearest")
        if mode not in ("nearest", "linear"):
            raise NotImplementedError(f"Resize with mode {mode!r}")
        aligned = self.attr.get("coordinate_transformation_mode") == "align_corners"
        spatial = x.dim() - 2
        factors = [constant for constant in constants if constant.numel() == x.dim()]
        given = factors[-1].tolist()[2:]
        sized = len(constants) == 3 and factors[-1] is constants[2]
        return functional.interpolate(
            x,
            size=[int(size) for size in given] if sized else None,
            scale_factor=None if sized else [float(factor) for factor in given],
            mode={"nearest": "nearest", "linear": ("linear", "bilinear", "trilinear")[spatial - 1]}[mode],
            align_corners=aligned if mode == "linear" else None,
        )


class _Convolution(LinearOperator):
    nonnegative = False

    def offset(self, *constants: Tensor) -> Tensor | None:
        rank = constants[0].dim() - 2
        return constants[1].reshape(-1, *[1] * rank) if len(constants) > 1 else None

    def absolute_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        return self.linear_part(x, constants[0].abs())


class BoundConv(_Convolution):
    """Convolution over one to three axes with any padding."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        weight, attr = constants[0], self.attr
        rank = weight.dim() - 2
        pads = attr.get("pads", [0] * 2 * rank)
        margins = [margin for axis in reversed(range(rank)) for margin in (pads[axis], pads[axis + rank])]
        operator: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
        result: Tensor = operator(
            functional.pad(x, margins), weight, None, attr["strides"], 0, attr["dilations"], attr["group"]
        )
        return result


class BoundConvTranspose(_Convolution):
    """Transposed convolution over one to three axes with any padding, stride, dilation and groups."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        weight, attr = constants[0], self.attr
        rank = weight.dim() - 2
        pads = attr.get("pads", [0] * 2 * rank)
        extra = attr.get("output_padding") or [0] * rank
        by_rank: Any = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
        operator = by_rank[rank - 1]
        result: Tensor = operator(x, weight, None, attr["strides"], 0, 0, attr["group"], attr["dilations"])
        margins = [
            margin for axis in reversed(range(rank)) for margin in (-pads[axis], extra[axis] - pads[axis + rank])
        ]
        return functional.pad(result, margins)


class BoundPad(LinearOperator):
    """A margin, constant or of values inside; inputs (x, pads, value) as ONNX has them, or attributes."""

    def _margins(self, rank: int, constants: tuple[Tensor, ...]) -> list[int]:
        pads = [int(pad) for pad in (constants[0].tolist() if constants else self.attr["pads"])]
        margins = [margin for axis in reversed(range(rank)) for margin in (pads[axis], pads[axis + rank])]
        if any(margins[-2:]):
            raise NotImplementedError("Pad of the batch")
        return margins

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        margins, mode = self._margins(x.dim(), constants), self.attr.get("mode", "constant")
        if mode == "constant":
            return functional.pad(x, margins)
        for axis in range(1, x.dim()):
            before, after = margins[2 * (x.dim() - 1 - axis) :][:2]
            if before or after:
                place = torch.arange(x.shape[axis], dtype=torch.float64, device=x.device)[None]
                torch_mode = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode]
                x = x.index_select(axis, functional.pad(place, (before, after), torch_mode)[0].long())
        return x

    def offset(self, *constants: Tensor) -> Tensor | None:
        if self.attr.get("mode", "constant") != "constant":
            return None
        value = float(constants[1]) if len(constants) > 1 and constants[1].numel() else self.attr.get("value", 0.0)
        if not value:
            return None
        shape = self.inputs[0].output_shape[1:]
        inside = torch.zeros(1, *shape, device=self.device)
        return functional.pad(inside, self._margins(inside.dim(), constants), value=value)


class BoundAveragePool(LinearOperator):
    """Mean over windows; without `count_include_pad`, over what lies inside. The hosts' bounds do not hold.

    Attributes:
        kernel_size, stride, padding, ceil_mode, count_include_pad: as the host's class has them.
    """

    def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.kernel_size = list(attr["kernel_shape"])
        rank = len(self.kernel_size)
        self.stride = list(attr.get("strides") or [1] * rank)
        pads = list(attr.get("pads") or [0] * 2 * rank)
        self.padding = pads[:rank]
        self.uneven = pads[:rank] != pads[rank:]
        self.ceil_mode = bool(attr.get("ceil_mode", 0))
        self.count_include_pad = bool(attr.get("count_include_pad", 0))

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        attr = self.attr
        rank = len(attr["kernel_shape"])
        pads = list(attr.get("pads", [0] * 2 * rank))
        if attr.get("ceil_mode", 0) or any(size != 1 for size in attr.get("dilations", [])):
            raise NotImplementedError("AveragePool with ceil_mode or dilations")
        operator: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
        strides = list(attr.get("strides", [1] * rank))
        margins = [margin for axis in reversed(range(rank)) for margin in (pads[axis], pads[axis + rank])]
        result: Tensor = operator(functional.pad(x, margins), list(attr["kernel_shape"]), strides)
        if not attr.get("count_include_pad", 0) and any(pads):
            covered = functional.pad(torch.ones_like(x[:1]), margins)
            result = result / operator(covered, list(attr["kernel_shape"]), strides)
        return result


class BoundMatMul(LinearOperator):
    """A constant matrix times x."""

    position = 1
    nonnegative = False

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        return torch.matmul(constants[0], x)

    def absolute_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        return torch.matmul(constants[0].abs(), x)


class _WithConstant(LinearOperator):
    """An operator of a perturbed value and a constant, on either side, that is broadcast to it or that it is to."""

    def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.position = int(is_constant(inputs[0]) and not is_constant(inputs[1]))

    @staticmethod
    def _broadcast(x: Tensor, constant: Tensor) -> Tensor:
        if constant.dim() > x.dim() or (constant.dim() == x.dim() and constant.shape[0] != 1):
            raise NotImplementedError("a constant with more axes than the value, or with a batch of its own")
        return x.expand(torch.broadcast_shapes(x.shape, constant.shape))

    def interval_propagate(self, *v: Any) -> Any:
        """The images of both ends, in order: each coordinate of the operator is monotone."""
        given = box_of(v[self.position])
        ends = [self._image(end, self._constants()) for end in given[:2]]
        return make_interval(torch.minimum(*ends), torch.maximum(*ends), given)


class BoundAdd(_WithConstant):
    """x + constant."""

    def forward(self, *inputs: Any) -> Tensor:
        return torch.as_tensor(inputs[0] + inputs[1])

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        return self._broadcast(x, constants[0])

    def offset(self, *constants: Tensor) -> Tensor | None:
        return constants[0]


class BoundSub(_WithConstant):
    """x - constant, or constant - x."""

    nonnegative = False

    def forward(self, *inputs: Any) -> Tensor:
        return torch.as_tensor(inputs[0] - inputs[1])

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        image = self._broadcast(x, constants[0])
        return -image if self.position else image

    def absolute_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        return self._broadcast(x, constants[0])

    def offset(self, *constants: Tensor) -> Tensor | None:
        return constants[0] if self.position else -constants[0]


class BoundMul(_WithConstant):
    """x * constant."""

    nonnegative = False

    def forward(self, *inputs: Any) -> Tensor:
        return torch.as_tensor(inputs[0] * inputs[1])

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        return self._broadcast(x, constants[0]) * constants[0]

    def absolute_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        return self._broadcast(x, constants[0]) * constants[0].abs()


class BoundDiv(LinearOperator):
    """x / constant."""

    nonnegative = False

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        return x / constants[0]

    def absolute_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        return x / constants[0].abs()
