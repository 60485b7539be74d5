"""The hulls of one subdomain that fixes signs: computed again behind a sign, or clipped by all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.verify.neuron_layout import NeuronLayout
from zonoplug.verify.sign_subdomains import SignSubdomains

if TYPE_CHECKING:
    from zonoplug.lirpa.clipped_hulls import UnsafeRow
    from zonoplug.lirpa.refine import NeuronSlopes

Slopes = Mapping[str, "list[NeuronSlopes]"]


class SubdomainHulls:
    """Narrows the hulls of subdomains of one box.

    Args:
        hulls: the root's, by node name.
        layout: of the neurons.
        slopes: the root's, for single neurons, by name of a ReLU's input.
    """

    def __init__(
        self, module: Any, box: Box, hulls: Mapping[str, Interval], layout: NeuronLayout, slopes: Slopes
    ) -> None:
        from zonoplug.lirpa.backward import Backward

        self._box = box
        self._passes = {name: Backward(module, name) for name in slopes}
        self._magnitudes = {name: passed.magnitudes(box, hulls) for name, passed in self._passes.items()}
        self._layout, self._root = layout, hulls

    def clip(
        self, part: SignSubdomains, slopes: Slopes, steps: int, unsafe: UnsafeRow | None = None
    ) -> tuple[Slopes, Tensor] | None:
        """Narrow the hulls of a subdomain; slopes and the cost of each neuron. None if it holds no point."""
        from zonoplug.lirpa.clipped_hulls import clip_hulls

        hulls = self._layout.hulls(part.lower[:1], part.upper[:1], self._root)
        signs = {at.source: at.shaped(part.sign[:1]) for at in self._layout.places}
        clipped = clip_hulls(
            self._passes, self._box, hulls, slopes, signs, steps, unsafe, self._magnitudes if steps else None
        )
        if clipped.empty:
            return None
        cost = torch.zeros_like(part.lower[0])
        part.lower, part.upper = part.lower.clone(), part.upper.clone()  # other aims' hulls may lie in the same memory
        for at in self._layout.places:
            if at.source in slopes:
                lower, upper = (end.flatten(1) for end in clipped.hulls[at.source])
                part.lower[:, at.section] = torch.minimum(lower, upper).expand(len(part), -1)
                part.upper[:, at.section] = torch.maximum(lower, upper).expand(len(part), -1)
            if at.relu in clipped.impact:
                cost[at.section] = clipped.impact[at.relu].flatten()
        return clipped.slopes, cost
