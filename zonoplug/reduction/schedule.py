"""When to reduce, and to how many symbols: apart from how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch

from zonoplug.domain.zonotope import Zonotope
from zonoplug.errors import SettingError
from zonoplug.reduction.context import ALONE, ReductionContext
from zonoplug.reduction.report import ReductionReport

MEMORY_SHARE = 0.25  # of what is free: generators are copied on their way through an operator
COPIES = 3  # of the generators that exist at once while an operator maps them


class Schedule(ABC):
    """Decides at the inputs and after each operator that adds symbols whether the zonotope is reduced."""

    @abstractmethod
    def budget(self, zonotope: Zonotope, context: ReductionContext = ALONE) -> int | None:
        """The number of symbols to reduce to, or None to leave the zonotope alone."""


@dataclass(frozen=True, slots=True)
class Never(Schedule):
    """Keep every symbol."""

    def budget(self, zonotope: Zonotope, context: ReductionContext = ALONE) -> int | None:
        return None

    def __str__(self) -> str:
        return "never"


@dataclass(frozen=True, slots=True)
class AboveSymbols(Schedule):
    """Reduce to `max_symbols` whenever an operator leaves more. Inputs stay whole; the first operator sees them all.

    Raises:
        SettingError: `max_symbols` is negative.
    """

    max_symbols: int

    def __post_init__(self) -> None:
        _require_count(self, self.max_symbols)

    def budget(self, zonotope: Zonotope, context: ReductionContext = ALONE) -> int | None:
        return self.max_symbols if context.layer and zonotope.num_symbols > self.max_symbols else None

    def __str__(self) -> str:
        return str(self.max_symbols)


@dataclass(frozen=True, slots=True)
class EveryLayer(Schedule):
    """Reduce to `max_symbols` at every layer, or at every `step`-th one and let symbols gather between.

    Raises:
        SettingError: `max_symbols` is negative, or `step` is not positive.
    """

    max_symbols: int
    step: int = 1

    def __post_init__(self) -> None:
        _require_count(self, self.max_symbols)
        if self.step < 1:
            raise SettingError(f"EveryLayer: step is {self.step}, and must be at least 1.")

    def budget(self, zonotope: Zonotope, context: ReductionContext = ALONE) -> int | None:
        due = context.layer > 0 and context.layer % self.step == 0
        return self.max_symbols if due and zonotope.num_symbols > self.max_symbols else None

    def __str__(self) -> str:
        return f"{self.max_symbols} every {self.step}"


@dataclass(frozen=True, slots=True)
class PerLayer(Schedule):
    """Reduce to a number of its own at each layer; the last one serves all layers behind.

    Raises:
        SettingError: no number, or a negative one.
    """

    budgets: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.budgets:
            raise SettingError("PerLayer: give one number of symbols for each layer, such as 512/256/128.")
        for count in self.budgets:
            _require_count(self, count)

    def budget(self, zonotope: Zonotope, context: ReductionContext = ALONE) -> int | None:
        if not context.layer:
            return None
        limit = self.budgets[min(context.layer, len(self.budgets)) - 1]
        return limit if zonotope.num_symbols > limit else None

    def __str__(self) -> str:
        return "/".join(str(count) for count in self.budgets) + ("/" if len(self.budgets) == 1 else "")


@dataclass(frozen=True, slots=True)
class Proportional(Schedule):
    """Reduce to a share of all symbols that inputs and operators have introduced so far.

    Raises:
        SettingError: the share is outside [0, 1].
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise SettingError(f"Proportional: share is {self.share}, and must be between 0 and 1.")

    def budget(self, zonotope: Zonotope, context: ReductionContext = ALONE) -> int | None:
        limit = ceil(self.share * (context.introduced or zonotope.num_symbols))
        return limit if context.layer and zonotope.num_symbols > limit else None

    def __str__(self) -> str:
        return f"{100 * self.share:g}%"


