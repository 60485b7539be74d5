"""How to propagate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from zonoplug.domain.rounding import Rounding
from zonoplug.reduction import Never, Reduction, Schedule
from zonoplug.reduction.neuron_merging import NeuronMerging
from zonoplug.transformers.bilinear import Form

Fallback = Literal["interval", "error"]
Products = Literal["auto", "precise", "fast"]
PRODUCTS: tuple[Products, ...] = ("auto", "precise", "fast")


@dataclass(frozen=True, slots=True)
class PropagationOptions:
    """How to propagate.

    Attributes:
        reduction: encloses zonotopes in smaller ones; None for never.
        schedule: when it is applied, and to how many symbols.
        protect_inputs: whether the inputs' symbols are never reduced, whatever the schedule says.
        measure: whether each reduction's loss in the specification's rows is reported, at the price of a second
            propagation.
        merging: which neurons give up their correlation behind each activation, before any reduction; None for none.
        fallback: what happens at an operator without a transformer: the host's interval bounds, or an error.
        rounding: what the bounds cover: exact arithmetic on real numbers ("nearest"), the rounding of this propagation
            ("outward"), or that of the network's own evaluation in the same precision too ("inference").
        named: whether rounding errors get noise symbols where these are few, so that their signs count. Without a
            reduction or merging, that is: budgets of symbols are for these to keep.
        products: how products, quotients and matrix products of two perturbed operands are bounded: "fast", in time
            linear in the symbols; "precise", in more time and memory; "auto", precise where the work is small.
        sum_to_one: whether a softmax uses that its outputs sum to one; tighter, and shared symbols are dense behind it.
        limit_bytes: memory for generators; layers that need more are streamed in chunks of symbols, with the same
            bounds, in more time. None for no limit. See `zonoplug.domain.streaming`.
        intervals: whether interval bounds are kept beside the zonotopes and intersected with their pre-activation
            bounds (`interval_images` says why that is sound), so that no bound is looser than interval arithmetic's.
    """

    reduction: Reduction | None = None
    schedule: Schedule = field(default_factory=Never)
    protect_inputs: bool = False
    measure: bool = False
    merging: NeuronMerging | None = None
    fallback: Fallback = "interval"
    rounding: Rounding = "nearest"
    named: bool = True
    products: Products = "auto"
    sum_to_one: bool = False
    limit_bytes: int | None = None
    intervals: bool = True

    @property
    def form(self) -> Form | None:
        """The form of products, None for the one that the work allows."""
        return None if self.products == "auto" else self.products
