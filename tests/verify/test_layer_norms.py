"""Networks with layer normalization: bounds hold for what the runtime computes, and properties are proved."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import onnx_graphs as graphs

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.io.onnx_model import load_model
from zonoplug.io.runtime import LEVELS, runtime_operators
from zonoplug.lirpa import compat
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import ZonotopeModule, bound_box
from zonoplug.verify.bounds.sound_bounds import SoundBounds
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.verifier import Verification

INPUTS, WIDTH, SECONDS = 4, 16, 60


def normalize(graph, in_steps, random):
    scale, bias = (random.normal(size=WIDTH).astype(np.float32) for _ in range(2))
    x = graph.last
    if not in_steps:
        graph.add("LayerNormalization", x, scale, bias, epsilon=1e-5)
        return
    deviation = graph.add("Sub", x, graph.add("ReduceMean", x, axes=[-1]))
    variance = graph.add("ReduceMean", graph.add("Pow", deviation, np.float32([2])), axes=[-1])
    root = graph.add("Sqrt", graph.add("Add", variance, np.float32([1e-5])))
    graph.add("Add", graph.add("Mul", graph.add("Div", deviation, root), scale), bias)


def network(seed, in_steps, mean=0.0, layers=2):
    """Affine layers with normalization and ReLU in between; `mean` is that of the first layer's values."""
    random = np.random.default_rng(seed)
    graph, width = graphs.Graph([1, INPUTS], opset=17), INPUTS
    for layer in range(layers):
        offset = random.normal(size=WIDTH) + (mean if layer == 0 else 0)
        graph.add("MatMul", graph.last, random.normal(size=(width, WIDTH)).astype(np.float32))
        graph.add("Add", graph.last, offset.astype(np.float32))
        normalize(graph, in_steps, random)
        graph.add("Relu")
        width = WIDTH
    graph.add("Gemm", graph.last, random.normal(size=(WIDTH, 2)).astype(np.float32), np.zeros(2, np.float32))
    return graph


def outputs_at_every_level(source, points):
    found = []
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        found.append(np.concatenate([session.run(None, {"x": point[None]})[0] for point in points]))
    return np.stack(found)


@pytest.mark.parametrize(
    "in_steps, mean",
    [(False, 0.0), (False, 30.0), (False, 300.0), (True, 0.0), (True, 30.0), (True, 300.0), (True, 3e3), (True, 3e6)],
)
def test_bounds_hold_for_the_runtimes_outputs_at_every_level(in_steps, mean, tmp_path):
    finite = 0
    for seed in range(2):
        model = load_model(network(seed, in_steps, mean).save(tmp_path))
        host = compat.build(model.module, torch.zeros(1, INPUTS), module_class=ZonotopeModule)
        for radius in (0.0, 1e-4, 0.02):
            box = Box.ball(torch.randn(1, INPUTS, generator=torch.Generator().manual_seed(seed)), radius)
            bounds, _ = bound_box(host, box, BoundMethod.parse("zonotope"), rounding="inference")
            computed = torch.from_numpy(outputs_at_every_level(model.source, box.sample(20)[:, 0].numpy()))
            assert not bool(((computed < bounds.lower) | (computed > bounds.upper)).any())  # NaN says nothing
            finite += int(bounds.lower.isfinite().sum())
            backward, _ = SoundBounds(host, takes_batches=True).both_ways(box, torch.eye(2)[None])
            assert not bool((computed < backward.lower).any())
            assert bool(backward.lower.isfinite().all()) or mean >= 1e6
    assert (finite > 0) == (mean < 1e6)


@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("in_steps", [False, True])
def test_properties_are_proved(in_steps, mean, tmp_path):
    graph, radius = network(0, in_steps, mean, layers=1), 0.2
    path, source = graph.save(tmp_path), graph.model().SerializeToString()
    points = np.random.default_rng(1).uniform(-radius, radius, (2000, INPUTS)).astype(np.float32)
    highest = float(outputs_at_every_level(source, points)[..., 0].max())
    text = "".join(f"(declare-const X_{i} Real)\n" for i in range(INPUTS))
    text += "(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
    text += "".join(f"(assert (<= X_{i} {radius}))\n(assert (>= X_{i} -{radius}))\n" for i in range(INPUTS))
    specification = tmp_path / "s.vnnlib"
    specification.write_text(text + f"(assert (>= Y_0 {highest + 0.5}))\n")
    settings = Settings(SECONDS, device="cpu")
    problem = load_problem(path, specification, settings)
    outcome = Verification(problem, settings, Deadline(SECONDS)).run()
    assert "LayerNormalization" in runtime_operators(source)
    assert outcome.verdict is Verdict.HOLDS, outcome.summary()
