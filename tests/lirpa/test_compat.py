"""The host is imported quietly, builds graphs that compute what the module does, and says clearly when it cannot."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from zonoplug.errors import HostError
from zonoplug.lirpa import compat, host

ROOT = Path(__file__).parents[2]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4 * 36, 3)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.last((torch.relu(self.second(y)) + y).flatten(1))


def bounded(x, radius):
    return compat.BoundedTensor(x, compat.PerturbationLpNorm(norm=np.inf, x_L=x - radius, x_U=x + radius))


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", **environment},
    )


@pytest.mark.parametrize("conv_mode", ["patches", "matrix"])
@pytest.mark.parametrize("method", ["IBP", "CROWN", "alpha-CROWN"])
def test_bounds_of_a_residual_network_hold(conv_mode, method):
    module, x = Residual(), torch.rand(2, 1, 6, 6)
    graph = compat.build(module, x[:1], conv_mode=conv_mode)
    with compat.quietly():
        lower, upper = graph.compute_bounds(x=(bounded(x, 0.1),), method=method)
    samples = x[:, None] + 0.2 * torch.rand(2, 200, 1, 6, 6) - 0.1
    outputs = module(samples.flatten(0, 1)).reshape(2, 200, 3)
    assert (outputs >= lower[:, None] - 1e-5).all() and (outputs <= upper[:, None] + 1e-5).all()


def test_importing_and_building_print_nothing_and_leave_settings_alone():
    code = """
import logging, sys, warnings
import torch
from torch.onnx import symbolic_helper
before = list(warnings.filters), list(logging.getLogger().handlers), sorted(vars(symbolic_helper))
from zonoplug.lirpa import compat
settings = dict(vars(compat.adaptations._exporter_globals()))
compat.build(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), torch.rand(1, 3))
assert before == (list(warnings.filters), list(logging.getLogger().handlers), sorted(vars(symbolic_helper)))
assert getattr(sys.modules.get("numpy.lib.arraysetops"), "__file__", "") is not None
assert settings == vars(compat.adaptations._exporter_globals())
assert not hasattr(torch._C.Node, "__getitem__")
"""
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_operator_is_named(capfd):
    class Inverse(nn.Module):
        def forward(self, x):
            return torch.erfinv(x)

    with pytest.raises(HostError, match="no class for aten::erfinv"):
        compat.build(Inverse(), torch.rand(1, 3))
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_depends_on_the_example_is_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else x - 1

    with warnings.catch_warnings(), pytest.raises(HostError, match="does not compute what the model computes"):
        warnings.simplefilter("ignore")
        compat.build(Branching(), torch.ones(1, 3))


def test_a_failure_inside_the_model_is_a_host_error():
    with pytest.raises(HostError, match="cannot build"):
        compat.build(nn.Linear(3, 2), torch.rand(1, 4))


def test_module_class_device_and_options():
    class Mine(compat.BoundedModule):
        pass

    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = compat.build(
        module, torch.rand(1, 3), device="cpu", module_class=Mine, bound_options={"minimum_sparsity": 0.5}
    )
    assert isinstance(graph, Mine) and not module.training
    assert graph.bound_opts["minimum_sparsity"] == 0.5
    assert compat.takes_batches(graph, module, torch.rand(4, 3))
    assert sum(1 for _ in graph.parameters()) == 4


def test_set_input_marks_what_is_perturbed():
    graph = compat.build(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.rand(1, 3))
    compat.set_input(graph, bounded(torch.rand(2, 3), 0.1))
    assert graph.final_node().perturbed
    assert all(not node.perturbed for node in graph._modules.values() if type(node).__name__ == "BoundParams")


def test_known_intermediate_bounds_are_taken():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = compat.build(module, torch.rand(1, 3))
    x = torch.rand(1, 3)
    relu = next(node for node in graph._modules.values() if type(node).__name__ == "BoundRelu")
    known = {relu.inputs[0].name: (torch.full((1, 4), -9.0), torch.full((1, 4), -8.0))}
    options = {compat.intermediate_bounds_argument(): known}
    with compat.quietly():
        lower, upper = graph.compute_bounds(x=(bounded(x, 0.1),), method="CROWN", **options)
    assert torch.allclose(lower, module[2].bias) and torch.allclose(upper, module[2].bias)


def test_rows_of_outputs_behind_a_product_are_bounded():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, x):
            return torch.matmul(torch.relu(x), self.weight)

    module, x, rows = Product(), torch.rand(2, 3), torch.randn(2, 5, 4)
    graph = compat.build(module, x[:1])
    with compat.quietly():
        lower, upper = graph.compute_bounds(x=(bounded(x, 0.1),), C=rows, method="IBP")
    values = (rows @ module(x)[..., None])[..., 0]
    assert (lower <= values).all() and (values <= upper).all()


def test_a_bias_that_is_nan_stays_nan():
    graph = compat.build(nn.Linear(3, 2), torch.rand(1, 3))
    node = graph.final_node()
    assert node.get_bias(torch.zeros(2, 1, 3), torch.full((1, 3), torch.inf)).isnan().all()


@pytest.mark.parametrize("value", ["9.9", "/nowhere/at/all"])
def test_a_host_that_is_not_there_is_said_in_one_line_with_what_to_type(value):
    code = """
from zonoplug.errors import HostError
try:
    import zonoplug.lirpa.compat
except HostError as error:
    print(error)
"""
    done = run(code, ZONOPLUG_LIRPA=value)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1
    assert "pip install" in done.stdout and "ZONOPLUG_LIRPA" in done.stdout


def test_the_host_logs_through_its_own_logger_only():
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("auto_LiRPA").handlers)
    assert host.HOST_VERSION.startswith(host.SUPPORTED)
