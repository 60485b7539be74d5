"""The hulls of one subdomain that fixes signs: computed again behind a sign, or clipped by all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.verify.sign_subdomains import SignSubdomains

if TYPE_CHECKING:
    from zonoplug.lirpa.clipped_hulls import UnsafeRow
    from zonoplug.lirpa.refine import NeuronSlopes

Slopes = Mapping[str, "list[NeuronSlopes]"]


class SubdomainHulls:
    """Narrows the hulls of subdomains of one box.

    Args:
        hulls: the root's, by node name.
        names: of each ReLU and its input.
        slopes: the root's, for single neurons, by name of a ReLU's input.

    Attributes:
        layers: of each ReLU its name, its input's, where its neurons stand side by side with all others, their shape.
    """

    def __init__(
        self, module: Any, box: Box, hulls: Mapping[str, Interval], names: list[tuple[str, str]], slopes: Slopes
    ) -> None:
        from zonoplug.lirpa.backward import Backward

        self._box = box
        self._passes = {name: Backward(module, name) for name in slopes}
        self._magnitudes = {name: passed.magnitudes(box, hulls) for name, passed in self._passes.items()}
        self._rest = {name: hull for name, hull in hulls.items() if name not in dict(names).values()}
        self.layers: list[tuple[str, str, slice, tuple[int, ...]]] = []
        place = 0
        for relu, name in names:
            shape = tuple(hulls[name].lower.shape[1:])
            self.layers.append((relu, name, slice(place, place + prod(shape)), shape))
            place += prod(shape)

    def clip(
        self, part: SignSubdomains, slopes: Slopes, steps: int, unsafe: UnsafeRow | None = None
    ) -> tuple[Slopes, Tensor] | None:
        """Narrow the hulls of a subdomain; slopes and the cost of each neuron. None if it holds no point."""
        from zonoplug.lirpa.clipped_hulls import clip_hulls

        hulls, signs = dict(self._rest), {}
        for _, name, section, shape in self.layers:
            hulls[name] = Interval(
                part.lower[:1, section].unflatten(1, shape), part.upper[:1, section].unflatten(1, shape)
            )
            signs[name] = part.sign[:1, section].unflatten(1, shape)
        clipped = clip_hulls(
            self._passes, self._box, hulls, slopes, signs, steps, unsafe, self._magnitudes if steps else None
        )
        if clipped.empty:
            return None
        cost = torch.zeros_like(part.lower[0])
        part.lower, part.upper = part.lower.clone(), part.upper.clone()  # other aims' hulls may lie in the same memory
        for relu, name, section, _ in self.layers:
            if name in slopes:
                lower, upper = (end.flatten(1) for end in clipped.hulls[name])
                part.lower[:, section] = torch.minimum(lower, upper).expand(len(part), -1)
                part.upper[:, section] = torch.maximum(lower, upper).expand(len(part), -1)
            if relu in clipped.impact:
                cost[section] = clipped.impact[relu].flatten()
        return clipped.slopes, cost
