"""Symbol influence beside the attribution methods that people use, through one interface.

    ATTRIBUTIONS.get("rise")(question)      # a map for one input

All of them explain the same scalar, the least margin of the decision. Those that mask or shift the input do it on the
image, where the input is one. Most are captum's; RISE is ours, as captum has none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zonoplug.domain.input_sets import Box
from zonoplug.errors import SettingError
from zonoplug.explain.decision import Decision
from zonoplug.explain.groups import INSTALL, grid
from zonoplug.explain.influence import SymbolInfluence
from zonoplug.explain.layout import ImageLayout
from zonoplug.explain.region import Region, single_features
from zonoplug.registry import Registry

RISE_PROBABILITY = 0.5
EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One input and what is to be explained about it.

    Attributes:
        network: (n, *shape) to (n, *outputs).
        region: the point, and the box that symbol influence propagates.
        decision: one element; its least margin is the scalar explained.
        baseline: (1, *shape) what a missing input looks like.
        layout: of the image that the input is; None for tables.
        samples: evaluations of the network that sampling methods may use.
        cells: side of the grid of patches that LIME and KernelSHAP switch on and off, and of RISE's masks.
        seed: of random choices.
        explainer: for symbol influence; made from the network by default.
    """

    network: nn.Module
    region: Region
    decision: Decision
    baseline: Tensor
    layout: ImageLayout | None = None
    samples: int = 500
    cells: int = 7
    seed: int = 0
    explainer: SymbolInfluence | None = field(default=None)

    @property
    def point(self) -> Tensor:
        return self.region.point

    def score(self, points: Tensor) -> Tensor:
        """The least margin at points (n, *shape): (n,)."""
        return self.decision.margins(self.network(points).flatten(1)).amin(dim=1)

    def probability(self, points: Tensor) -> Tensor:
        """1 / (1 + sum_r exp(-margin_r)), (n,): the softmax probability of the class that the decision is for."""
        with torch.no_grad():
            margins = self.decision.margins(self.network(points).flatten(1))
        return torch.sigmoid(-torch.logsumexp(-margins, dim=1))

    def image_score(self, images: Tensor) -> Tensor:
        """The same for images (n, channels, height, width)."""
        return self.score(self.from_images(images))

    def as_image(self, values: Tensor) -> Tensor:
        """(1, *shape) -> (1, channels, height, width); tables stay as they are."""
        return values if self.layout is None else self.layout.to_image(values[0])[None]

    def from_images(self, images: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, *shape); tables stay as they are."""
        if self.layout is None:
            return images
        images = images.transpose(2, 3) if self.layout.transposed else images
        return images.reshape(-1, *self.layout.shape)

    def patches(self) -> Tensor:
        """(1, *image shape) int64: the patch of each pixel, or of each column of a table."""
        if self.layout is None:
            return single_features(self.point.shape[1:])[None]
        height, width = self.layout.height, self.layout.width
        labels = grid(height, width, min(self.cells, height), min(self.cells, width))
        return labels.expand(1, self.layout.channels, height, width).contiguous()


@dataclass(frozen=True, slots=True)
class Attribution:
    """An attribution method.

    Attributes:
        run: question -> map (1, *shape).
        kind: "slope" if the map says how the score reacts to a change, "contribution" if it says what each input adds
            to the score beside the baseline.
        source: the paper.
    """

    run: Callable[[Question], Tensor]
    kind: Literal["slope", "contribution"]
    source: str

    def __call__(self, question: Question) -> Tensor:
        return self.run(question).detach()

    def importance(self, values: Tensor) -> Tensor:
        """What orders inputs: size for slopes, what is added for contributions."""
        return values.abs() if self.kind == "slope" else values

    def slope(self, values: Tensor, question: Question) -> Tensor:
        """The map as a derivative: a contribution divided by the distance to the baseline, 0 where there is none."""
        if self.kind == "slope":
            return values
        distance = question.point - question.baseline
        far = distance.abs() > 1e-6
        return torch.where(far, values / torch.where(far, distance, torch.ones_like(distance)), 0.0)


ATTRIBUTIONS: Registry[Attribution] = Registry("attribution method", "zonoplug.attributions")


def _file(name: str, kind: Literal["slope", "contribution"], source: str) -> Callable[[Any], Any]:
    def file(run: Callable[[Question], Tensor]) -> Callable[[Question], Tensor]:
        ATTRIBUTIONS.register(name)(Attribution(run, kind, source))
        return run

    return file


def _slope(question: Question, box: Box) -> Tensor:
    """Signed influence on the margin that is least at the point, per unit of each input."""
    explainer = question.explainer or SymbolInfluence(question.network)
    found = explainer.influence(question.point, question.decision, box)
    with torch.no_grad():
        margins = question.decision.margins(question.network(question.point).flatten(1))
    signed = found.signed()[0, int(margins[0].argmin())][None]
    radius = (box.upper - box.lower) / 2
    return torch.where(radius > 0, signed / torch.where(radius > 0, radius, torch.ones_like(radius)), 0.0)


@_file("symbols", "slope", "symbol influence over the region's box")
def _symbols(question: Question) -> Tensor:
    return _slope(question, question.region.box)


@_file("symbols-to-baseline", "contribution", "symbol influence on the way to the baseline")
def _symbols_to_baseline(question: Question) -> Tensor:
    """Each input moves a tenth of the way to the baseline; its slope there times the whole way."""
    point, end = question.point, question.point + 0.1 * (question.baseline - question.point)
    box = Box(torch.minimum(point, end), torch.maximum(point, end))
    return _slope(question, box) * (point - question.baseline)


@_file("gradient", "slope", "Simonyan, Vedaldi, Zisserman, ICLR workshop 2014")
def _gradient(question: Question) -> Tensor:
    result: Tensor = (
        import_captum().Saliency(question.score).attribute(question.point.clone().requires_grad_(True), abs=False)
    )
    return result


@_file("integrated gradients", "contribution", "Sundararajan, Taly, Yan, ICML 2017")
def _integrated_gradients(question: Question) -> Tensor:
    method = import_captum().IntegratedGradients(question.score)
    result: Tensor = method.attribute(question.point.clone(), baselines=question.baseline, n_steps=50)
    return result


@_file("occlusion", "contribution", "Zeiler, Fergus, ECCV 2014")
def _occlusion(question: Question) -> Tensor:
    image = question.as_image(question.point)
    window: tuple[int, ...] = (1,) * (image.dim() - 1)
    if question.layout is not None:
        side = max(question.layout.height // question.cells, 1)
        window = (question.layout.channels, side, side)
    strides = tuple(max(size // 2, 1) for size in window[1:]) if question.layout is not None else window[1:]
    method = import_captum().Occlusion(question.image_score)
    result: Tensor = method.attribute(
        image,
        sliding_window_shapes=window,
        strides=(window[0], *strides),
        baselines=question.as_image(question.baseline),
        perturbations_per_eval=EVALUATION_BATCH,
    )
    return question.from_images(result)


def _by_patches(question: Question, method: Any) -> Tensor:
    result: Tensor = method.attribute(
        question.as_image(question.point),
        baselines=question.as_image(question.baseline),
        feature_mask=question.patches(),
        n_samples=question.samples,
        perturbations_per_eval=EVALUATION_BATCH,
    )
    return question.from_images(result)


@_file("LIME", "contribution", "Ribeiro, Singh, Guestrin, KDD 2016")
def _lime(question: Question) -> Tensor:
    with _quiet(question.seed):
        return _by_patches(question, import_captum().Lime(question.image_score))


@_file("KernelSHAP", "contribution", "Lundberg, Lee, NeurIPS 2017")
def _kernel_shap(question: Question) -> Tensor:
    with _quiet(question.seed):
        return _by_patches(question, import_captum().KernelShap(question.image_score))


@_file("RISE", "contribution", "Petsiuk, Das, Saenko, BMVC 2018")
def _rise(question: Question) -> Tensor:
    """The mean score of masked inputs in which an input is seen, less the mean of all."""
    image, baseline = question.as_image(question.point), question.as_image(question.baseline)
    masks = _rise_masks(question, image)
    scores = []
    with torch.no_grad():
        for part in masks.split(EVALUATION_BATCH):
            scores.append(question.image_score(baseline + part * (image - baseline)))
    score = torch.cat(scores)
    weights = masks.flatten(1)
    seen = weights.sum(dim=0).clamp(min=torch.finfo(weights.dtype).tiny)
    mean = (score - score.mean()) @ weights / seen
    return question.from_images(mean.reshape(masks.shape[1:])[None].expand_as(image))


def _rise_masks(question: Question, image: Tensor) -> Tensor:
    """(samples, 1, height, width) smooth random masks, shifted by parts of a cell; for tables (samples, *shape)."""
    random = torch.Generator().manual_seed(question.seed)
    count = question.samples
    if question.layout is None:
        return (torch.rand(count, *image.shape[1:], generator=random) < RISE_PROBABILITY).to(image)
    height, width = question.layout.height, question.layout.width
    cells = min(question.cells, height, width)
    down, across = -(-height // cells), -(-width // cells)
    coarse = (torch.rand(count, 1, cells + 1, cells + 1, generator=random) < RISE_PROBABILITY).to(image)
    size = ((cells + 1) * down, (cells + 1) * across)
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    top = torch.randint(0, down, (count,), generator=random).tolist()
    left = torch.randint(0, across, (count,), generator=random).tolist()
    return torch.stack([mask[:, t : t + height, s : s + width] for mask, t, s in zip(smooth, top, left, strict=True)])


def import_captum() -> Any:
    """captum.attr, and what it needs to fit linear models. Raises SettingError if they are not installed."""
    try:
        import captum.attr
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise SettingError(
            f"Comparison with other attribution methods needs captum and scikit-learn. Type: {INSTALL}"
        ) from error
    return captum.attr


@contextmanager
def _quiet(seed: int) -> Iterator[None]:
    """Fixed random numbers, the caller's own put back afterwards, and no warnings about small samples."""
    numbers = np.random.get_state()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numbers)
