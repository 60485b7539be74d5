"""Loading ONNX files: what is computed, batches, and that a wrong model is found out."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.onnx_graphs import DOUBLE, FLOAT, GRAPHS, Graph, convolution, gemm, integers, matmul_add, one_axis, weights
from onnx import TensorProto, helper

from zonoplug.errors import HostError, ModelError, ModelMismatchError
from zonoplug.io.agreement import check_agreement
from zonoplug.io.onnx_model import load_model
from zonoplug.lirpa import compat

PACK = Path(os.environ.get("ZONOPLUG_VNNCOMP") or Path(__file__).parents[2].parent / "shared" / "vnncomp")


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
    check_agreement(model, points)
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
