"""Neuron merging during the propagation: the step behind each activation, on any graph.

A neuron's row goes to the box where it is computed, and every reader sees the same zonotope. Where branches meet again,
a kept symbol means the same in all of them, and boxes are independent, which encloses more. So it is sound around
residual connections too. The neurons' own symbols are never introduced into the rest of the propagation: the symbols
that remain are those of the inputs and of the neurons that stay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.lirpa.fusion.plan import NEURON_LAYERS
from zonoplug.reduction.neuron_merging import ASYMPTOTES, NeuronMerging, track_box
from zonoplug.reduction.reduced_network import FUNCTIONS, activation_range


def merge_neurons(
    node: Any,
    image: Zonotope,
    before: Interval | None,
    merging: NeuronMerging,
    source: SymbolSource,
    last: bool = False,
) -> tuple[Zonotope, Tensor]:
    """Merge neurons of one activation.

    Args:
        node: the activation.
        image: encloses its outputs, (batch, *shape).
        before: bounds of its inputs.
        merging: which neurons are merged; each element of the batch on its own.
        source: gives ids to symbols.
        last: whether no activation follows. Then merged neurons get symbols too, if boxes are tracked: they live
            through one linear map only, and let differences of outputs cancel.
    Returns:
        the outputs with merged neurons as intervals; how many stay, (batch,).
    """
    if merging.rate == 1:
        return image, torch.full((image.batch,), image.center[0].numel(), device=image.center.device)
    name, bounds = NEURON_LAYERS[type(node).__name__], image.interval_hull()
    if name in FUNCTIONS and before is not None:
        known = activation_range(name, before)
        bounds = Interval(torch.fmax(bounds.lower, known.lower), torch.fmin(bounds.upper, known.upper))
    merged, marks = merging.apply(image, bounds, ASYMPTOTES.get(name, ()))
    if merging.tracked:
        merged = track_box(merged, marks & (not last), source, node.name)
    return merged, (~marks).flatten(1).sum(dim=1)
