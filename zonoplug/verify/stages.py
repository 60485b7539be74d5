"""What a verification tries, in which order, and how much time each part gets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

FEW_INPUTS = 8  # up to so many, bisecting them alone does better than splitting ReLUs too
TRIAL_SHARE = 0.04  # for bisecting inputs, before ReLUs are split too: what it can close, it mostly closes soon
SLOW_TRIAL_SHARE = 0.6  # where a few subdomains take longer than that
RELU_SHARE = 0.5  # for splitting ReLUs alone, as long as that makes progress
MIXED_SHARE = 0.6


class Stage(NamedTuple):
    """One step of a verification: a bound at the root, a search, or an attack; the bound method, the time it gets.

    Attributes:
        share: of the time that is left when it starts.
        trial: the share after which it gives up if it has bounded subdomains enough to judge by, and splits of ReLUs
            once they gain little; None for never.
    """

    kind: Literal["root", "input splits", "activation splits", "mixed splits", "attack"]
    method: str
    share: float = 1.0
    trial: float | None = None

    @property
    def name(self) -> str:
        if self.kind == "attack":
            return "attack"
        return f"{self.method} at the root" if self.kind == "root" else f"{self.method} with {self.kind}"

    def needs(self, without: Iterable[str]) -> bool:
        """Whether one of the components to leave out is all that this stage is about."""
        needed = {
            "attack": self.kind == "attack",
            "zonotope-root": self == Stage("root", "zonotope"),
            "crown": "crown" in self.method,
            "input-splits": self.kind == "input splits",
            "activation-splits": self.kind == "activation splits",
            "mixed-splits": self.kind == "mixed splits",
        }
        return any(needed.get(name, False) for name in without)


OWN_SPLITS = Stage("activation splits", "alpha-zonotope")  # with multipliers of its own for split constraints


def stages(method: str, perturbed: int | None, recording: bool) -> list[Stage]:
    """The stages for a bound method.

    Args:
        method: "auto", or the one to use at the root and in the search.
        perturbed: how many inputs vary; None for more than can be split.
        recording: whether leaves are collected, which the mixed search does not give: it contracts boxes and
            pre-activation bounds by multipliers that are not kept.
    """
    from zonoplug.lirpa.methods import BoundMethod

    if method != "auto":
        if perturbed is not None:
            return [Stage("root", method), Stage("input splits", method)]
        splits = [Stage("activation splits", method)] if BoundMethod.parse(method).takes_preactivations else []
        return [Stage("root", method), *splits]
    first = [Stage("root", "zonotope"), Stage("root", "zonotope+crown")]
    if perturbed is None:
        return [
            *first,
            Stage("attack", "attack"),
            OWN_SPLITS,
            Stage("root", "alpha-zonotope"),
            Stage("activation splits", "zonotope+crown"),  # of S-shaped ones too
        ]
    boxes = [Stage("input splits", "zonotope+crown"), Stage("input splits", "zonotope")]
    mixed = Stage("mixed splits", "alpha-zonotope")
    if recording:
        return [*first, *boxes]
    if perturbed <= FEW_INPUTS:
        return [*first, *boxes, mixed]
    return [
        *first,
        boxes[0]._replace(share=SLOW_TRIAL_SHARE, trial=TRIAL_SHARE),
        OWN_SPLITS._replace(share=RELU_SHARE, trial=RELU_SHARE),
        mixed._replace(share=MIXED_SHARE),
        *boxes,
    ]
