"""Converters of ONNX operators that move values about: shapes, slices, joins."""

from __future__ import annotations

import torch
from torch import nn

from zonoplug.io import torch_operators as operators
from zonoplug.io.converter_call import Call, RefusedError


def reshape(call: Call) -> nn.Module | None:
    """Reshape to a constant shape."""
    target = call.integers(1)
    return None if target is None or call.attribute("allowzero", 0) else operators.Reshape(target)


def slice(call: Call) -> nn.Module | None:
    """Slice with constant limits."""
    starts, ends, axes, steps = (call.integers(position) for position in range(1, 5))
    computed = [position for position in range(1, 5) if call.given(position) and call.integers(position) is None]
    if computed or starts is None or ends is None:
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    return operators.Slice(list(zip(axes, starts, ends, steps, strict=True)))


def gather(call: Call) -> nn.Module | None:
    """Gather at constant indices."""
    indices, axis, shape = call.constant(1), int(call.attribute("axis", 0)), call.output_shape()
    source = call.input_shape()
    axis = axis if source is None else axis % len(source)
    if indices is None or indices.numel() == 0 or call.constant(0) is not None:
        return None
    if indices.dim() > 1 and (shape is None or axis == 0):
        return None
    if bool((indices < 0).any()):
        if source is None:
            return None
        indices = torch.where(indices < 0, indices + source[axis], indices)
    return operators.Gather(axis, indices, None if shape is None else [-1, *shape[1:]])


def expand(call: Call) -> nn.Module | None:
    """Expand to a constant shape."""
    target = call.integers(1)
    return None if target is None else operators.Expand(target)


def split(call: Call) -> nn.Module | None:
    """Split into parts of constant sizes."""
    axis, parts, shape = int(call.attribute("axis", 0)), len(call.node.output_values), call.input_shape()
    if parts == 1:
        return nn.Identity()
    sizes = call.attribute("split") or call.integers(1)
    if sizes is None and not call.given(1) and shape is not None:
        chunk = -(-shape[axis] // parts)
        sizes = [chunk] * (parts - 1) + [shape[axis] - chunk * (parts - 1)]
    return None if sizes is None else operators.Split(sizes, axis)


def squeeze(call: Call) -> nn.Module | None:
    """Squeeze of known axes."""
    shape, axes = call.input_shape(), call.attribute("axes") or call.integers(1)
    if shape is None or (axes is None and call.given(1)):
        return None
    listed = [axis for axis, size in enumerate(shape) if size == 1] if axes is None else axes
    return operators.Squeeze([axis % len(shape) for axis in listed])


def pad(call: Call) -> nn.Module | None:
    """Pad with a constant; margins that are worked out from shapes are read when the module runs."""
    pads, value, axes, shape = call.integers(1), call.constant(2), call.integers(3), call.input_shape()
    if call.computed(3) or (call.given(3) and shape is None):
        raise RefusedError("along computed axes")
    rank = len(shape or ())
    places = None if axes is None else [axis % rank for axis in axes]
    if call.attribute("mode", "constant") != "constant" or call.computed(2):
        if places is not None:
            raise RefusedError("along some axes, not with a constant")
        return None
    fill = 0.0 if value is None else float(value)
    if pads is None:
        call.take(0, 1)
        return operators.ComputedPad(places, fill)
    call.take(0)
    return operators.Pad(operators.every_margin(pads, places, rank), fill)


def scatter_nd(call: Call) -> nn.Module | None:
    """ScatterND that overwrites."""
    return operators.ScatterND() if call.attribute("reduction", "none") == "none" else None


def concat(call: Call) -> nn.Module:
    """Concat."""
    return operators.Concat(int(call.attribute("axis", 0)))


def one_hot(call: Call) -> nn.Module:
    """OneHot."""
    return operators.OneHot(int(call.attribute("axis", -1)))
