"""Train the bundled example networks on scikit-learn's digits, and write them with two properties.

    .venv/bin/python benchmarks/train_digits.py

Writes digits.onnx, digits_conv.onnx, digits_holds.vnnlib and digits_violated.vnnlib into zonoplug/examples. Takes about
ten seconds on one core. Before the files are written, the script checks that a plain zonotope pass proves the first
property, and that ONNX Runtime confirms a counterexample to the second. ONNX is written node by node, as torch's own
exporter would need another package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

SEED = 7
RADIUS_HOLDS = 0.015
RADIUS_VIOLATED = 0.15
OPSET = 13
EXAMPLES = Path(__file__).resolve().parent.parent / "zonoplug" / "examples"


class ResidualNet(nn.Module):
    """Conv, batch norm, ReLU; one residual block; a linear layer. Input (batch, 1, 8, 8), output (batch, 10)."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.linear = nn.Linear(channels * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.norm1(self.conv1(x)))
        block = self.conv3(torch.relu(self.norm2(self.conv2(first))))
        return self.linear(torch.flatten(torch.relu(first + block), 1))


def train(model: nn.Module, x: Tensor, y: Tensor, noise: float, epochs: int) -> None:
    """Cross entropy on images with uniform noise of the given radius; the noise makes small radii provable."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * ((len(x) + 63) // 64))
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            noisy = (x[batch] + noise * (2 * torch.rand_like(x[batch]) - 1)).clamp(0, 1)
            loss = nn.functional.cross_entropy(model(noisy), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of images (in 0..1) whose largest output is their class."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


class OnnxWriter:
    """Collects nodes and their weights into a model of one input and one output."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.input_shape = input_shape

    def add(
        self, op: str, inputs: list[str], output: str, weights: dict[str, Tensor] | None = None, **attributes
    ) -> str:
        """Append a node; `weights` become its further inputs, named "output.key". Returns `output`."""
        names = list(inputs)
        for key, value in (weights or {}).items():
            names.append(f"{output}.{key}")
            self.weights.append(numpy_helper.from_array(value.detach().numpy(), names[-1]))
        self.nodes.append(helper.make_node(op, names, [output], name=output, **attributes))
        return output

    def gemm(self, source: str, output: str, layer: nn.Linear) -> str:
        return self.add("Gemm", [source], output, {"weight": layer.weight, "bias": layer.bias}, transB=1)

    def conv(self, source: str, output: str, layer: nn.Conv2d) -> str:
        weights = {"weight": layer.weight} | ({} if layer.bias is None else {"bias": layer.bias})
        pads = [layer.padding[0], layer.padding[1]] * 2
        return self.add("Conv", [source], output, weights, pads=pads, strides=list(layer.stride), kernel_shape=[3, 3])

    def norm(self, source: str, output: str, layer: nn.BatchNorm2d) -> str:
        keys = {"weight": layer.weight, "bias": layer.bias, "mean": layer.running_mean, "var": layer.running_var}
        return self.add("BatchNormalization", [source], output, keys, epsilon=layer.eps)

    def model(self, name: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, self.input_shape)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, (1, 10))],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="zonoplug")
        model.ir_version = 8
        onnx.checker.check_model(model, full_check=True)
        return model


def export_dense(model: nn.Sequential) -> onnx.ModelProto:
    writer = OnnxWriter((1, 64))
    name = "input"
    for index, layer in enumerate(model):
        output = "output" if index == len(model) - 1 else f"layer{index}"
        name = writer.gemm(name, output, layer) if isinstance(layer, nn.Linear) else writer.add("Relu", [name], output)
    return writer.model("digits")


def export_residual(model: ResidualNet) -> onnx.ModelProto:
    writer = OnnxWriter((1, 1, 8, 8))
    first = writer.norm(writer.conv("input", "conv1", model.conv1), "norm1", model.norm1)
    first = writer.add("Relu", [first], "relu1")
    block = writer.norm(writer.conv(first, "conv2", model.conv2), "norm2", model.norm2)
    block = writer.conv(writer.add("Relu", [block], "relu2"), "conv3", model.conv3)
    total = writer.add("Relu", [writer.add("Add", [first, block], "add")], "relu3")
    writer.gemm(writer.add("Flatten", [total], "flatten", axis=1), "output", model.linear)
    return writer.model("digits_conv")


def zonotope_margin(model: nn.Sequential, lower: Tensor, upper: Tensor, label: int) -> float:
    """A lower bound of min_j (y_label - y_j) over the box, by one zonotope pass: the property holds if it is > 0.

    Symbols are the rows of `generators`. ReLU on [l, u] with l < 0 < u: slope s = u / (u - l), offset and radius
    both -s l / 2, the smallest-area enclosure. Written out here so that the example needs nothing but torch.
    """
    center, generators = (lower + upper) / 2, torch.diag((upper - lower) / 2)
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
            center, generators = weight @ center + bias, generators @ weight.T
        else:
            radius = generators.abs().sum(0)
            low, high = center - radius, center + radius
            crossing = (low < 0) & (high > 0)
            slope = torch.where(crossing, high / (high - low), (low >= 0).double())
            extra = torch.where(crossing, -slope * low / 2, torch.zeros_like(low))
            center = slope * center + extra
            generators = torch.cat([generators * slope, torch.diag(extra)[crossing]])
    margins = center[label] - center - (generators[:, [label]] - generators).abs().sum(0)
    return float(margins[torch.arange(10) != label].min())


