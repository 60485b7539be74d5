"""Tiny ONNX models, one for each thing that real ones do."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


def weights(*shape, kind=np.float32, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(kind)


def integers(*values):
    return np.asarray(values, dtype=np.int64)


class Graph:
    """A tiny ONNX model, written node by node."""

    def __init__(self, shape, kind=FLOAT, opset=13, inputs_too=False):
        self.shape, self.kind, self.opset, self.inputs_too = shape, kind, opset, inputs_too
        self.nodes, self.constants, self.last = [], {}, "x"

    def add(self, operator, *inputs, outputs=1, **attributes):
        """Append a node; arrays become initializers, and nothing given means the last output."""
        names = []
        for value in inputs or (self.last,):
            if isinstance(value, np.ndarray):
                name = f"c{len(self.constants)}"
                self.constants[name] = value
                names.append(name)
            else:
                names.append(value)
        made = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, names, made, **attributes))
        self.last = made[0]
        return made[0] if outputs == 1 else made

    def model(self, more_inputs=(), outputs=None):
        inputs = [helper.make_tensor_value_info("x", self.kind, self.shape), *more_inputs]
        if self.inputs_too:
            inputs += [
                helper.make_tensor_value_info(name, self.kind, value.shape) for name, value in self.constants.items()
            ]
        results = [helper.make_tensor_value_info(name, self.kind, None) for name in outputs or [self.last]]
        initializers = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "g", inputs, results, initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=7)

    def save(self, folder, name="model.onnx", **options):
        path = folder / name
        path.write_bytes(self.model(**options).SerializeToString())
        return path


def gemm(shape=(1, 5), **options):
    graph = Graph(shape, **options)
    graph.add("Gemm", graph.last, weights(5, 4), weights(4))
    graph.add("Relu")
    graph.add("Gemm", graph.last, weights(3, 4), weights(3), transB=1)
    return graph


def convolution():
    graph = Graph(["N", 2, 6, 6])
    graph.add("Conv", graph.last, weights(4, 2, 3, 3), weights(4), pads=[1, 1, 1, 1], strides=[2, 2])
    graph.add("BatchNormalization", graph.last, weights(4), weights(4), weights(4), np.abs(weights(4)) + 0.5)
    graph.add("Relu")
    graph.add("Flatten")
    graph.add("Gemm", graph.last, weights(36, 3), weights(3))
    return graph


def residual():
    graph = Graph([1, 2, 4, 4])
    skipped = graph.last
    graph.add("Conv", graph.last, weights(2, 2, 3, 3), pads=[1, 1, 1, 1])
    graph.add("Relu")
    graph.add("Add", graph.last, skipped)
    graph.add("Reshape", graph.last, integers(1, 32))
    graph.add("Gemm", graph.last, weights(32, 3), weights(3))
    return graph


def reshape_of_one():
    graph = Graph([1, 8])
    graph.add("Reshape", graph.last, integers(1, 2, 2, 2))
    graph.add("Conv", graph.last, weights(3, 2, 2, 2))
    graph.add("Reshape", graph.last, integers(1, -1))
    return graph


def matmul_add(rank):
    graph = Graph([1, 4, 5] if rank == 3 else [1, 5])
    graph.add("MatMul", graph.last, weights(5, 4))
    graph.add("Add", graph.last, weights(4))
    graph.add("Relu")
    graph.add("MatMul", graph.last, weights(4, 2))
    graph.add("Add", weights(2), graph.last)
    return graph


def transposed_convolution():
    graph = Graph([1, 2, 3, 3])
    graph.add("ConvTranspose", graph.last, weights(2, 3, 3, 3), weights(3), pads=[1, 1, 1, 1], strides=[2, 2])
    graph.add("Relu")
    return graph


def gathers():
    graph = Graph([1, 6, 2])
    picked = graph.add("Gather", graph.last, integers(0, -1, 2, 2), axis=1)
    single = graph.add("Gather", "x", np.asarray(3, dtype=np.int64), axis=1)
    square = graph.add("Gather", "x", integers(0, 1, 1, 5).reshape(2, 2), axis=1)
    flat = graph.add("Reshape", square, integers(1, -1))
    first = graph.add("Flatten", picked)
    graph.add("Concat", first, single, flat, axis=1)
    return graph


def slices():
    graph = Graph([1, 6, 5])
    graph.add("Slice", graph.last, integers(5, 1), integers(-7, 5), integers(1, -1), integers(-2, 2))
    graph.add("Squeeze", graph.add("Unsqueeze", graph.last, integers(2)), integers(2))
    return graph


def class_token():
    graph = Graph(["N", 3, 4])
    graph.add("Concat", weights(1, 1, 4), graph.last, axis=1)
    graph.add("MatMul", graph.last, weights(4, 4))
    graph.add("Softmax", axis=-1)
    graph.add("ReduceMean", axes=[1], keepdims=0)
    return graph


def one_axis():
    graph = Graph([5])
    graph.add("Sub", graph.last, weights(5))
    graph.add("MatMul", graph.last, weights(5, 4))
    graph.add("Add", graph.last, weights(4))
    graph.add("Relu")
    graph.add("Concat", graph.last, weights(2), axis=0)
    return graph


def one_axis_made_two():
    graph = Graph([5])
    graph.add("Unsqueeze", graph.last, integers(0))
    graph.add("Gemm", graph.last, weights(5, 4), weights(4))
    graph.add("Relu")
    graph.add("Reshape", graph.last, integers(4))
    return graph


def no_batch():
    graph = Graph([3, 5])
    graph.add("Gemm", graph.last, weights(5, 4), weights(4), alpha=0.5)
    graph.add("Transpose", perm=[1, 0])
    graph.add("ReduceSum", graph.last, integers(0), keepdims=0)
    return graph


def weight_on_the_left():
    """W x^T: the batch is on axis 1 in the middle."""
    graph = Graph([1, 5])
    turned = graph.add("Transpose", perm=[1, 0])
    product = graph.add("MatMul", weights(4, 5), turned)
    graph.add("Add", product, weights(4, 1))
    graph.add("Transpose", graph.last, perm=[1, 0])
    return graph


def division_and_powers():
    graph = Graph([1, 5])
    square = graph.add("Pow", graph.last, np.asarray(2.0, np.float32))
    shifted = graph.add("Add", square, np.asarray(1.0, np.float32))
    quotient = graph.add("Div", "x", shifted)
    graph.add("Div", quotient, np.abs(weights(5)) + 1)
    return graph


def clips():
    graph = Graph([1, 6])
    graph.add("Clip", graph.last, np.asarray(-0.2, np.float32), np.asarray(0.3, np.float32))
    low = graph.add("Min", graph.last, weights(6), "x")
    graph.add("Max", low, weights(1, 6))
    return graph


def resize():
    graph = Graph([1, 2, 3, 4])
    graph.add("Resize", graph.last, "", np.asarray([1, 1, 2, 1.5], np.float32), mode="nearest")
    return graph


def newer_operators():
    graph = Graph([1, 4, 6], opset=18)
    graph.add("ReduceMean", graph.last, integers(-1), keepdims=1)
    graph.add("Sub", "x", graph.last)
    parts = graph.add("Split", graph.last, outputs=2, axis=2, num_outputs=2)
    graph.add("Add", *parts)
    graph.add("Pad", graph.last, integers(0, 1, 0, 0, 0, 2), np.asarray(0.5, np.float32))
    return graph


def vector_product():
    graph = Graph([1, 4, 5])
    graph.add("MatMul", graph.last, weights(5))
    graph.add("Relu")
    return graph


GRAPHS = {
    "gemm": gemm,
    "open batch": lambda: gemm(("N", 5)),
    "initializers among the inputs": lambda: gemm(inputs_too=True),
    "old operator set": lambda: gemm(opset=9, inputs_too=True),
    "convolution, batch norm": convolution,
    "residual": residual,
    "reshape to a batch of one": reshape_of_one,
    "product and sum of matrices": lambda: matmul_add(2),
    "product and sum of rank three": lambda: matmul_add(3),
    "transposed convolution": transposed_convolution,
    "gather": gathers,
    "slice": slices,
    "class token": class_token,
    "one axis": one_axis,
    "one axis made two": one_axis_made_two,
    "no batch": no_batch,
    "weight on the left": weight_on_the_left,
    "division and powers": division_and_powers,
    "clip, min, max": clips,
    "resize": resize,
    "newer operators": newer_operators,
    "product with a vector": vector_product,
}
