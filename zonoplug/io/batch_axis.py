"""Give every activation of an ONNX graph a batch on axis 0, whatever the file's author did with that axis.

An activation is *open* if its axis 0 is the batch already (of size one in the file), *bare* if the file has no such
axis for it, and *turned* if it is a matrix with the batch on axis 1, as W x^T gives. A bare one gains an axis, a turned
one is kept the other way round. Constants have no batch.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from zonoplug.io.batch_rules import (
    SPECIAL,
    BatchGraph,
    CannotCarryBatchError,
    integer,
    reduce_rule,
    set_integer,
    shifted,
)

_UNARY = frozenset(
    "Abs Acos Asin Atan Cast Ceil Celu Clip Cos Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu"
    " Log Mish Neg Not Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Tan Tanh".split()
)
_BROADCASTING = frozenset(
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mul Or PRelu Pow Sub Sum Where Xor".split()
)
_ALONG_AN_AXIS = frozenset("ArgMax ArgMin Hardmax LogSoftmax Softmax Split".split())
_DEFAULT_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1}


class BatchCarrier(BatchGraph):
    """One pass over a graph with constants folded and shapes inferred; `model` is changed."""

    def run(self) -> None:
        """Rewrite the graph. Raises CannotCarryBatchError; the graph is then of no use."""
        value = self.graph.input[0]
        if value.name in self.bare:
            sizes = [1, *(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)]
            value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, sizes))
        for node in list(self.graph.node):
            self._visit(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        del self.graph.value_info[:]
        for value in self.graph.output:
            value.type.tensor_type.ClearField("shape")

    def _visit(self, node: NodeProto) -> None:
        if any(name in self.turned for name in node.input):
            self._visit_turned(node)
        elif any(name in self.bare or name in self.open for name in node.input):
            bare = any(name in self.bare for name in node.input)
            special = SPECIAL.get(node.op_type)
            if special is not None:
                kind = special(self, node, bare)
            elif not bare:
                kind = "open"
            elif node.op_type in _UNARY:
                kind = "bare"
            elif node.op_type in _BROADCASTING:
                kind = self._broadcast(node)
            elif node.op_type in _ALONG_AN_AXIS:
                set_integer(node, "axis", shifted(integer(node, "axis", _DEFAULT_AXIS.get(node.op_type, 0))))
                kind = "bare"
            elif node.op_type.startswith("Reduce"):
                kind = reduce_rule(self, node, bare)
            else:
                raise CannotCarryBatchError(f"{node.op_type} on an activation without a batch")
            {"bare": self.bare, "open": self.open, "turned": self.turned}[kind].update(node.output)
        self.nodes.append(node)

    def _visit_turned(self, node: NodeProto) -> None:
        """Keep matrices with the batch on axis 1 transposed, and transpose constants to match."""
        if any(name in self.bare or name in self.open for name in node.input):
            raise CannotCarryBatchError(f"{node.op_type} of activations with their batch on different axes")
        if node.op_type == "Transpose":
            node.CopyFrom(helper.make_node("Identity", list(node.input), list(node.output), name=node.name))
            self.open.update(node.output)
            return
        if node.op_type == "MatMul" and node.input[0] in self.constants and self.rank(node.input[0]) == 2:
            weight = self.store(np.ascontiguousarray(self.value(node.input[0]).T), node.input[0])
            node.CopyFrom(helper.make_node("MatMul", [node.input[1], weight], list(node.output), name=node.name))
        elif node.op_type in _BROADCASTING:
            for position, name in enumerate(node.input):
                if name in self.constants and self.value(name).size != 1:
                    if self.value(name).ndim != 2:
                        raise CannotCarryBatchError(f"{node.op_type} with a constant that is no matrix")
                    node.input[position] = self.store(np.ascontiguousarray(self.value(name).T), name)
        elif node.op_type not in _UNARY:
            raise CannotCarryBatchError(f"{node.op_type} with the batch on axis 1")
        self.turned.update(node.output)

    def _broadcast(self, node: NodeProto) -> str:
        ranks = {self.rank(name) + (name in self.bare) for name in node.input if name in self.bare | self.open}
        fixed = [len(self.constants[name].dims) for name in node.input if name in self.constants]
        if len(ranks) != 1 or any(rank >= max(ranks) for rank in fixed):
            raise CannotCarryBatchError(f"{node.op_type} of activations of different ranks")
        return "open" if any(name in self.open for name in node.input) else "bare"
