"""The networks and images of explanations.py."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from zonoplug.examples import digits_model
from zonoplug.explain.comparison import Question
from zonoplug.explain.decision import Decision, network_outputs
from zonoplug.explain.influence import SymbolInfluence
from zonoplug.explain.layout import ImageLayout
from zonoplug.explain.region import Region
from zonoplug.io.onnx_model import OnnxModel, load_model

OVAL_MEAN, OVAL_STD = (0.485, 0.456, 0.406), 0.225  # the boxes of its instances are the images under this scaling


@dataclass(frozen=True)
class Net:
    """A network, its images, and how they get into it.

    Attributes:
        eps: radius in pixel values of 0 to 1.
        images: of a file, as (n, channels, height, width) in [0, 1], and their classes.
        one_by_one: whether sufficient sets free single pixels; else superpixels.
    """

    name: str
    path: Path
    eps: float
    images: Callable[[], tuple[Tensor, Tensor]]
    transposed: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: float = 1.0
    one_by_one: bool = True


@dataclass(frozen=True)
class Case:
    """One image of one network."""

    net: Net
    model: OnnxModel
    layout: ImageLayout
    image: Tensor
    number: int
    decision: Decision
    region: Region
    baseline: Tensor
    explainer: SymbolInfluence

    @property
    def question(self) -> Question:
        return Question(
            self.model.module, self.region, self.decision, self.baseline, self.layout, explainer=self.explainer
        )

    def grouped(self, labels: Tensor) -> Region:
        return Region(self.region.point, self.region.box, self.layout.features(labels))


def image_file(path: Path, shape: tuple[int, int, int]) -> Callable[[], tuple[Tensor, Tensor]]:
    """A reader of rows of a class and pixels of 0 to 255, the channels of a pixel side by side."""

    def read() -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(np.loadtxt(gzip.open(path, "rt"), delimiter=","))
        channels, height, width = shape
        return rows[:, 1:].reshape(-1, height, width, channels).permute(0, 3, 1, 2) / 255, rows[:, 0].long()

    return read


def digits() -> tuple[Tensor, Tensor]:
    """The test images of train_digits.py."""
    images, labels = load_digits(return_X_y=True)
    _, kept, _, classes = train_test_split(images, labels, test_size=0.25, random_state=7, stratify=labels)
    return torch.as_tensor(kept / 16).reshape(-1, 1, 8, 8), torch.as_tensor(classes).long()


def nets(shared: Path) -> list[Net]:
    mnist = image_file(shared / "images" / "mnist_test.csv.gz", (1, 28, 28))
    cifar = image_file(shared / "images" / "cifar10_test.csv.gz", (3, 32, 32))
    instances = shared / "vnncomp"
    known = [
        Net("digits 64-64-64-10", digits_model(), 0.03, digits),
        Net("mnist_fc 256x2", instances / "mnist_fc/onnx/mnist-net_256x2.onnx.gz", 0.03, mnist),
        Net("mnist_fc 256x4", instances / "mnist_fc/onnx/mnist-net_256x4.onnx.gz", 0.03, mnist),
        Net("cora mnist-point", instances / "cora/onnx/mnist-point.onnx.gz", 0.02, mnist, transposed=True),
        Net("cora mnist-set", instances / "cora/onnx/mnist-set.onnx.gz", 0.1, mnist, transposed=True),
        Net(
            "oval21 cifar_base_kw",
            instances / "oval21/onnx/cifar_base_kw.onnx.gz",
            0.01,
            cifar,
            mean=OVAL_MEAN,
            std=OVAL_STD,
            one_by_one=False,
        ),
    ]
    return [net for net in known if net.path.exists()]


def cases(net: Net, count: int) -> list[Case]:
    """The first rightly classified images."""
    model = load_model(net.path)
    images, labels = net.images()
    layout = ImageLayout(model.input_shape, *images.shape[1:], net.transposed)
    explainer = SymbolInfluence(model.module)
    mean = torch.tensor(net.mean, dtype=torch.float64)[:, None, None]

    def into_net(image: Tensor) -> Tensor:
        return layout.from_image((image - mean) / net.std)[None].to(model.dtype)

    found: list[Case] = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        point = into_net(image)
        outputs = network_outputs(model.module, point)
        if int(outputs.argmax()) != int(label):
            continue
        low, high = into_net(torch.zeros_like(image)), into_net(torch.ones_like(image))
        region = Region.ball(point, net.eps / net.std, low, high, layout.pixels())
        decision = Decision.between_classes(label[None], outputs.shape[1], outputs)
        found.append(Case(net, model, layout, image.float(), number, decision, region, low, explainer))
        if len(found) == count:
            break
    return found