def attack(model: nn.Module, lower: Tensor, upper: Tensor, label: int, steps: int = 200) -> Tensor:
    """Projected gradient descent on max_j y_j - y_label from 64 random starts; returns the best point found."""
    point = (lower + (upper - lower) * torch.rand(64, len(lower))).requires_grad_()
    others = torch.arange(10) != label
    for step in range(steps):
        outputs = model(point)
        margin = outputs[:, others].amax(1) - outputs[:, label]
        (gradient,) = torch.autograd.grad(margin.sum(), point)
        rate = 0.1 * (1 - step / steps)
        moved = point.detach() + rate * (upper - lower) * gradient.sign()
        point = moved.clamp(lower, upper).requires_grad_()
    outputs = model(point)
    return point[(outputs[:, others].amax(1) - outputs[:, label]).argmax()].detach()


def write_spec(path: Path, lower: NDArray[np.float64], upper: NDArray[np.float64], label: int, comment: str) -> None:
    """VNN-LIB 1.0: the box, and the unsafe outputs, where some other class is at least as large as `label`."""
    lines = [f"; {comment}", ""]
    lines += [f"(declare-const X_{index} Real)" for index in range(64)]
    lines += [f"(declare-const Y_{index} Real)" for index in range(10)]
    for index in range(64):
        # A bound is a multiple of 1/16 plus or minus the radius: six digits are exact.
        lines += [f"(assert (>= X_{index} {lower[index]:.6f}))", f"(assert (<= X_{index} {upper[index]:.6f}))"]
    rows = [f"    (and (>= Y_{index} Y_{label}))" for index in range(10) if index != label]
    path.write_text("\n".join([*lines, "(assert (or", *rows, "))", ""]))


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim]
    return np.concatenate([session.run(None, {"input": row.reshape(shape)})[0] for row in x])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=EXAMPLES, help="where the files go (default: zonoplug/examples)")
    folder: Path = parser.parse_args().folder
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    parts = train_test_split(images, labels, test_size=0.25, random_state=SEED, stratify=labels)
    x, x_test, y, y_test = (torch.as_tensor(part) for part in parts)

    dense = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    train(dense, x, y, noise=0.1, epochs=60)
    residual = ResidualNet()
    train(residual, x.reshape(-1, 1, 8, 8), y, noise=0.05, epochs=60)
    dense_share = accuracy(dense, x_test, y_test)
    residual_share = accuracy(residual, x_test.reshape(-1, 1, 8, 8), y_test)
    print(f"accuracy on {len(x_test)} test images: digits {dense_share:.3f}, digits_conv {residual_share:.3f}")
    if min(dense_share, residual_share) < 0.95:
        raise SystemExit("an accuracy is below 0.95: nothing was written")
    digits, digits_conv = export_dense(dense), export_residual(residual)
    for model, module, shape in ((digits, dense, (-1, 64)), (digits_conv, residual, (-1, 1, 8, 8))):
        with torch.no_grad():
            expected = module(x_test[:20].reshape(shape)).numpy()
        np.testing.assert_allclose(run(model, x_test[:20].numpy()), expected, rtol=1e-4, atol=1e-4)

    # The first test image whose small box a zonotope proves and whose large box has a counterexample.
    for image, label in zip(x_test, y_test.tolist(), strict=True):
        boxes = [((image - r).clamp(0, 1), (image + r).clamp(0, 1)) for r in (RADIUS_HOLDS, RADIUS_VIOLATED)]
        margin = zonotope_margin(dense, boxes[0][0].double(), boxes[0][1].double(), label)
        point = attack(dense, *boxes[1], label).numpy()
        outputs = run(digits, point[None])[0]
        if margin > 0.5 and np.delete(outputs, label).max() > outputs[label] + 0.5:
            break
    else:
        raise SystemExit("no test image fits the two radii: nothing was written")
    print(f"image of a {label}: at radius {RADIUS_HOLDS} the zonotope margin is {margin:.3f} (holds);")
    print(
        f"at radius {RADIUS_VIOLATED} ONNX Runtime says class {outputs.argmax()} for a point that was found (violated)"
    )
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(digits, folder / "digits.onnx")
    onnx.save(digits_conv, folder / "digits_conv.onnx")
    exact = image.double().numpy()
    for name, radius in (("holds", RADIUS_HOLDS), ("violated", RADIUS_VIOLATED)):
        comment = f"Every image within {radius} (largest pixel difference) of a test image of a {label} is a {label}: "
        comment += {"holds": "this holds (unsat).", "violated": "this is violated (sat)."}[name]
        lower, upper = np.clip(exact - radius, 0, 1), np.clip(exact + radius, 0, 1)
        write_spec(folder / f"digits_{name}.vnnlib", lower, upper, label, comment)


if __name__ == "__main__":
    main()
