"""Loading ONNX files: what is computed, batches, what is refused, and that a wrong model is found out."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from zonoplug.errors import HostError, ModelError, ModelMismatchError
from zonoplug.io.onnx_model import check_agreement, load_model

FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
PACK = Path(os.environ.get("ZONOPLUG_VNNCOMP") or Path(__file__).parents[2].parent / "shared" / "vnncomp")


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


@pytest.mark.parametrize("name", GRAPHS)
def test_computes_what_onnx_runtime_computes_singly_and_in_batches(name, tmp_path):
    model = load_model(GRAPHS[name]().save(tmp_path))
    points = np.random.default_rng(1).uniform(-1, 1, (4, model.num_inputs))
    check_agreement(model, points)
    assert model.batchable and model.obstacle is None
    assert model.module(torch.zeros(3, *model.input_shape)).shape == (3, *model.output_shape)
    assert model.evaluate(points).shape == (4, model.num_outputs)
    assert not model.module.training and not any(weight.requires_grad for weight in model.module.parameters())


@pytest.mark.parametrize("name", GRAPHS)
def test_the_host_builds_it_and_bounds_hold_in_batches(name, tmp_path):
    compat = pytest.importorskip("zonoplug.lirpa.compat")
    model = load_model(GRAPHS[name]().save(tmp_path))
    x = torch.rand(3, *model.input_shape) - 0.5
    graph = compat.build(model.module, x[:1])
    assert compat.takes_batches(graph, model.module, x)
    box = compat.PerturbationLpNorm(norm=np.inf, x_L=x - 0.1, x_U=x + 0.1)
    with compat.quietly():
        lower, upper = graph.compute_bounds(x=(compat.BoundedTensor(x, box),), method="IBP")
    for _ in range(50):
        y = model.module(x + 0.2 * torch.rand_like(x) - 0.1)
        assert ((lower - 1e-5 <= y) & (y <= upper + 1e-5)).all()


def test_shapes_and_types(tmp_path):
    model = load_model(convolution().save(tmp_path))
    assert (model.input_shape, model.output_shape, model.declared_shape) == ((2, 6, 6), (3,), (1, 2, 6, 6))
    assert model.dtype == torch.float32 and model.input_name == "x"
    bare = load_model(one_axis().save(tmp_path))
    assert (bare.input_shape, bare.output_shape, bare.declared_shape) == ((5,), (6,), (5,))


def test_double_precision(tmp_path):
    graph = Graph([1, 5], kind=DOUBLE)
    graph.add("Gemm", graph.last, weights(5, 4, kind=np.float64), weights(4, kind=np.float64))
    graph.add("Relu")
    model = load_model(graph.save(tmp_path))
    assert model.dtype == torch.float64
    points = np.random.default_rng(0).uniform(-1, 1, (3, 5))
    check_agreement(model, points, tolerance=1e-12)
    assert model.evaluate(points).dtype == np.float64


def test_matrix_product_and_sum_become_one_gemm_but_not_above_rank_two(tmp_path):
    def kinds(rank):
        return [type(layer).__name__ for layer in load_model(matmul_add(rank).save(tmp_path)).module.children()]

    assert kinds(2).count("Linear") == 2
    assert "OnnxMatMul" in kinds(3)


def test_gzip(tmp_path):
    plain = gemm().save(tmp_path)
    packed = tmp_path / "model.onnx.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    points = np.ones((1, 5))
    assert np.array_equal(load_model(packed).evaluate(points), load_model(plain).evaluate(points))


def test_first_output_is_taken_and_unused_inputs_do_not_matter(tmp_path):
    graph = gemm()
    first = graph.last
    graph.add("Exp")
    unused = helper.make_tensor_value_info("unused", FLOAT, ["N", 7])
    model = load_model(graph.save(tmp_path, more_inputs=[unused], outputs=[first, graph.last]))
    check_agreement(model, np.ones((2, 5)))
    assert model.output_name == first and model.output_shape == (3,)


@pytest.mark.parametrize("how", ["weight", "nan"])
def test_a_wrong_model_is_found_out(how, tmp_path):
    model = load_model(gemm().save(tmp_path))
    points = np.random.default_rng(0).uniform(-1, 1, (5, 5))
    check_agreement(model, points)
    layer = next(layer for layer in model.module.modules() if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        layer.weight[0, 0] += 0.05 if how == "weight" else torch.nan
    with pytest.raises(ModelMismatchError, match=r"output \d.*ONNX Runtime"):
        check_agreement(model, points)


def test_a_model_that_mixes_its_batch_goes_point_by_point(tmp_path):
    graph = Graph([1, 4])
    graph.add("CumSum", graph.last, np.asarray(0, np.int64))
    graph.add("Gemm", graph.last, weights(4, 3), weights(3))
    model = load_model(graph.save(tmp_path))
    assert not model.batchable
    check_agreement(model, np.random.default_rng(0).uniform(-1, 1, (3, 4)))


def test_a_structure_that_depends_on_the_input_is_never_traced(tmp_path):
    compat = pytest.importorskip("zonoplug.lirpa.compat")
    graph = Graph([1, 4])
    index = graph.add("Cast", graph.add("Gather", "x", integers(0), axis=1), to=TensorProto.INT64)
    start = graph.add("Reshape", index, integers(1))
    end = graph.add("Add", start, integers(2))
    graph.add("Slice", "x", start, end, integers(1))
    model = load_model(graph.save(tmp_path))
    check_agreement(model, np.array([[0.0, 1, 2, 3], [1, 5, 6, 7], [2, 8, 9, 10]]))
    assert "Slice" in model.obstacle
    with pytest.raises(HostError, match="values of the input"):
        compat.build(model.module, torch.zeros(1, 4))


def several_inputs(folder):
    graph = gemm()
    graph.add("Add", graph.last, "z")
    return graph.save(folder, more_inputs=[helper.make_tensor_value_info("z", FLOAT, [1, 3])])


def external_data(folder):
    model = gemm().model()
    onnx.save_model(model, folder / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    (folder / "m.bin").unlink()
    return folder / "m.onnx"


def damaged(content):
    def write(folder):
        path = folder / "model.onnx"
        path.write_bytes(content(gemm().save(folder, "whole.onnx").read_bytes()))
        return path

    return write


def with_node(operator, domain="", shape=(1, 5), kind=FLOAT, **attributes):
    def write(folder):
        graph = Graph(list(shape), kind=kind)
        graph.add(operator, domain=domain, **attributes)
        return graph.save(folder)

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: folder / "absent.onnx", "No such file"),
        (lambda folder: folder, "cannot be read"),
        (damaged(lambda data: data[: len(data) // 2]), "not an ONNX file, or is cut short"),
        (damaged(lambda data: b""), "not an ONNX file"),
        (damaged(lambda data: b"(declare-const X_0 Real)\n"), "not an ONNX file"),
        (damaged(lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS pointer"),
        (damaged(lambda data: gzip.compress(data)[:-20]), "damaged gzip"),
        (with_node("Frobnicate"), "unknown operator Frobnicate"),
        (with_node("Frobnicate", domain="acme"), "unknown operator acme.Frobnicate"),
        (with_node("Relu", shape=(1, "length")), "only the batch"),
        (with_node("Abs", kind=TensorProto.INT64), "type INT64"),
        (with_node("Det", shape=(1, 3, 3)), "operator Det"),
        (several_inputs, r"2 inputs \(x, z\)"),
        (external_data, "weights in another file"),
    ],
)
def test_bad_files_are_refused_in_one_line_that_names_them(write, message, tmp_path, capfd):
    path = write(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.skipif(not PACK.is_dir(), reason=f"no competition models at {PACK}")
@pytest.mark.parametrize("folder", sorted(path.name for path in PACK.iterdir()) if PACK.is_dir() else [])
def test_competition_models_agree_with_onnx_runtime(folder):
    for path in sorted((PACK / folder / "onnx").rglob("*.onnx*")):
        try:
            model = load_model(path)
        except ModelError as error:
            assert "Git LFS" in str(error)
            continue
        check_agreement(model, np.random.default_rng(0).uniform(0, 1, (3, model.num_inputs)))
