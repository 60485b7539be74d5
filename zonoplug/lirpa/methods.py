"""Bound methods and their spelling: "zonotope", "zonotope[girard,512]", "zonotope+crown", "CROWN"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from zonoplug.errors import SettingError, UnknownNameError
from zonoplug.lirpa.propagate import WalkOptions
from zonoplug.reduction import REDUCTIONS, AboveSymbols

HOST_SPELLING = {
    "ibp": "IBP",
    "crown-ibp": "CROWN-IBP",
    "crown": "CROWN",
    "alpha-crown": "CROWN-Optimized",
    "forward": "Forward",
    "forward+crown": "Forward+Backward",
}
HOST_METHODS = tuple(HOST_SPELLING)
# Behind a "+": backward bounds of the output over our hulls alone; or ("full") over hulls that the host computes
# backward too, layer by layer, each intersected with ours.
BACKWARD = ("crown", "alpha-crown", "full-crown", "full-alpha-crown")
HOST_SPELLING |= {f"full-{name}": HOST_SPELLING[name] for name in ("crown", "alpha-crown")}


@dataclass(frozen=True, slots=True)
class BoundMethod:
    """A way to bound a network.

    Attributes:
        zonotope: whether our walk runs; if not, `backward` names a method of the host.
        alpha: whether the walk's slopes are optimised.
        reduction, max_symbols: the symbol reduction inside the walk, or None.
        backward: the host's method that uses the walk's hulls as intermediate bounds, or None.
    """

    zonotope: bool
    reduction: str | None = None
    max_symbols: int | None = None
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
        alpha = match[1] is not None
        if match[2] is None:
            return cls(zonotope=True, backward=match[3], alpha=alpha)
        parts = [part.strip() for part in match[2].split(",")]
        if len(parts) != 2 or not parts[1].isdigit():
            raise SettingError(
                f"Method {text!r}: write a reduction as [name,max_symbols], such as zonotope[girard,512]."
            )
        REDUCTIONS.get(parts[0])
        return cls(True, parts[0], int(parts[1]), match[3], alpha)

    @property
    def needs_gradients(self) -> bool:
        """Whether the host optimises slopes, for which gradients must be on."""
        return self.backward is not None and self.backward.endswith("alpha-crown")

    @classmethod
    def is_ours(cls, text: str | None) -> bool:
        """Whether a method's name asks for a zonotope."""
        return text is not None and text.strip().lower().removeprefix("alpha-").startswith("zonotope")

    def walk_options(self) -> WalkOptions:
        """The options of our walk for this method."""
        if self.reduction is None or self.max_symbols is None:
            return WalkOptions()
        return WalkOptions(REDUCTIONS.get(self.reduction)(), AboveSymbols(self.max_symbols))

    def __str__(self) -> str:
        if not self.zonotope:
            return str(self.backward)
        reduction = "" if self.reduction is None else f"[{self.reduction},{self.max_symbols}]"
        prefix = "alpha-" if self.alpha else ""
        return f"{prefix}zonotope{reduction}" + (f"+{self.backward}" if self.backward else "")


def method_names() -> list[str]:
    """The spellings to offer in messages and lists."""
    return [
        *HOST_METHODS,
        "zonotope",
        "zonotope[girard,512]",
        *(f"zonotope+{b}" for b in BACKWARD),
        "alpha-zonotope",
        *(f"alpha-zonotope+{b}" for b in BACKWARD),
    ]
