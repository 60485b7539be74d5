"""Counts of one verification."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Statistics:
    """Counts of one verification.

    Attributes:
        subdomains: how many were bounded, by any stage.
        input_splits, activation_splits: into two, each.
        depth: most splits above a subdomain that was bounded.
        open: subdomains that wait or resist, in the last search.
        worst_margin: the least bound of a margin among the open subdomains of the last step; None before the first.
        volume_proved: of the last search, the fraction of its input boxes, or of the combinations of phases, that is
            proved; in [0, 1], the mean over boxes and disjuncts.
        points_tried: by attacks, in all.
        seconds: by stage, in order.
    """

    subdomains: int = 0
    input_splits: int = 0
    activation_splits: int = 0
    depth: int = 0
    open: int = 0
    worst_margin: float | None = None
    volume_proved: float = 0.0
    points_tried: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values; seconds to the millisecond."""
        shown = {name: getattr(self, name) for name in self.__slots__ if name != "seconds"}
        return shown | {"seconds_by_stage": {stage: round(value, 3) for stage, value in self.seconds.items()}}
