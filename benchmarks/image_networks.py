"""Image classifiers with correctly classified images and radii, for benchmarks: from the competition, and bundled.

The competition's networks are used where its instances and the test images are at hand: in ../shared, or where
ZONOPLUG_VNNCOMP and ZONOPLUG_IMAGES point. The bundled digits networks, and a sigmoid and a tanh network that are
trained here on scikit-learn's digits in seconds, are always there.
"""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from model_support import ROOT, default_pack
from torch import Tensor, nn

CIFAR_MEANS, CIFAR_DEVIATIONS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
OVAL_MEANS, OVAL_DEVIATIONS = (0.485, 0.456, 0.406), (0.225, 0.225, 0.225)


@dataclass(frozen=True, slots=True)
class Example:
    """A network with images around which it is bounded.

    Attributes:
        module: maps (batch, *input_shape) to (batch, classes).
        images: (n, *input_shape) as the network takes them, all classified correctly.
        low, high: what the network takes for black and white, broadcast against an image.
        labels: (n,) classes.
    """

    module: nn.Module
    images: Tensor
    low: Tensor
    high: Tensor
    labels: Tensor

    def box(self, index: int, epsilon: float) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds (1, *input_shape) of image `index` with every pixel moved by up to `epsilon`.

        Args:
            epsilon: as a share of the range from black to white, which is not left.
        """
        image, reach = self.images[index : index + 1], epsilon * (self.high - self.low)
        return torch.maximum(image - reach, self.low), torch.minimum(image + reach, self.high)

    def rows(self, index: int) -> Tensor:
        """(1, classes - 1, classes): the image's class minus each other."""
        label = int(self.labels[index])
        classes = self.module(self.images[:1]).shape[1]
        eye = torch.eye(classes, dtype=self.images.dtype)
        others = [rival for rival in range(classes) if rival != label]
        return (eye[label] - eye[others])[None]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a network, radii and how many images.

    Attributes:
        name: for tables.
        load: gives the example.
        epsilons: radii, as shares of the range of a pixel.
        count: images at most.
    """

    name: str
    load: Callable[[], Example]
    epsilons: Sequence[float]
    count: int


def image_folder() -> Path:
    return Path(os.environ.get("ZONOPLUG_IMAGES") or ROOT.parent / "shared" / "images")


def subjects() -> list[Subject]:
    """Every network at hand, small ones first."""
    pack, found = default_pack(), []
    for name, file, epsilons in (
        ("digits", "digits.onnx", (0.03, 0.05)),
        ("digits conv", "digits_conv.onnx", (0.03, 0.05)),
    ):
        path = ROOT / "zonoplug" / "examples" / file
        found.append(Subject(name, partial(_digits, path), epsilons, 40))
    for name, layer in (("digits sigmoid", nn.Sigmoid), ("digits tanh", nn.Tanh)):
        found.append(Subject(name, partial(_trained_digits, layer), (0.02, 0.04), 40))
    mnist, cifar = image_folder() / "mnist_test.csv.gz", image_folder() / "cifar10_test.csv.gz"
    if mnist.is_file():
        for size in (2, 4, 6):
            path = pack / "mnist_fc" / "onnx" / f"mnist-net_256x{size}.onnx.gz"
            found.append(Subject(f"mnist_fc 256x{size}", partial(_mnist, path, False), (0.01, 0.02, 0.03), 20))
        for kind, epsilons in (("point", (0.005, 0.01)), ("set", (0.01, 0.05, 0.1)), ("trades", (0.005, 0.01))):
            path = pack / "cora" / "onnx" / f"mnist-{kind}.onnx.gz"
            found.append(Subject(f"cora mnist-{kind}", partial(_mnist, path, True), epsilons, 20))
    if cifar.is_file():
        oval, resnet = "cifar_base_kw.onnx.gz", "resnet_3b2_bn_mixup_adv_4.0_bs128_lr-1.onnx.gz"
        for name, path, scale, epsilons, count in (
            ("oval21 base", pack / "oval21" / "onnx" / oval, (OVAL_MEANS, OVAL_DEVIATIONS), (0.004, 0.008, 0.016), 10),
            (
                "sri_resnet_a",
                pack / "sri_resnet_a" / "onnx" / resnet,
                (CIFAR_MEANS, CIFAR_DEVIATIONS),
                (0.001, 0.002),
                5,
            ),
            (
                "vit ibp_3_3_8",
                pack / "vit" / "onnx" / "ibp_3_3_8.onnx.gz",
                (CIFAR_MEANS, CIFAR_DEVIATIONS),
                (0.001, 0.004),
                3,
            ),
        ):
            found.append(Subject(name, partial(_cifar, path, scale), epsilons, count))
    present = [subject for subject in found if subject.load.args and _is_there(subject.load.args[0])]
    if len(present) < 6:
        print(
            "Neither the competition's instances nor the test images are at hand: bundled networks only.",
            file=sys.stderr,
        )
    return present


def _is_there(source: object) -> bool:
    return source.is_file() if isinstance(source, Path) else True


def _example(module: nn.Module, images: Tensor, labels: Tensor, low: Tensor, high: Tensor) -> Example:
    with torch.no_grad():
        right = module(images).argmax(dim=1) == labels
    return Example(module, images[right], low, high, labels[right])


def _digits_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    parts = train_test_split(digits.images / 16.0, digits.target, test_size=0.25, random_state=0)
    train_x, test_x, train_y, test_y = (torch.from_numpy(np.asarray(part)) for part in parts)
    return train_x.float().flatten(1), train_y, test_x.float().flatten(1), test_y


def _digits(path: Path) -> Example:
    from zonoplug.io.onnx_model import load_model

    model = load_model(path)
    *_, x, y = _digits_data()
    return _example(model.module, x.reshape(-1, *model.input_shape), y, torch.zeros(()), torch.ones(()))


def _trained_digits(activation: type[nn.Module]) -> Example:
    from train_digits import train

    torch.manual_seed(0)
    sizes = (64, 100, 100, 100)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), activation())]
    module = nn.Sequential(*layers, nn.Linear(100, 10))
    train_x, train_y, x, y = _digits_data()
    train(module, train_x, train_y, noise=0.05, epochs=20)
    return _example(module.requires_grad_(False), x, y, torch.zeros(()), torch.ones(()))


def _read_images(path: Path) -> tuple[Tensor, Tensor]:
    with gzip.open(path, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    return torch.from_numpy(table[:, 1:] / 255), torch.from_numpy(table[:, 0].astype(np.int64))


def _mnist(path: Path, column_by_column: bool) -> Example:
    from zonoplug.io.onnx_model import load_model

    model = load_model(path)
    x, y = _read_images(image_folder() / "mnist_test.csv.gz")
    x = x.reshape(-1, 28, 28).transpose(1, 2).flatten(1) if column_by_column else x
    return _example(model.module, x.reshape(-1, *model.input_shape), y, torch.zeros(()), torch.ones(()))


def _cifar(path: Path, scale: tuple[Sequence[float], Sequence[float]]) -> Example:
    from zonoplug.io.onnx_model import load_model

    model = load_model(path)
    x, y = _read_images(image_folder() / "cifar10_test.csv.gz")
    means, deviations = (torch.tensor(values).reshape(3, 1, 1) for values in scale)
    images = (x.reshape(-1, 32, 32, 3).permute(0, 3, 1, 2) - means) / deviations
    low, high = ((value - means) / deviations for value in (0.0, 1.0))
    return _example(model.module, images.contiguous(), y, low, high)
