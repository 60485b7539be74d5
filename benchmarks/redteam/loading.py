"""Classes about the loader: is the loaded network the file's? Resize, pools, casts, and what moves numbers about."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from redteam.draws import Draws
from redteam.graph import SkipError
from redteam.planting import Built
from redteam.stems import Stem, finish, spike, tensor

SCALES = (0.3, 0.5, 0.6, 0.6, 1.7, 0.75, 1.0, 1.3, 1.5, 1.7, 2.0, 2.5, 3.0)
COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")


def _resize(d: Draws, mode: str) -> Built:
    opset = d.choice((13, 17, 18, 19))
    flat = d.flag(0.6)  # one row: fewer places, and each is more often the one that is read
    height, width, channels = (1, d.integer(3, 8), 1) if flat else (d.integer(1, 5), d.integer(2, 6), d.choice((1, 2)))
    stem = tensor(d, [1, channels, height, width], opset=opset)
    coordinates = d.turn(COORDINATES) if mode != "nearest" else d.choice(("half_pixel", *COORDINATES))
    if opset >= 19 and d.flag(0.3):
        coordinates = "half_pixel_symmetric"
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attributes["nearest_mode"] = d.turn(("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"))
    if mode == "cubic":
        attributes["cubic_coeff_a"] = d.choice((-0.75, -0.5))
        attributes["exclude_outside"] = d.choice((0, 0, 1))
    if opset >= 18 and mode != "nearest" and d.flag(0.15):
        attributes["antialias"] = 1
    if d.flag(0.75):
        scales = [1.0, 1.0, 1.0 if flat else d.choice((1.0, *SCALES)), d.choice((0.6, 1.7, 2.0, *SCALES))]
        result = stem.graph.add("Resize", stem.name, "", stem.graph.const(scales, np.float32), **attributes)
        how = "scales"
    else:
        sizes = [1, channels, height if flat else d.integer(1, 8), d.integer(1, 8)]
        result = stem.graph.add("Resize", stem.name, "", "", np.array(sizes), **attributes)
        how = "sizes"
    words = [coordinates, attributes.get("nearest_mode", ""), "antialias" if "antialias" in attributes else "", how]
    return finish(d, stem, result, " ".join(filter(None, words)))


def resize_linear(d: Draws) -> Built:
    return _resize(d, "linear")


def resize_nearest(d: Draws) -> Built:
    return _resize(d, "nearest")


def resize_cubic(d: Draws) -> Built:
    return _resize(d, "cubic")


def pool_attributes(d: Draws, sides: tuple[int, int], kind: str) -> dict[str, Any]:
    """Random attributes of a pool on an image of these sides."""
    kernel = [d.integer(1, min(3, side)) for side in sides]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": [d.integer(1, 3), d.integer(1, 3)]}
    mode = d.choice(("pads", "pads", *["none"] * 7, "SAME_UPPER", "SAME_LOWER", "VALID"))
    if mode == "pads":
        attributes["pads"] = [d.integer(0, kernel[i % 2] - 1) for i in range(4)]
    elif mode != "none":
        attributes["auto_pad"] = mode
    if mode in ("pads", "none") and d.flag(0.2):
        attributes["ceil_mode"] = 1
    if kind == "MaxPool" and mode in ("pads", "none") and d.flag(0.25):
        attributes["dilations"] = [d.integer(1, 2) if kernel[i] * 2 - 1 <= sides[i] else 1 for i in range(2)]
    if kind == "AveragePool" and d.flag(0.4):
        attributes["count_include_pad"] = 1
    if kind == "LpPool":
        attributes["p"] = d.choice((1, 2, 3))
        attributes.pop("ceil_mode", None)
    return attributes


def _pool(d: Draws, kind: str, spiky: float = 0.4, **more: Any) -> Built:
    sides = d.integer(2, 6), d.integer(2, 6)
    stem = tensor(d, [1, d.choice((1, 1, 2)), *sides], spiky=spiky)
    if spiky > 0.5 and d.flag(0.6):  # overlapping windows, as a host bounds badly
        attributes = {"kernel_shape": [d.integer(1, 3), 2], "strides": [d.integer(1, 2), d.integer(1, 2)]}
        stem = tensor(d, [1, 1, d.integer(4, 6), d.integer(4, 6)], opset=d.choice((13, 17)), spiky=spiky)
        result = stem.graph.add("Relu", stem.graph.add(kind, stem.name, **attributes))
        return finish(d, stem, result, "overlapping", how="mix", **more)
    if d.flag(0.05) and kind != "LpPool":
        result, words = stem.graph.add(f"Global{kind}", stem.name), "global"
    else:
        attributes = pool_attributes(d, sides, kind)
        result = stem.graph.add(kind, stem.name, **attributes)
        words = " ".join(sorted(set(attributes) - {"kernel_shape", "strides"})) or "plain"
    if d.flag(0.6):
        result = stem.graph.add("Relu", result)
    return finish(d, stem, result, words, **more)


def maxpool(d: Draws) -> Built:
    return _pool(d, "MaxPool")


def avgpool(d: Draws) -> Built:
    modes = ("root zonotope+crown", "root crown", "root alpha-crown", "root alpha-zonotope+crown")
    return _pool(d, "AveragePool", 0.8, modes=modes, boxes=0.0)


def avgpool_boxes(d: Draws) -> Built:
    return _pool(d, "AveragePool", 0.8, modes=("auto root",), boxes=1.0)


def lppool(d: Draws) -> Built:
    return _pool(d, "LpPool")


def cast_float16(d: Draws) -> Built:
    """A detour through float16 or bfloat16, with or without arithmetic in it."""
    stem = spike(d, opset=d.choice((13, 17))) if d.flag(0.7) else tensor(d, [1, 3])
    graph = stem.graph
    moved = graph.add("Mul", stem.name, d.choice((1.2, 0.3, 0.01, 7.0, 1e5, 1e-7)))
    moved = graph.add("Add", moved, d.choice((0.0, 2048.0, 1.0, 100.0, -30000.0, 65519.0)))
    kind, name = d.choice(
        ((TensorProto.FLOAT16, "float16"), (TensorProto.FLOAT16, "float16"), (TensorProto.BFLOAT16, "bfloat16"))
    )
    half = graph.add("Cast", moved, to=kind)
    if kind == TensorProto.FLOAT16 and d.flag(0.3):
        half = graph.add(
            d.choice(("Add", "Mul")), half, graph.const(np.array(d.choice((0.1, 3.0, 1000.0))), np.float16)
        )
        name += " arithmetic"
    return finish(d, stem, graph.add("Cast", half, to=TensorProto.FLOAT), name)


INTEGERS = {
    "int8": (TensorProto.INT8, 128), "uint8": (TensorProto.UINT8, 256), "int16": (TensorProto.INT16, 32768),
    "uint16": (TensorProto.UINT16, 65536), "int32": (TensorProto.INT32, 2**31), "uint32": (TensorProto.UINT32, 2**32),
    "int64": (TensorProto.INT64, 2**63), "uint64": (TensorProto.UINT64, 2**64), "bool": (TensorProto.BOOL, 2),
}  # fmt: skip


def cast_integer(d: Draws) -> Built:
    """A detour through whole numbers, whose range may be left."""
    name = d.turn(("uint8", "int16", "int8", "int32", "uint8", "int16", *INTEGERS))
    kind, size = INTEGERS[name]
    stem = spike(d) if d.flag(0.9) else tensor(d, [1, 2])
    share = d.choice((0.2, 0.9, 1.0, 1.3))
    start = d.choice((0.0, 0.3, 0.75, 0.6, -0.3))
    moved = stem.graph.add("Mul", stem.name, float(size * share * d.choice((1, 1, -1))))
    moved = stem.graph.add("Add", moved, float(size * start))
    result = stem.graph.add("Cast", stem.graph.add("Cast", moved, to=kind), to=TensorProto.FLOAT)
    return finish(d, stem, result, f"{name} {share:g} from {start:g}")


def cast_double(d: Draws) -> Built:
    """A float32 network that computes in float64 for a while, or a float64 one that goes through float32."""
    outer, inner = d.choice(((np.float32, TensorProto.DOUBLE), (np.float64, TensorProto.FLOAT)))
    back = TensorProto.FLOAT if outer is np.float32 else TensorProto.DOUBLE
    stem = spike(d, outer)
    graph = stem.graph
    moved = graph.add("Add", graph.add("Mul", stem.name, d.choice((1.2, 0.3))), d.choice((0.0, 1e7, 3.0)))
    kind = np.float64 if inner == TensorProto.DOUBLE else np.float32
    cast = graph.add("Add", graph.add("Cast", moved, to=inner), graph.const(np.array(d.choice((0.1, -1e7))), kind))
    return finish(d, stem, graph.add("Cast", cast, to=back), "through the other float")


def max_min(d: Draws) -> Built:
    """Max, Min, Sum and Mean of several tensors of very different scales."""
    stem = spike(d) if d.flag() else tensor(d, [1, d.integer(1, 4)])
    graph, parts = stem.graph, [stem.name]
    for _ in range(d.integer(1, 3)):
        scaled = graph.add("Mul", stem.name, d.choice((1e5, 1e7, -1e5, -1.0, 0.5, 1e-5)))
        parts.append(graph.add("Add", scaled, d.choice((0.0, 0.0, 1.0, -1e5, 1e6))))
    if d.flag(0.3):
        parts.append(graph.const(d.choice((0.0, 1e5, -1e7))))
    kind = d.turn(("Max", "Min", "Sum", "Mean"))
    return finish(d, stem, graph.add(kind, *parts), f"{kind} of {len(parts)}")


def clip(d: Draws) -> Built:
    """Clip with limits far out, close by, or on one side; after large offsets."""
    stem = spike(d) if d.flag() else tensor(d, [1, d.integer(1, 4)])
    offset = d.choice((0.0, 0.0, 1e5, 1e7))
    moved = stem.graph.add("Add", stem.name, offset) if offset else stem.name
    low = d.choice(("", -1e5, -1e7, -0.3, 0.0, -3e38, 0.2))
    high = d.choice(("", 1e5, 1e7, 0.4, 6.0, 3e38, 1.0))
    if isinstance(low, float):
        low += offset
    if isinstance(high, float):
        high += offset
    result = stem.graph.add("Clip", moved, low, high)
    if offset:
        result = stem.graph.add("Sub", result, offset)
    return finish(d, stem, result, f"from {low} to {high}")


def repeated(d: Draws, stem: Stem) -> str:
    """What makes the same number appear several times: an identity that a simplifier may take for more."""
    return str(stem.graph.add(d.choice(("Identity", "Neg")), stem.name))


def dropout(d: Draws) -> Built:
    """Operators that do nothing in inference, with unusual operands."""
    stem = tensor(d, [1, 4])
    graph = stem.graph
    kind = d.turn(("Dropout", "Identity", "Neg Neg", "Add 0", "Pow 1", "Reshape"))
    if kind == "Dropout":
        result = graph.add("Dropout", stem.name, graph.const(0.5, np.float32))
    elif kind == "Neg Neg":
        result = graph.add("Neg", graph.add("Neg", stem.name))
    elif kind == "Add 0":
        result = graph.add("Add", graph.const(-0.0), stem.name)
    elif kind == "Pow 1":
        result = graph.add("Pow", stem.name, 1.0)
    elif kind == "Reshape":
        result = graph.add("Reshape", stem.name, np.array([0, d.choice((2, 4)), -1]))
    else:
        result = graph.add("Identity", stem.name)
    if not result:
        raise SkipError(kind)
    return finish(d, stem, result, kind)
