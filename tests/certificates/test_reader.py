"""What the checker's reader must refuse, and uses of operators that it must get right."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from zonoplug.certificates.onnx_reader import read_network
from zonoplug.errors import ZonoplugError


def save(path, nodes, shape=(1, 4), opset=17, kind=TensorProto.FLOAT, **constants):
    """Nodes from X to Y, with float32 constants where nothing else is given."""
    wide = {name: np.asarray(value) for name, value in constants.items()}
    wide = {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in wide.items()}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("X", kind, shape)],
        [helper.make_tensor_value_info("Y", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in wide.items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("else", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=8), path)
    return path


node = helper.make_node
ONES = np.ones(4)
REFUSED = {
    "training dropout": ([node("Dropout", ["X", "", "t"], ["Y"])], {"t": np.array(True)}),
    "training normalisation": (
        [node("BatchNormalization", ["X", *"sbmv"], ["Y", "", ""], training_mode=1)],
        dict.fromkeys("sbmv", ONES),
    ),
    "a variance below 0": ([node("BatchNormalization", ["X", *"sbmv"], ["Y"])], dict.fromkeys("sbmv", -ONES)),
    "limits the wrong way round": ([node("Clip", ["X", "a", "b"], ["Y"])], {"a": np.float32(1), "b": np.float32(0)}),
    "a limit that is NaN": ([node("Clip", ["X", "a"], ["Y"])], {"a": np.float32(np.nan)}),
    "a limit that is no scalar": ([node("Clip", ["X", "a"], ["Y"])], {"a": np.zeros(2)}),
    "a limit that depends on the input": ([node("ReduceMax", ["X"], ["m"]), node("Clip", ["X", "m"], ["Y"])], {}),
    "a slope below 0": ([node("LeakyRelu", ["X"], ["Y"], alpha=-0.5)], {}),
    "a slope that is NaN": ([node("LeakyRelu", ["X"], ["Y"], alpha=float("nan"))], {}),
    "another domain": ([node("Relu", ["X"], ["Y"], domain="else")], {}),
    "numbers at random": ([node("RandomNormal", [], ["r"], shape=[1, 4]), node("Add", ["X", "r"], ["Y"])], {}),
    "a constant computed with care only": ([node("Exp", ["a"], ["e"]), node("Add", ["X", "e"], ["Y"])], {"a": ONES}),
    "constants computed one after the other": (
        [node("Add", ["a", "a"], ["b"]), node("Sub", ["b", "a"], ["c"]), node("Add", ["X", "c"], ["Y"])],
        {"a": ONES},
    ),
    "a weight that is NaN": ([node("Mul", ["X", "a"], ["Y"])], {"a": np.array([1, np.nan, 1, 1])}),
    "a weight that is infinite": ([node("Add", ["X", "a"], ["Y"])], {"a": np.array([1, np.inf, 1, 1])}),
    "division by 0": ([node("Div", ["X", "a"], ["Y"])], {"a": np.array([1, 0, 1, 1])}),
    "weights of another type": ([node("Mul", ["X", "a"], ["Y"])], {"a": np.ones(4, np.float16)}),
    "a product of variables": ([node("Mul", ["X", "X"], ["Y"])], {}),
    "an alpha of 0": ([node("Gemm", ["X", "W"], ["Y"], alpha=0.0)], {"W": np.ones((4, 2))}),
    "an index that depends on the input": ([node("Gather", ["a", "X"], ["Y"])], {"a": ONES}),
    "a shape that depends on the input": ([node("Reshape", ["a", "X"], ["Y"])], {"a": ONES}),
    "an index out of range": ([node("Gather", ["X", "i"], ["Y"], axis=1)], {"i": np.array([4])}),
    "products that do not fit": ([node("MatMul", ["X", "W"], ["Y"])], {"W": np.ones((3, 2))}),
    "a split with an output left out": (  # some versions of ONNX Runtime crash on it
        [node("Split", ["X", "n"], ["", "p"], axis=1), node("Neg", ["p"], ["Y"])],
        {"n": np.array([1, 3])},
    ),
    "a name of nothing": ([node("Add", ["X", "lost"], ["Y"])], {}),
    "a name of two tensors": ([node("Relu", ["X"], ["Y"]), node("Neg", ["X"], ["Y"])], {}),
    "an output without the input": ([node("Neg", ["a"], ["Y"])], {"a": ONES}),
}
PICTURE = {
    "automatic padding": {"auto_pad": "SAME_UPPER"},
    "negative pads": {"pads": [-1, 0, 0, 0]},
    "pads of another rank": {"pads": [1, 1]},
    "a kernel of another shape": {"kernel_shape": [3, 3]},
    "groups that do not fit": {"group": 2},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, name):
    nodes, constants = REFUSED[name]
    with pytest.raises(ZonoplugError):
        read_network(save(tmp_path / "n.onnx", nodes, **constants))


@pytest.mark.parametrize("name", PICTURE)
def test_what_is_refused_of_convolutions(tmp_path, name):
    nodes = [node("Conv", ["X", "W"], ["Y"], **PICTURE[name])]
    with pytest.raises(ZonoplugError, match="Conv"):
        read_network(save(tmp_path / "n.onnx", nodes, (1, 3, 4, 4), W=np.ones((2, 3, 2, 2))))


@pytest.mark.parametrize("opset", [1, 6, 1000])
def test_operator_sets_that_are_too_old_or_too_new_are_refused(tmp_path, opset):
    with pytest.raises(ZonoplugError, match=str(opset)):
        read_network(save(tmp_path / "n.onnx", [node("Relu", ["X"], ["Y"])], opset=opset))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BFLOAT16, TensorProto.UNDEFINED])
def test_other_number_types_are_refused(tmp_path, kind):
    with pytest.raises(ZonoplugError, match="float32 or float64"):
        read_network(save(tmp_path / "n.onnx", [node("Relu", ["X"], ["Y"])], kind=kind))


READ = {
    "a sum of three": ([node("Sum", ["X", "a", "X"], ["Y"])], {"a": np.arange(4.0)}),
    "a sum of one": ([node("Sum", ["X"], ["Y"])], {}),
    "an initializer that is an input too": ([node("Add", ["X", "a"], ["Y"])], {"a": np.arange(4.0)}),
    "no bias": ([node("Gemm", ["X", "W", ""], ["Y"])], {"W": np.arange(8.0).reshape(4, 2)}),
    "a slope above 1": ([node("LeakyRelu", ["X"], ["Y"], alpha=4.0)], {}),
    "backwards": (
        [node("Slice", ["X", "a", "b", "c", "d"], ["Y"])],
        {"a": np.array([3]), "b": np.array([-9]), "c": np.array([-1]), "d": np.array([-2])},
    ),
    "no size asked for": ([node("Reshape", ["X", "s"], ["Y"])], {"s": np.array([0, -1, 2])}),
    "a weight computed once": (
        [node("Sqrt", ["a"], ["b"]), node("Transpose", ["b"], ["c"]), node("MatMul", ["X", "c"], ["Y"])],
        {"a": np.arange(8.0).reshape(2, 4)},
    ),
    "a number cast": (
        [node("Cast", ["a"], ["b"], to=TensorProto.FLOAT), node("Mul", ["X", "b"], ["Y"])],
        {"a": np.array([1, -7, 3, 0])},
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_as_onnx_runtime_reads_it(tmp_path, name):
    nodes, constants = READ[name]
    path = save(tmp_path / "n.onnx", nodes, **constants)
    if "input too" in name:
        model = onnx.load(path)
        model.graph.input.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, (4,)))
        onnx.save(model, path)
    network, source = read_network(path)
    point = np.array([[1.5, -2.0, 0.25, 8.0]], np.float32)
    expected = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, {"X": point})[0]
    np.testing.assert_allclose(network.evaluate(point.astype(float))[0], expected.reshape(-1), rtol=1e-6)
