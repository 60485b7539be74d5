"""Bounds of rows over boxes that hold for what a network's evaluation computes, by any bound method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import UnsupportedOperatorError

if TYPE_CHECKING:
    from zonoplug.lirpa.backward.passes import Backward, LinearBounds
    from zonoplug.lirpa.forward.propagation import Propagation
    from zonoplug.lirpa.methods import BoundMethod

OURS = "zonotope+crown"  # both parts of which are ours here


class SoundBounds:
    """Bounds over one module.

    Args:
        module: the host's module.
        takes_batches: whether it takes several points at a time.
        believed_only: whether the host's bounds are NaN where they are not believed; if not, they are only for show.

    Attributes:
        notes: what a user should know of the bounds that were given.
    """

    def __init__(self, module: Any, takes_batches: bool = True, believed_only: bool = True) -> None:
        self._module, self._takes_batches, self._believed_only = module, takes_batches, believed_only
        self._backward: Backward | None = None
        self.notes: list[str] = []

    @property
    def backward(self) -> Backward:
        """Passes backward, which end at operators that they cannot pass."""
        if self._backward is None:
            from zonoplug.lirpa.backward.passes import Backward

            self._backward = Backward(self._module, cuts=True)
        return self._backward

    def lower(
        self,
        method: BoundMethod,
        box: Box,
        rows: Tensor,
        goal: Tensor | None = None,
        known: Mapping[str, Interval] | None = None,
    ) -> tuple[Tensor, Propagation | None]:
        """Lower bounds of C y, (batch, rows), NaN where nothing is known; and the propagation behind them, if there was
        one.

        Args:
            box: (batch, *input_shape).
            rows: C, (batch or 1, rows, outputs).
            goal: (batch or 1, rows) bounds that are enough.
            known: node name -> bounds (batch, *shape) of computed values, from elsewhere.
        Raises:
            UnsupportedOperatorError: an operator is met of which too little is known.
        """
        if self._is_ours(method):
            linear, found = self.both_ways(box, rows, known=known)
            assert found is not None
            return torch.fmax(linear.sound, found.bounds.lower), found
        lower, found = box.lower.new_full((box.lower.shape[0], rows.shape[1]), torch.nan), None
        if method.zonotope:
            found = self.forward_propagation(replace(method, backward=None), box, rows, goal, known)
            lower = found.bounds.lower.detach()
        if method.backward is not None:
            lower = torch.fmax(lower, self._hosts(method, box, rows, known if found is None else found.preactivations))
        return lower, found

    def forward_propagation(
        self,
        method: BoundMethod,
        box: Box,
        rows: Tensor | None = None,
        goal: Tensor | None = None,
        known: Mapping[str, Interval] | None = None,
        **choices: Any,
    ) -> Propagation:
        """A propagation forward whose zonotopes and pre-activation bounds hold for computed values.

        Args:
            choices: fields of `PropagationOptions` that the method leaves open.
        """
        from zonoplug.lirpa.module import forward_propagation

        with torch.no_grad():
            found = forward_propagation(
                self._module, [box], method, rows, goal=goal, known=known, rounding="inference", **choices
            )
        found.preactivations = {**(known or {}), **found.preactivations}
        return found

    def both_ways(
        self,
        box: Box,
        rows: Tensor,
        preactivations: Mapping[str, Interval] | None = None,
        known: Mapping[str, Interval] | None = None,
    ) -> tuple[LinearBounds, Propagation | None]:
        """Bounds backward over a propagation's pre-activation bounds, and that propagation, unless its pre-activation
        bounds are given.
        """
        from zonoplug.lirpa.methods import BoundMethod

        found = None
        if preactivations is None:
            found = self.forward_propagation(BoundMethod.parse("zonotope"), box, rows, known=known)
            preactivations = found.preactivations
        with torch.no_grad():
            full = rows.expand(box.lower.shape[0], -1, -1)
            return self.backward.bound(
                box, preactivations, full, errors=self.backward.errors(box, preactivations)
            ), found

    def _hosts(
        self, method: BoundMethod, box: Box, rows: Tensor, preactivations: Mapping[str, Interval] | None
    ) -> Tensor:
        """The host's bounds, less what rounding may do; NaN where its operators are not to be believed.

        The host's own arithmetic is as inexact as ours, and not ours to prove: it is taken to move a bound no more than
        our passes backward of the same rows would be moved, and a note says so.
        """
        from zonoplug.lirpa.module import host_bound

        unproved = self.distrust(method)
        if unproved and self._believed_only:
            self._note(unproved)
            return box.lower.new_full((box.lower.shape[0], rows.shape[1]), torch.nan)
        self._note(f"bounds of {method} are auto_LiRPA's: what they lose to rounding is estimated, not proved")
        linear, _ = self.both_ways(box, rows)
        with torch.enable_grad() if method.needs_gradients else torch.no_grad():
            return host_bound(self._module, box, method, rows, preactivations) - 2 * linear.error

    def distrust(self, method: BoundMethod) -> str:
        """Why the host's part of a method is not believed on this network; "" if it is, or has no part."""
        from zonoplug.lirpa.trust import distrust

        return "" if self._is_ours(method) else distrust(self._module, method)

    def _is_ours(self, method: BoundMethod) -> bool:
        return str(method) == OURS and self._takes_batches

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def backward_or_none(module: Any) -> Backward | None:
    """Our passes backward through the whole network, None where they do not apply."""
    from zonoplug.lirpa.backward.passes import Backward

    try:
        return Backward(module)
    except UnsupportedOperatorError:
        return None
