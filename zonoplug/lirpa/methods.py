"""Bound methods and their spelling: "zonotope", "zonotope[girard,512]", "zonotope+crown", "CROWN"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from zonoplug.errors import UnknownNameError
from zonoplug.lirpa.forward.options import PropagationOptions
from zonoplug.reduction.spelling import ReductionChoice

HOST_SPELLING = {
    "ibp": "IBP",
    "crown-ibp": "CROWN-IBP",
    "crown": "CROWN",
    "alpha-crown": "CROWN-Optimized",
    "forward": "Forward",
    "forward+crown": "Forward+Backward",
}
HOST_METHODS = tuple(HOST_SPELLING)
# Behind a "+": backward bounds of the output over our pre-activation bounds alone; or ("full") over pre-activation
# bounds that the host computes backward too, layer by layer, each intersected with ours.
BACKWARD = ("crown", "alpha-crown", "full-crown", "full-alpha-crown")
HOST_SPELLING |= {f"full-{name}": HOST_SPELLING[name] for name in ("crown", "alpha-crown")}


@dataclass(frozen=True, slots=True)
class BoundMethod:
    """A way to bound a network.

    Attributes:
        zonotope: whether our propagation runs; if not, `backward` names a method of the host.
        alpha: whether the propagation's slopes are optimised.
        reduction: how and when the propagation reduces symbols, or None.
        backward: the host's method that uses the propagation's pre-activation bounds as intermediate bounds, or None.
    """

    zonotope: bool
    reduction: ReductionChoice | None = None
    backward: str | None = None
    alpha: bool = False

    @classmethod
    def parse(cls, text: str) -> BoundMethod:
        """Read a method's name, in any case.

        Raises:
            UnknownNameError: no such method or reduction.
            SettingError: a malformed reduction.
        """
        name = text.strip().lower()
        if name in HOST_METHODS:
            return cls(zonotope=False, backward=name)
        match = re.fullmatch(r"(alpha-)?zonotope(?:\[([^\]]*)\])?(?:\+([\w-]+))?", name)
        if not match or (match[3] and match[3] not in BACKWARD):
            raise UnknownNameError("bound method", text, method_names())
        reduction = None if match[2] is None else ReductionChoice.parse(match[2])
        return cls(True, reduction, match[3], match[1] is not None)

    @property
    def needs_gradients(self) -> bool:
        """Whether the host optimises slopes, for which gradients must be on."""
        return self.backward is not None and self.backward.endswith("alpha-crown")

    @property
    def takes_preactivations(self) -> bool:
        """Whether bounds of inner nodes that are known beforehand make the method's bounds tighter."""
        return self.zonotope or self.backward in ("crown", "alpha-crown")

    @classmethod
    def is_ours(cls, text: str | None) -> bool:
        """Whether a method's name asks for a zonotope."""
        return text is not None and text.strip().lower().removeprefix("alpha-").startswith("zonotope")

    def propagation_options(self) -> PropagationOptions:
        """The options of our propagation for this method."""
        choice = self.reduction
        if choice is None or choice.merging is not None:
            return PropagationOptions(merging=None if choice is None else choice.merging)
        return PropagationOptions(choice.reduction(), choice.schedule, choice.protect_inputs)

    def __str__(self) -> str:
        if not self.zonotope:
            return str(self.backward)
        reduction = "" if self.reduction is None else f"[{self.reduction}]"
        prefix = "alpha-" if self.alpha else ""
        return f"{prefix}zonotope{reduction}" + (f"+{self.backward}" if self.backward else "")


def method_names() -> list[str]:
    """The spellings to offer in messages and lists."""
    return [
        *HOST_METHODS,
        "zonotope",
        "zonotope[girard,512]",
        "zonotope[girard,50%]",
        "zonotope[girard,2GB]",
        "zonotope[girard,backoff 64]",
        "zonotope[neurons,30%]",
        *(f"zonotope+{b}" for b in BACKWARD),
        "alpha-zonotope",
        *(f"alpha-zonotope+{b}" for b in BACKWARD),
    ]
