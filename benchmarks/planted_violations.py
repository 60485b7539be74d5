"""Small networks with a known counterexample that attacks rarely find: an `unsat` on any of them is wrong.

Each network is made so that its output peaks at one planted point: some are trained to (every other point seen in
training, projected gradient descent included, is pushed below), some have a narrow spike built in. The property says
that the output stays below a threshold just under the planted point's value as ONNX Runtime computes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional

Layer = tuple[str, tuple[Tensor, ...]]
MARGIN = 0.5


@dataclass(frozen=True)
class Planted:
    """A network, an input box [-1, 1]^n, and a point in it whose output is at least the threshold."""

    name: str
    model: bytes
    point: np.ndarray
    threshold: float

    def write(self, folder: Path) -> tuple[Path, Path]:
        """The network and the property `output < threshold` as files."""
        network, spec = folder / f"{self.name}.onnx", folder / f"{self.name}.vnnlib"
        network.write_bytes(self.model)
        count = self.point.size
        lines = [f"(declare-const X_{i} Real)" for i in range(count)] + ["(declare-const Y_0 Real)"]
        lines += [f"(assert (>= X_{i} -1.0))\n(assert (<= X_{i} 1.0))" for i in range(count)]
        spec.write_text("\n".join([*lines, f"(assert (>= Y_0 {self.threshold!r}))"]) + "\n")
        return network, spec

    def output_at_point(self) -> float:
        return float(_runtime(self.model, self.point[None])[0])


def evaluate(layers: list[Layer], x: Tensor) -> Tensor:
    """Outputs (n, 1) of a network given as layers."""
    for kind, weights in layers:
        if kind == "gemm":
            x = functional.linear(x.flatten(1), *weights)
        elif kind == "conv":
            x = functional.conv2d(x, *weights, padding=1)
        elif kind == "residual":
            x = x + torch.relu(functional.linear(x, *weights))
        elif kind == "branches":
            x = torch.relu(functional.linear(x, *weights[:2])) + torch.relu(functional.linear(x, *weights[2:]))
        else:
            x = getattr(torch, kind)(x)
    return x


def as_onnx(layers: list[Layer], shape: tuple[int, ...]) -> bytes:
    """The same network as ONNX."""
    nodes, constants, name = [], [], "X"

    def add(kind: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    for number, (kind, weights) in enumerate(layers):
        held = [f"w{number}_{place}" for place in range(len(weights))]
        constants += [
            numpy_helper.from_array(weight.detach().numpy(), at) for weight, at in zip(weights, held, strict=True)
        ]
        if kind == "gemm":
            flat = add("Flatten", [name]) if len(shape) > 1 and number and layers[number - 1][0] != "gemm" else name
            name = add("Gemm", [flat, *held], transB=1)
        elif kind == "conv":
            name = add("Conv", [name, *held], pads=[1, 1, 1, 1])
        elif kind == "residual":
            name = add("Add", [name, add("Relu", [add("Gemm", [name, *held], transB=1)])])
        elif kind == "branches":
            parts = [add("Relu", [add("Gemm", [name, *some], transB=1)]) for some in (held[:2], held[2:])]
            name = add("Add", parts)
        else:
            name = add(kind.capitalize(), [name])
    nodes[-1].output[0] = "Y"
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, *shape])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, 1])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def fully_connected(random: torch.Generator, activation: str, sizes: tuple[int, ...]) -> list[Layer]:
    layers: list[Layer] = []
    for a, b in itertools.pairwise(sizes):
        layers += [("gemm", _weights(random, (b, a))), (activation, ())]
    return layers[:-1]


def residual(random: torch.Generator, inputs: int, width: int, blocks: int) -> list[Layer]:
    middle: list[Layer] = [("residual", _weights(random, (width, width), 0.5)) for _ in range(blocks)]
    first, last = ("gemm", _weights(random, (width, inputs))), ("gemm", _weights(random, (1, width)))
    return [first, ("relu", ()), *middle, last]


def branched(random: torch.Generator, inputs: int, width: int) -> list[Layer]:
    """Twice the sum of two ReLU layers that read the same."""
    first = ("branches", _weights(random, (width, inputs)) + _weights(random, (width, inputs)))
    second = ("branches", _weights(random, (width, width)) + _weights(random, (width, width)))
    return [first, second, ("gemm", _weights(random, (1, width)))]


def convolutional(random: torch.Generator, side: int, channels: int) -> list[Layer]:
    return [
        ("conv", _weights(random, (channels, 1, 3, 3))),
        ("relu", ()),
        ("conv", _weights(random, (channels, channels, 3, 3))),
        ("relu", ()),
        ("gemm", _weights(random, (16, channels * side * side))),
        ("relu", ()),
        ("gemm", _weights(random, (1, 16))),
    ]


def trained(name: str, layers: list[Layer], shape: tuple[int, ...], seed: int, steps: int = 300) -> Planted:
    """Train a network to peak at a random point, and plant the highest point near it."""
    random = torch.Generator().manual_seed(seed)
    point = (torch.rand(1, *shape, generator=random) * 2 - 1) * 0.9
    weights = [weight.requires_grad_(True) for _, held in layers for weight in held]
    optimiser = torch.optim.Adam(weights, 0.01)
    for step in range(steps):
        others = torch.rand(128, *shape, generator=random) * 2 - 1
        others[:32] = point + (others[:32] - point) * 0.3  # a spike is narrow
        if step % 4 == 0:
            others = _climb(layers, others, 5)
        distance = (others - point).flatten(1).abs().amax(dim=1)
        here, there = evaluate(layers, point)[:, 0], evaluate(layers, others)[distance > 0.05, 0]
        loss = functional.relu(MARGIN - here).sum() + functional.relu(there + MARGIN).mean()
        loss = loss + functional.relu(there + MARGIN).amax()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        nearby = point + 0.05 * (torch.rand(4000, *shape, generator=random) * 2 - 1)
    climbed = _climb(layers, torch.cat([point, nearby.clamp(-1, 1)]), 30, 0.01)
    with torch.no_grad():
        best = climbed[evaluate(layers, climbed)[:, 0].argmax()]
    return _planted(name, as_onnx(layers, shape), best)


def spike(name: str, inputs: int, steepness: float, height: float, seed: int, ends_in_relu: bool = False) -> Planted:
    """A random network plus  height * relu(1 - steepness * sum_i |x_i - p_i|), as one fully connected network."""
    random = torch.Generator().manual_seed(seed)
    point = (torch.rand(inputs, generator=random) * 2 - 1) * 0.9
    width = 12
    (first, offset), (second, shift) = _weights(random, (width, inputs)), _weights(random, (width, width))
    unit = torch.eye(inputs)
    wide = torch.cat([first, unit, -unit]), torch.cat([offset, -point, point])
    middle = torch.zeros(width + 1, width + 2 * inputs)
    middle[:width, :width], middle[width, width:] = second, -steepness
    last = torch.cat([_weights(random, (1, width))[0], torch.tensor([[height]])], dim=1)
    layers: list[Layer] = [
        ("gemm", wide),
        ("relu", ()),
        ("gemm", (middle, torch.cat([shift, torch.ones(1)]))),
        ("relu", ()),
        ("gemm", (last, torch.zeros(1))),
    ]
    layers += [("relu", ())] if ends_in_relu else []
    return _planted(name, as_onnx(layers, (inputs,)), point)


def _planted(name: str, model: bytes, point: Tensor) -> Planted:
    """Put the threshold below the planted value by a little more than float32 may round."""
    at = point.detach().flatten().numpy().astype(np.float32)
    value = float(_runtime(model, at[None])[0])
    return Planted(name, model, at, float(np.float32(value - 1e-4 * max(1.0, abs(value)))))


def _climb(layers: list[Layer], points: Tensor, steps: int, size: float = 0.1) -> Tensor:
    for step in range(steps):
        points = points.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(evaluate(layers, points).sum(), points)
        points = (points + size * (1 - step / steps) * gradient.sign()).clamp(-1, 1)
    return points.detach()


def _weights(random: torch.Generator, shape: tuple[int, ...], scale: float = 1.0) -> tuple[Tensor, Tensor]:
    fan_in = int(np.prod(shape[1:]))
    return torch.randn(shape, generator=random) * scale * (1.5 / fan_in) ** 0.5, 0.1 * torch.randn(
        shape[0], generator=random
    )


def _runtime(model: bytes, points: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    fed = session.get_inputs()[0]
    return np.array([session.run(None, {fed.name: p.reshape(fed.shape)})[0].item() for p in points.astype(np.float32)])


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + seed)


SMALL: dict[str, Callable[[int], Planted]] = {
    "relu": lambda seed: trained("relu", fully_connected(_random(seed), "relu", (4, 16, 16, 1)), (4,), seed),
    "sigmoid": lambda seed: trained(
        "sigmoid", fully_connected(_random(seed), "sigmoid", (3, 12, 8, 1)), (3,), seed, 800
    ),
    "tanh": lambda seed: trained("tanh", fully_connected(_random(seed), "tanh", (4, 12, 12, 1)), (4,), seed, 800),
    "residual": lambda seed: trained("residual", residual(_random(seed), 4, 12, 2), (4,), seed),
    "convolutional": lambda seed: trained("convolutional", convolutional(_random(seed), 4, 4), (1, 4, 4), seed, 150),
    "spike": lambda seed: spike("spike", 5, 40.0, 10.0, seed),
    "needle": lambda seed: spike("needle", 8, 1000.0, 20.0, seed),
    # Rounding in float32 moves the bounds of these by more than their outputs suggest.
    "steep": lambda seed: spike("steep", 1, 1e4, 100.0, 11 + seed),
    "steeper": lambda seed: spike("steeper", 2, 1e6, 50.0, 34 + seed),
    "needle-wide": lambda seed: spike("needle-wide", 40, 2000.0, 50.0, seed),
    # More inputs than can be bisected: signs alone are split.
    "relu-signs": lambda seed: trained(
        "relu-signs", fully_connected(_random(seed), "relu", (70, 12, 12, 12, 1)), (70,), seed, 150
    ),
    "branches-signs": lambda seed: trained("branches-signs", branched(_random(seed), 70, 10), (70,), seed, 150),
    "needle-signs": lambda seed: spike("needle-signs", 70, 2000.0, 50.0, seed, ends_in_relu=True),
}
LARGE: dict[str, Callable[[int], Planted]] = {
    "relu-wide": lambda seed: trained(
        "relu-wide", fully_connected(_random(seed), "relu", (8, 64, 64, 64, 1)), (8,), seed, 600
    ),
    "sigmoid-wide": lambda seed: trained(
        "sigmoid-wide", fully_connected(_random(seed), "sigmoid", (8, 40, 40, 1)), (8,), seed, 600
    ),
    "tanh-wide": lambda seed: trained(
        "tanh-wide", fully_connected(_random(seed), "tanh", (8, 40, 40, 1)), (8,), seed, 600
    ),
    "residual-wide": lambda seed: trained("residual-wide", residual(_random(seed), 8, 40, 3), (8,), seed, 600),
    "convolutional-wide": lambda seed: trained(
        "convolutional-wide", convolutional(_random(seed), 10, 8), (1, 10, 10), seed, 300
    ),
}