@dataclass(frozen=True, slots=True)
class AboveBytes(Schedule):
    """Reduce to as many symbols as fit into `limit_bytes`, inputs included.

    Counted are the generators written out, three copies of them where an operator maps them, at the widest value up to
    the next activation, for the whole batch; the generators of other live values come off the limit. What an
    operator needs to work in comes on top. So a run on a large network loses precision instead of memory running out.

    Attributes:
        limit_bytes: None for a quarter of the device's free memory when the first value is reduced.
    Raises:
        SettingError: the limit is negative.
    """

    limit_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.limit_bytes is not None:
            _require_count(self, self.limit_bytes)

    def budget(self, zonotope: Zonotope, context: ReductionContext = ALONE) -> int | None:
        center = zonotope.center
        limit = free_bytes(center.device) * MEMORY_SHARE if self.limit_bytes is None else self.limit_bytes
        for live in context.elsewhere:
            limit -= live.zonotope.num_symbols * live.zonotope.center.numel() * center.element_size()
        widest = max(center[0].numel(), context.widest) * zonotope.batch
        symbols = max(0, int(limit // max(1, COPIES * widest * center.element_size())))
        return symbols if zonotope.num_symbols > symbols else None

    def __str__(self) -> str:
        if self.limit_bytes is None:
            return "auto"
        unit, size = ("GB", 1e9) if self.limit_bytes >= 1e9 else ("MB", 1e6)
        return f"{self.limit_bytes / size:g}{unit}"


@dataclass(frozen=True, slots=True)
class Backoff(Schedule):
    """Start with `first` symbols at every layer; whoever bounds with it raises the layers that cost most.

    On its own it is the coarsest step. `refined` gives the next one: layers whose reported losses make up most of the
    whole loss get `growth` times as many symbols.

    Attributes:
        first: symbols at every layer to start with.
        budgets: layer -> symbols, where it differs from `first`.
        growth: above 1.
    Raises:
        SettingError: `first` is not positive, or `growth` is not above 1.
    """

    first: int = 64
    growth: float = 2.0
    budgets: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.first < 1 or not self.growth > 1:
            raise SettingError(f"Backoff: first is {self.first} (at least 1), growth is {self.growth:g} (above 1).")

    def at(self, layer: int) -> int:
        """The number of symbols at a layer."""
        return dict(self.budgets).get(layer, self.first)

    def budget(self, zonotope: Zonotope, context: ReductionContext = ALONE) -> int | None:
        limit = self.at(context.layer)
        return limit if context.layer and zonotope.num_symbols > limit else None

    def refined(self, reports: Sequence[ReductionReport], share: float = 0.8) -> Backoff | None:
        """The next, finer step, from what the last walk's reductions report; None if nothing was reduced any more.

        The layers that cost most, and together at least `share` of the loss, get more symbols; all reduced ones where
        the loss is not known.
        """
        if not reports:
            return None
        costs: dict[int, float] = {}
        for report in reports:
            loss = torch.inf if report.loss is None else float(report.loss.nan_to_num(nan=torch.inf).sum())
            costs[report.layer] = costs.get(report.layer, 0.0) + max(loss, 0.0)
        whole, covered, budgets = sum(costs.values()), 0.0, dict(self.budgets)
        for layer in sorted(costs, key=lambda layer: costs[layer], reverse=True):
            if covered >= share * whole and whole < torch.inf and covered > 0:
                break
            covered += costs[layer]
            budgets[layer] = ceil(self.growth * self.at(layer))
        return replace(self, budgets=tuple(sorted(budgets.items())))

    def __str__(self) -> str:
        return f"backoff {self.first}"


def free_bytes(device: torch.device) -> float:
    """Memory that a process can still get on a device, in bytes; 4 GB where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            return next(float(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration):
        return 4e9


def _require_count(schedule: Schedule, count: int) -> None:
    if count < 0:
        raise SettingError(f"{type(schedule).__name__}: got {count}, and must be at least 0.")
