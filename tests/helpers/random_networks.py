"""Small networks over every operator that the checker reads, with random attributes, scales and number types."""

from __future__ import annotations

import itertools

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

OPSETS = (9, 11, 13, 17, 21)
SCALES = (1.0, 1.0, 1.0, 1e6, 1e-6, 1e15, 1e-25)
onnxruntime.set_default_logger_severity(4)


class Builder:
    """A chain of nodes that grows; `branches` are earlier tensors that additions may come back to.

    Attributes:
        value: of the last tensor at a random point, for its shape.
    """

    def __init__(self, seed, shape=None, dtype=None):
        self.random = np.random.default_rng(seed)
        self.dtype = np.dtype(dtype or self.random.choice(["float32", "float32", "float32", "float64"]))
        self.opset = int(self.random.choice(OPSETS))
        shape = shape or [(1, 3), (1, 4), (1, 2, 4), (1, 2, 4, 4), (1, 4, 3, 5)][self.random.integers(5)]
        self.shape = shape
        self.nodes, self.constants, self.numbers = [], {}, itertools.count()
        self.name, self.value = "X", self.random.normal(size=shape).astype(self.dtype)
        self.branches = []
        self.used = []

    def constant(self, value):
        name = f"c{next(self.numbers)}"
        self.constants[name] = np.asarray(value)
        return name

    def numbers_like(self, shape, scale=True):
        """Random constants of the network's number type, some of them zero or equal."""
        values = self.random.normal(size=shape) * (self.random.choice(SCALES) if scale else 1.0)
        values = np.where(self.random.random(shape) < 0.1, 0.0, values)
        return values.astype(self.dtype)

    def add(self, op, *operands, outputs=1, keep=0, **attributes):
        """Append a node; the first of `operands` left out is the last tensor."""
        names = [f"t{next(self.numbers)}" for _ in range(outputs)]
        node = helper.make_node(op, list(operands) or [self.name], names, **attributes)
        feeds = {name: self.constants.get(name) for name in node.input if name}
        feeds |= {name: value for name, value in [*self.branches, (self.name, self.value)] if name in feeds}
        single = helper.make_model(
            helper.make_graph(
                [node],
                "one",
                [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in feeds],
                [helper.make_tensor_value_info(names[keep], TensorProto.FLOAT, None)],
            ),
            opset_imports=[helper.make_opsetid("", self.opset)],
        )
        value = np.asarray(ReferenceEvaluator(single).run(None, feeds)[0])
        if not 0 < value.size <= 200 or value.ndim > 5:
            raise ValueError("too large")
        self.branches.append((self.name, self.value))
        self.nodes.append(node)
        self.name, self.value = names[keep], value
        self.used.append(op)

    def model(self, flatten=True):
        if flatten:
            self.add("Flatten", self.name, axis=1 if self.value.ndim else 0)
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("X", kind, self.shape)],
            [helper.make_tensor_value_info(self.name, kind, None)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def _axis(b):
    return int(b.random.integers(-b.value.ndim, b.value.ndim))


def _ints(b, values):
    return b.constant(np.array(values, np.int64))


def gemm(b):
    if b.value.ndim != 2:
        b.add("Flatten", b.name, axis=int(b.random.integers(0, b.value.ndim + 1)))
    turned, other = (int(b.random.integers(2)) for _ in range(2))
    rows, inner = b.value.shape[::-1] if turned else b.value.shape
    outputs = int(b.random.integers(1, 6))
    weight = b.numbers_like((outputs, inner) if other else (inner, outputs))
    bias_shape = [(outputs,), (1, outputs), (rows, outputs), (1,), (), (rows, 1)][b.random.integers(6)]
    operands = [b.name, b.constant(weight)]
    if b.random.random() < 0.7:
        operands.append(b.constant(b.numbers_like(bias_shape)))
    scale = {"alpha": float(b.random.choice([1.0, 0.5, -3.0, 1e3])), "beta": float(b.random.choice([1.0, 0.0, 2.5]))}
    b.add("Gemm", *operands, transA=turned, transB=other, **(scale if b.random.random() < 0.5 else {}))


def matmul(b):
    if b.random.random() < 0.3 and b.value.ndim >= 2:
        b.add("MatMul", b.constant(b.numbers_like((int(b.random.integers(1, 5)), b.value.shape[-2]))), b.name)
    else:
        b.add("MatMul", b.name, b.constant(b.numbers_like((b.value.shape[-1], int(b.random.integers(1, 5))))))


def _window(b, rank):
    kernel = [int(b.random.integers(1, min(3, size) + 1)) for size in b.value.shape[2:]]
    made = {"kernel_shape": kernel, "strides": [int(b.random.integers(1, 3)) for _ in range(rank)]}
    if b.random.random() < 0.5:
        made["pads"] = [int(b.random.integers(0, size)) for size in kernel * 2]
    elif b.random.random() < 0.3:
        made["auto_pad"] = "VALID"
    return made


def conv(b):
    rank, channels = b.value.ndim - 2, b.value.shape[1]
    if rank < 1:
        raise ValueError("no picture")
    groups = int(b.random.choice([g for g in (1, 1, 2, 4) if channels % g == 0]))
    made = _window(b, rank)
    if b.random.random() < 0.3:
        made["dilations"] = [int(b.random.integers(1, 3)) for _ in range(rank)]
    outputs = groups * int(b.random.integers(1, 3))
    operands = [b.name, b.constant(b.numbers_like((outputs, channels // groups, *made["kernel_shape"])))]
    if b.random.random() < 0.5:
        operands.append(b.constant(b.numbers_like((outputs,))))
    b.add("Conv", *operands, group=groups, **made)


def average_pool(b):
    if b.value.ndim < 3:
        raise ValueError("no picture")
    made = _window(b, b.value.ndim - 2)
    if b.random.random() < 0.2:
        made["ceil_mode"] = int(b.opset >= 10)
    if not made.get("ceil_mode"):
        made.pop("ceil_mode", None)
    b.add("AveragePool", b.name, count_include_pad=int(b.random.integers(2)), **made)


def global_average_pool(b):
    if b.value.ndim < 3:
        raise ValueError("no picture")
    b.add("GlobalAveragePool", b.name)


def batch_normalization(b):
    if b.value.ndim < 2:
        raise ValueError("no channels")
    channels = (b.value.shape[1],)
    parts = [b.numbers_like(channels), b.numbers_like(channels), b.numbers_like(channels)]
    variance = (b.random.random(channels) * b.random.choice([1.0, 1e-6, 0.0])).astype(b.dtype)
    chosen = {"epsilon": float(b.random.choice([1e-5, 1e-3, 0.1]))} if b.random.random() < 0.5 else {}
    b.add("BatchNormalization", b.name, *(b.constant(part) for part in (*parts, variance)), **chosen)


def elementwise(b):
    op = str(b.random.choice(["Add", "Sub", "Mul", "Div"]))
    shape = [size if b.random.random() < 0.6 else 1 for size in b.value.shape][b.random.integers(b.value.ndim + 1) :]
    values = b.numbers_like(shape)
    if op == "Div":
        values = np.where(values == 0, 1, values).astype(b.dtype)
    operands = [b.name, b.constant(values)]
    b.add(op, *(operands[::-1] if op != "Div" and b.random.random() < 0.3 else operands))


def with_itself(b):
    op = str(b.random.choice(["Add", "Add", "Sub"]))
    b.add(op, b.name, b.name)


def residual(b):
    fitting = [name for name, value in b.branches if value.shape == b.value.shape and value.dtype == b.value.dtype]
    if not fitting:
        raise ValueError("nothing to come back to")
    other = str(b.random.choice(fitting))
    b.add(str(b.random.choice(["Add", "Sub"])), *(b.random.permutation([b.name, other]).tolist()))


def sum_of_several(b):
    fitting = [name for name, value in b.branches if value.shape == b.value.shape and value.dtype == b.value.dtype]
    choices = [b.name, *fitting, b.constant(b.numbers_like(b.value.shape[-1:]))]
    count = int(b.random.integers(1, 5))
    b.add("Sum", b.name, *(str(b.random.choice(choices)) for _ in range(count - 1)))


def gather(b):
    axis = _axis(b)
    shape = [(), (1,), (3,), (2, 2)][b.random.integers(4)]
    size = b.value.shape[axis]
    b.add("Gather", b.name, b.constant(b.random.integers(-size if b.opset >= 11 else 0, size, shape)), axis=axis)


def expand(b):
    front = [int(b.random.integers(1, 3))] * int(b.random.integers(0, 2))
    b.add(
        "Expand",
        b.name,
        _ints(b, front + [size if size > 1 else int(b.random.integers(1, 4)) for size in b.value.shape]),
    )


def concat(b):
    axis = _axis(b)
    others = [b.name, *(name for name, value in b.branches if value.shape == b.value.shape)]
    others.append(b.constant(b.numbers_like(b.value.shape)))
    b.add("Concat", b.name, *(str(b.random.choice(others)) for _ in range(b.random.integers(1, 3))), axis=axis)


def tile(b):
    b.add("Tile", b.name, _ints(b, b.random.integers(1, 3, b.value.ndim)))


def split(b):
    axis = _axis(b)
    size = b.value.shape[axis]
    if size < 2:
        raise ValueError("nothing to split")
    first = int(b.random.integers(1, size))
    keep = int(b.random.integers(2))
    if b.opset < 13:
        b.add("Split", b.name, outputs=2, keep=keep, axis=axis, split=[first, size - first])
    else:
        b.add("Split", b.name, _ints(b, [first, size - first]), outputs=2, keep=keep, axis=axis)


def slice_(b):
    axis = _axis(b)
    size = b.value.shape[axis]
    if b.opset < 10:
        b.add(
            "Slice",
            b.name,
            axes=[axis],
            starts=[int(b.random.integers(-size, size))],
            ends=[int(b.random.choice([size, -1, 99]))],
        )
        return
    step = int(b.random.choice([1, 2, -1, -2]))
    ends = (int(b.random.integers(-size, size)), 2**40) if step > 0 else (int(b.random.integers(0, size)), -(2**40))
    b.add("Slice", b.name, _ints(b, ends[:1]), _ints(b, ends[1:]), _ints(b, [axis]), _ints(b, [step]))


def transpose(b):
    chosen = {"perm": b.random.permutation(b.value.ndim).tolist()} if b.random.random() < 0.8 else {}
    b.add("Transpose", b.name, **chosen)


def reshape(b):
    size, first = b.value.size, b.value.shape[0]
    shapes = [[-1], [1, -1], [0, -1], [first, 1, -1], *([2, -1] for _ in range(size % 2 == 0))]
    b.add("Reshape", b.name, _ints(b, shapes[b.random.integers(len(shapes))]))


def flatten(b):
    b.add("Flatten", b.name, axis=int(b.random.integers(-b.value.ndim if b.opset >= 11 else 0, b.value.ndim + 1)))


def squeeze(b):
    axes = [axis for axis, size in enumerate(b.value.shape) if size == 1 and b.random.random() < 0.7]
    if not axes:
        raise ValueError("nothing to squeeze")
    b.add("Squeeze", b.name, _ints(b, axes)) if b.opset >= 13 else b.add("Squeeze", b.name, axes=axes)


def unsqueeze(b):
    axes = [int(b.random.integers(0, b.value.ndim + 1))]
    b.add("Unsqueeze", b.name, _ints(b, axes)) if b.opset >= 13 else b.add("Unsqueeze", b.name, axes=axes)


def clip(b):
    ends = np.sort(b.numbers_like((2,)) + b.random.choice([0.0, 1e3]) * np.array([-1, 1])).astype(b.dtype)
    if b.opset < 11:
        b.add("Clip", b.name, min=float(np.float32(ends[0])), max=float(np.float32(ends[1])))
        return
    low, high = (b.constant(end) if b.random.random() < 0.8 else "" for end in ends)
    b.add("Clip", b.name, low, high)


def leaky_relu(b):
    slope = b.random.choice([None, 0.0, 0.1, 1.0, 1.7, 4.0, -0.5])
    b.add("LeakyRelu", b.name, **({} if slope is None else {"alpha": float(slope)}))


def simple(op):
    def made(b):
        b.add(op, b.name)

    made.__name__ = op.lower()
    return made


def computed_weight(b):
    """A product whose weights are themselves computed by one operation."""
    shape = (b.value.shape[-1], int(b.random.integers(1, 4)))
    before = b.name, b.value
    b.add(
        str(b.random.choice(["Add", "Mul", "Sub"])),
        b.constant(b.numbers_like(shape)),
        b.constant(b.numbers_like(shape)),
    )
    weight = b.name
    b.branches.append((weight, b.value))
    b.name, b.value = before
    b.branches = [pair for pair in b.branches if pair[0] != before[0]]
    b.add("MatMul", b.name, weight)
    b.branches = [pair for pair in b.branches if pair[0] != weight]


OPERATORS = {
    made.__name__.strip("_"): made
    for made in (
        *(
            gemm,
            matmul,
            conv,
            average_pool,
            global_average_pool,
            batch_normalization,
            elementwise,
            with_itself,
            residual,
        ),
        *(sum_of_several, gather, expand, concat, tile, split, slice_, transpose, reshape, flatten, squeeze, unsqueeze),
        *(clip, leaky_relu, computed_weight),
        *map(simple, ("Relu", "Sigmoid", "Tanh", "Identity", "Neg", "Dropout")),
    )
}


def random_model(seed, operator, length=4):
    """A network that contains the named operator, or None if the dice do not allow for it; and the operators in it."""
    shape = None
    if operator in ("conv", "average_pool", "global_average_pool"):
        shape = [(1, 2, 5), (1, 2, 4, 4), (1, 4, 3, 5)][seed % 3]
    b = Builder(
        [seed, list(OPERATORS).index(operator)], shape, "float32" if shape or operator == "leaky_relu" else None
    )
    order = [str(name) for name in b.random.choice(list(OPERATORS), length)]
    place = 0 if shape else int(b.random.integers(length))
    used = set()
    for name in (*order[:place], operator, *order[place:]):
        state = len(b.nodes), b.name, b.value, list(b.branches)
        try:
            OPERATORS[name](b)
            used.add(name)
        except Exception:  # the dice do not fit the shape
            del b.nodes[state[0] :]
            b.name, b.value, b.branches = state[1:]
            if name == operator:
                return None, set()
    if not any("X" in node.input for node in b.nodes):
        return None, set()
    try:
        return b.model(), used
    except Exception:
        return None, set()


def runtime(model, level=None):
    """A function from points (inputs,) to outputs (outputs,), or None if ONNX Runtime does not take the network."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if level is not None:
        options.graph_optimization_level = level
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return None
    fed = session.get_inputs()[0]
    kind = np.float64 if "double" in fed.type else np.float32
    return lambda x: session.run(None, {fed.name: np.asarray(x, kind).reshape(fed.shape)})[0].reshape(-1)


def write_instance(folder, model, lower, upper, rows):
    """The network, and a specification with the rows (coefficients, bound) of one conjunction: (network, spec)."""
    inputs, outputs = len(lower), len(rows[0][0])
    lines = [f"(declare-const X_{i} Real)" for i in range(inputs)] + [
        f"(declare-const Y_{i} Real)" for i in range(outputs)
    ]
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        lines += [f"(assert (>= X_{i} {_text(low)}))", f"(assert (<= X_{i} {_text(high)}))"]
    for row, bound in rows:
        terms = [f"(* {_text(value)} Y_{i})" for i, value in enumerate(row) if value]
        total = terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})"
        lines.append(f"(assert (<= {total} {_text(bound)}))")
    (folder / "n.onnx").write_bytes(model.SerializeToString())
    (folder / "s.vnnlib").write_text("\n".join(lines) + "\n")
    return folder / "n.onnx", folder / "s.vnnlib"


def _text(value):
    return format(np.longdouble(value), ".20e") if value else "0.0"
