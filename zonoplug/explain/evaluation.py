"""Several attribution methods on one input, measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.explain.comparison import ATTRIBUTIONS, Attribution, Question, import_captum
from zonoplug.explain.metrics import (
    deletion_auc,
    infidelity,
    insertion_auc,
    sparsity,
    spearman,
    stability,
    top_agreement,
)
from zonoplug.explain.region import Region

REFERENCE = "symbols"
TOP_SHARE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """One method's map of one input, and what is measured of it.

    Attributes:
        name: of the method.
        values: the map, (1, *shape).
        deletion: area under the target's probability as the most important inputs vanish; lower is better.
        insertion: the same as they appear; higher is better.
        infidelity: 0 is perfect, 1 is no better than a map of zeros, for shifts as large as the region's box.
        sensitivity: max-sensitivity to input noise of a third of the box; lower is better.
        steadiness: mean Spearman correlation with the maps of those noisy inputs; higher is better.
        sparsity: Gini index of the map.
        agreement: Spearman correlation of importance with symbol influence.
        top: the share of the top tenth that both have in common.
        seconds: of one map.
    """

    name: str
    values: Tensor
    deletion: float
    insertion: float
    infidelity: float
    sensitivity: float
    steadiness: float
    sparsity: float
    agreement: float
    top: float
    seconds: float


def evaluate(question: Question, names: Sequence[str] | None = None, noise_samples: int = 2) -> list[Evaluation]:
    """Run attribution methods on one input and measure their maps.

    Args:
        names: in `ATTRIBUTIONS`; all by default.
        noise_samples: noisy inputs for sensitivity and steadiness; 0 leaves these NaN.
    """
    chosen = ATTRIBUTIONS.names() if names is None else list(names)
    import_captum()  # which takes seconds the first time, and is no part of any method's
    maps: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}
    for name in dict.fromkeys([REFERENCE, *chosen]):
        start = time.perf_counter()
        maps[name] = ATTRIBUTIONS.get(name)(question)
        seconds[name] = time.perf_counter() - start
    radius = float((question.region.box.upper - question.region.box.lower).max()) / 2
    reference = ATTRIBUTIONS.get(REFERENCE).importance(maps[REFERENCE])
    found = []
    for name in chosen:
        method, values = ATTRIBUTIONS.get(name), maps[name]
        order = method.importance(values)
        slope = method.slope(values, question)
        worst, steady = float("nan"), float("nan")
        if noise_samples:
            explain = partial(_moved, question, method=method)
            worst, steady = stability(explain, question.point, radius / 3, noise_samples)
        found.append(
            Evaluation(
                name,
                values,
                deletion_auc(question.probability, question.point, order, question.baseline),
                insertion_auc(question.probability, question.point, order, question.baseline),
                infidelity(question.score, question.point, slope, radius),
                worst,
                steady,
                sparsity(values),
                spearman(order, reference),
                top_agreement(order, reference, max(1, int(TOP_SHARE * order.numel()))),
                seconds[name],
            )
        )
    return found


def _moved(question: Question, point: Tensor, method: Attribution) -> Tensor:
    """A method's map at another point, the box moved along with it."""
    shift, box = point - question.point, question.region.box
    moved = Box(torch.minimum(box.lower + shift, point), torch.maximum(box.upper + shift, point))
    return method(replace(question, region=Region(point, moved, question.region.features)))
