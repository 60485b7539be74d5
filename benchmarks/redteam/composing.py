"""Classes of whole networks: chains of any operators with branches that meet again, and unusual interfaces."""

from __future__ import annotations

from typing import Any

import numpy as np

from redteam.draws import Draws
from redteam.functions import UNARY
from redteam.graph import Graph, SkipError
from redteam.loading import SCALES, pool_attributes
from redteam.moving import MOVES
from redteam.planting import Built
from redteam.stems import Stem, finish, spike, tensor


def _step(d: Draws, graph: Graph, x: str, shape: list[int]) -> tuple[str, str]:
    """One operator on an image (1, channels, height, width): its result and its name."""
    kind = d.choice(("function", "function", "move", "conv", "pool", "norm", "resize", "softmax", "matmul", "reduce"))
    sides = (shape[2], shape[3])
    if kind == "function":
        name = d.choice(list(UNARY))
        return UNARY[name](graph, x), name
    if kind == "move":
        name = d.choice(list(MOVES))
        return MOVES[name](d, graph, x, shape), name
    if kind == "conv":
        kernel = [min(2, side) for side in sides]
        weight = d.normal(d.integer(1, 2), shape[1], *kernel)
        return graph.add("Conv", x, weight, pads=[0, 0, 1, d.integer(0, 1)]), kind
    if kind == "pool":
        name = d.choice(("MaxPool", "AveragePool"))
        return graph.add(name, x, **pool_attributes(d, sides, name)), name
    if kind == "norm":
        c = shape[1]
        return graph.add("BatchNormalization", x, d.normal(c), d.normal(c), d.normal(c), d.uniform(0.1, 2, c)), kind
    if kind == "resize":
        scales = graph.const([1.0, 1.0, d.choice(SCALES), d.choice(SCALES)], np.float32)
        mode = d.choice(("nearest", "linear"))
        return graph.add("Resize", x, "", scales, mode=mode, coordinate_transformation_mode="asymmetric"), kind
    if kind == "softmax":
        return graph.add("Softmax", x, axis=d.choice((1, 2, 3, -1))), kind
    if kind == "matmul":
        return graph.add("MatMul", x, d.normal(shape[3], d.integer(1, 3))), kind
    name = d.choice(("ReduceMax", "ReduceMean", "ReduceSum", "ReduceMin"))
    return graph.reduce(name, x, [d.integer(1, 3)]), name


def chain(d: Draws) -> Built:
    """Two to five operators of any kind, some of whose results are added to, or multiplied by, what they came from."""
    stem = tensor(d, [1, d.integer(1, 2), d.integer(1, 3), d.integer(2, 3)])
    graph, x, names = stem.graph, stem.name, []
    for _ in range(d.integer(2, 5)):
        shape = list(graph.shape_of(x))
        if len(shape) != 4 or shape[0] != 1 or np.prod(shape) > 200:
            break
        made, name = _step(d, graph, x, shape)
        names.append(name)
        if list(graph.shape_of(made)) == shape and d.flag(0.4):
            made = graph.add(d.choice(("Add", "Sub", "Mul", "Max", "Min")), *d.choice(((made, x), (x, made))))
            names[-1] += " joined"
        x = made
    return finish(d, stem, x, " > ".join(names))


class _Declared(Graph):
    """A graph whose input is declared in another way than it is fed."""

    declared: Any = None
    as_nodes = False

    def model(self, output: str, name: str = "Y") -> bytes:
        import onnx
        from onnx import helper

        model = onnx.load_model_from_string(super().model(output, name))
        if self.declared is not None and name == "Y":
            kind = model.graph.input[0].type.tensor_type.elem_type
            model.graph.input[0].CopyFrom(helper.make_tensor_value_info("X", kind, self.declared))
        if self.as_nodes:  # weights as Constant nodes
            made = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
            nodes = [*made, *model.graph.node]
            del model.graph.initializer[:]
            del model.graph.node[:]
            model.graph.node.extend(nodes)
        return bytes(model.SerializeToString())


def interface(d: Draws) -> Built:
    """A spike behind inputs of unusual shape: no batch axis, an open one, many axes; weights as nodes."""
    count = d.choice((4, 6))
    kind = d.turn(("no batch", "open batch", "many axes", "constants as nodes", "batch of two axes"))
    shapes = {"no batch": [count], "many axes": [1, 2, 1, count // 2], "batch of two axes": [1, 1, count]}
    graph = _Declared(shapes.get(kind, [1, count]), np.float32, d.choice((13, 17)))
    graph.as_nodes = kind == "constants as nodes"
    if kind == "open batch":
        graph.declared = ["N", count]
    model = spike(d, inputs=count)
    rename = {"X": graph.rows("X")}
    if model.graph.count != count:
        raise SkipError("another size")
    graph.constants += [_renamed(tensor) for tensor in model.graph.constants]
    for node in model.graph.nodes:
        names = [rename.get(item) or f"s{item}" for item in node.input]
        made = graph.add(node.op_type, *names)
        rename[node.output[0]] = made
    stem = Stem(graph, rename[model.name], model.low, model.high, model.points, "spike")
    x = graph.add(d.choice(("Identity", "Neg", "Exp")), stem.name)
    if d.flag(0.3):
        x = graph.add("Reshape", x, np.array(d.choice(([1], [1, 1, 1], [-1]))))
    return stem.built(x, kind)


def _renamed(tensor: Any) -> Any:
    copy = type(tensor)()
    copy.CopyFrom(tensor)
    copy.name = f"s{tensor.name}"
    return copy
