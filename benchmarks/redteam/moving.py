"""Classes about operators that move numbers about, and about affine ones: Slice, Gather, Pad, Gemm, Conv and so on."""

from __future__ import annotations

from typing import Any

import numpy as np

from redteam.draws import Draws
from redteam.graph import Graph, SkipError
from redteam.planting import Built
from redteam.stems import Stem, finish, tensor


def _slice(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    axis = d.integer(1, 3)
    size = shape[axis]
    step = d.choice((1, 2, -1, -2))
    ends = (d.integer(-size - 1, size - 1), d.choice((size, 2**31 - 1, -1, 1)))
    start, end = ends if step > 0 else (d.choice((size - 1, -1, 1)), d.choice((-size - 1, 0, -(2**31))))
    where = axis if d.flag() else axis - 4
    return str(graph.add("Slice", x, np.array([start]), np.array([end]), np.array([where]), np.array([step])))


def _gather(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    axis = d.integer(1, 3)
    size = shape[axis]
    many = [d.integer(-size, size - 1) for _ in range(d.integer(1, 4))]
    indices: Any = np.array(many) if d.flag(0.8) else np.array(many[0])
    return str(graph.add("Gather", x, indices, axis=d.choice((axis, axis - 4))))


def _gather_elements(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    axis = d.integer(1, 3)
    indices = d.arrays.integers(-shape[axis], shape[axis], shape)
    return str(graph.add("GatherElements", x, indices, axis=axis))


def _gather_nd(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    indices = np.stack([d.arrays.integers(0, size, 3) for size in shape[:2]], axis=-1)
    return str(graph.add("GatherND", x, indices))


def _scatter_nd(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    indices = np.array([[0, d.integer(0, shape[1] - 1), d.integer(0, shape[2] - 1)]])
    return str(graph.add("ScatterND", x, indices, d.normal(1, shape[3])))


def _expand(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    return str(graph.add("Expand", graph.reduce("ReduceSum", x, [d.integer(1, 3)]), np.array(shape)))


def _tile(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    return str(graph.add("Tile", x, np.array([1, d.integer(1, 3), d.integer(1, 2), d.integer(1, 2)])))


def _concat(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    other = d.choice((x, graph.add("Neg", x), graph.const(d.normal(*shape))))
    parts = [x, other] if d.flag() else [other, x, x]
    return str(graph.add("Concat", *parts, axis=d.choice((1, 2, 3, -1))))


def _split(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    axis = d.integer(1, 3)
    if shape[axis] < 2:
        raise SkipError("nothing to split")
    first = d.integer(1, shape[axis] - 1)
    parts = graph.add("Split", x, np.array([first, shape[axis] - first]), outputs=2, axis=d.choice((axis, axis - 4)))
    return str(graph.add("Concat", parts[1], parts[0], axis=axis) if d.flag() else parts[d.integer(0, 1)])


def _transpose(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    perm = [0, *(1 + int(axis) for axis in d.arrays.permutation(3))]
    return str(graph.add("Transpose", x, perm=perm))


def _pad(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    mode = d.choice(("constant", "constant", "reflect", "edge", *(["wrap"] if graph.opset >= 19 else [])))
    reach = [min(2, size - 1) if mode == "reflect" else 2 for size in shape[2:]]
    least = -1 if mode == "constant" else 0
    pads = [
        0,
        0,
        d.integer(least, reach[0]),
        d.integer(0, reach[1]),
        0,
        0,
        d.integer(0, reach[0]),
        d.integer(least, reach[1]),
    ]
    value = [d.choice((0.0, 0.5, 1e6, -1e6))] if mode == "constant" else []
    return str(graph.add("Pad", x, np.array(pads), *value, mode=mode))


def _depth(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    wide = graph.add("Concat", *[x] * 4, axis=1)
    made = graph.add("DepthToSpace", wide, blocksize=2, mode=d.choice(("DCR", "CRD")))
    return str(graph.add("SpaceToDepth", made, blocksize=2) if d.flag(0.3) else made)


def _squeeze(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    summed = graph.reduce("ReduceSum", x, [2])
    squeezed = graph.add("Squeeze", summed, *([np.array([2])] if d.flag() else []))
    return str(graph.add("Unsqueeze", squeezed, np.array(d.choice(([0], [1], [-1])))))


def _onehot_matmul(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    return str(graph.add("Einsum", x, d.normal(shape[3], 2), equation="abcd,de->abce"))


def _roll(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    return str(graph.add("CumSum", x, np.array(d.integer(1, 3)), exclusive=d.choice((0, 1)), reverse=d.choice((0, 1))))


def _top(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    axis = d.integer(1, 3)
    count = np.array([d.integer(1, shape[axis])])
    return str(graph.add("TopK", x, count, outputs=2, axis=axis, largest=d.choice((0, 1)))[0])


def _trilu(d: Draws, graph: Graph, x: str, shape: list[int]) -> str:
    return str(graph.add("Trilu", x, np.array(d.choice((-1, 0, 1))), upper=d.choice((0, 1))))


MOVES = {
    "slice": _slice, "gather": _gather, "gather elements": _gather_elements, "gather nd": _gather_nd,
    "scatter nd": _scatter_nd, "expand": _expand, "tile": _tile, "concat": _concat, "split": _split,
    "transpose": _transpose, "pad": _pad, "depth to space": _depth, "squeeze": _squeeze, "einsum": _onehot_matmul,
    "cumsum": _roll, "topk": _top, "trilu": _trilu,
}  # fmt: skip


def moves(d: Draws) -> Built:
    """Two operators in a row that move numbers about."""
    shape = [1, d.integer(1, 3), d.integer(1, 3), d.integer(2, 4)]
    stem = tensor(d, shape)
    x, names = stem.name, []
    for _ in range(d.choice((1, 1, 2))):
        at = list(stem.graph.shape_of(x))
        if len(at) != 4 or at[0] != 1:
            break
        names.append(d.choice(list(MOVES)) if names else d.turn(list(MOVES)))
        x = MOVES[names[-1]](d, stem.graph, x, at)
    if d.flag(0.3):
        x = stem.graph.add("Relu", x)
    return finish(d, stem, x, " then ".join(names))


def gemm(d: Draws) -> Built:
    """Gemm with alpha, beta, transposed operands and biases of all shapes; MatMul from both sides and of stacks."""
    stem = tensor(d, [1, 4])
    graph = stem.graph
    kind = d.turn(("gemm", "left", "right", "gemm", "stack", "square"))
    if kind == "gemm":
        attributes: dict[str, Any] = {"alpha": d.choice((1.0, 0.5, -2.0)), "beta": d.choice((1.0, 0.0, 0.3, -1.0))}
        weight = d.normal(4, 3)
        if d.flag():
            attributes["transB"], weight = 1, weight.T
        bias = d.choice((0.7, d.normal(3), d.normal(1, 3), d.normal(1, 1), d.normal(1)))
        x = graph.add("Gemm", stem.name, weight, *([bias] if d.flag(0.85) else []), **attributes)
    elif kind == "left":
        x = graph.add("MatMul", d.normal(3, 4), graph.add("Reshape", stem.name, np.array([1, 4, 1])))
    elif kind == "right":
        x = graph.add("MatMul", graph.add("Reshape", stem.name, np.array([1, 2, 2])), d.normal(2, 3))
    elif kind == "stack":
        x = graph.add("MatMul", graph.add("Reshape", stem.name, np.array([1, 2, 1, 2])), d.normal(1, 2, 2, 3))
    else:
        square = graph.add("Reshape", stem.name, np.array([1, 2, 2]))
        x = graph.add("MatMul", square, graph.add("Transpose", square, perm=[0, 2, 1]))
    return finish(d, stem, x, kind)


def conv(d: Draws) -> Built:
    """Conv and ConvTranspose with groups, dilations, uneven pads and auto_pad."""
    groups = d.choice((1, 1, 2))
    channels, sides = groups * d.integer(1, 2), [d.integer(3, 5), d.integer(3, 5)]
    stem = tensor(d, [1, channels, *sides])
    kernel = [d.integer(1, 3), d.integer(1, 3)]
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "group": groups,
        "strides": [d.integer(1, 2), d.integer(1, 2)],
    }
    mode = d.choice(("pads", "pads", "none", "SAME_UPPER", "SAME_LOWER", "VALID"))
    if mode == "pads":
        attributes["pads"] = [d.integer(0, 2) for _ in range(4)]
    elif mode != "none":
        attributes["auto_pad"] = mode
    if d.flag(0.3):
        attributes["dilations"] = [d.integer(1, 2), d.integer(1, 2)]
    made, transposed = groups * d.integer(1, 2), d.flag(0.35)
    if transposed:
        if d.flag(0.4):
            attributes["output_padding"] = [step - 1 for step in attributes["strides"]]
        weight, kind = d.normal(channels, made // groups, *kernel), "ConvTranspose"
    else:
        weight, kind = d.normal(made, channels // groups, *kernel), "Conv"
    bias = [d.normal(made)] if d.flag() else []
    x = stem.graph.add(kind, stem.name, weight, *bias, **attributes)
    if d.flag(0.4):
        x = stem.graph.add("Relu", x)
    return finish(d, stem, x, f"{kind} {mode}")


def norm(d: Draws) -> Built:
    """Normalisations: of a batch with recorded statistics, and of what is there."""
    kind = d.turn(("batch", "layer", "instance", "lrn", "expanded layer", "l2"))
    stem: Stem = tensor(d, [1, 2, 3, 2])
    graph, x = stem.graph, stem.name
    if kind == "batch":
        variance = np.abs(d.normal(2)) + d.choice((0.1, 1e-6))
        x = graph.add(
            "BatchNormalization", x, d.normal(2), d.normal(2), d.normal(2), variance, epsilon=d.choice((1e-5, 0.1))
        )
    elif kind == "layer":
        axis = d.choice((-1, 2, 1))
        size = graph.shape_of(x)[axis:]
        if graph.opset < 17:
            graph.opset = 17
        x = graph.add(
            "LayerNormalization", x, d.normal(*size), d.normal(*size), axis=axis, epsilon=d.choice((1e-5, 1e-2))
        )
    elif kind == "instance":
        x = graph.add("InstanceNormalization", x, d.normal(2), d.normal(2), epsilon=d.choice((1e-5, 1e-2)))
    elif kind == "lrn":
        x = graph.add("LRN", x, size=d.choice((1, 3)), alpha=d.choice((1e-4, 1.0)), beta=0.75, bias=1.0)
    elif kind == "l2":
        x = graph.add("LpNormalization", x, axis=d.choice((1, 2, 3)), p=d.choice((1, 2)))
    else:
        centred = graph.add("Sub", x, graph.reduce("ReduceMean", x, [-1]))
        spread = graph.reduce("ReduceMean", graph.add("Mul", centred, centred), [-1])
        x = graph.add("Div", centred, graph.add("Sqrt", graph.add("Add", spread, d.choice((1e-5, 1e-2)))))
    return finish(d, stem, x, kind)
