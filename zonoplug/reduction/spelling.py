"""Reductions in method strings: RULE, WHEN, and perhaps inputs.

girard,512              at most 512 symbols behind every operator that adds some
girard,every 512        the same, said as a layer-by-layer schedule
girard,512 every 3      at most 512, at every third such operator only
girard,512/256/128      by layer; the last number for all behind
girard,50%              half of the symbols introduced so far
girard,2GB              as many as fit (kB, MB or GB, inputs included)
girard,auto             as many as fit into the device's memory
girard,backoff 64       start with 64 and refine where the loss is, until proved or exact
girard,512,inputs       the inputs' symbols stay in any case
random:7,512            a rule with its parameter: a seed, a share, a base rule ... as `zonoplug list` says
exact                   nothing is reduced; so is box alone short for box,0
neurons,30%             neurons are merged until 30 % of each layer are left; see `neuron_merging`
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from zonoplug.errors import SettingError
from zonoplug.reduction.base import REDUCTIONS, Reduction
from zonoplug.reduction.neuron_merging import NeuronMerging
from zonoplug.reduction.schedule import (
    AboveBytes,
    AboveSymbols,
    Backoff,
    EveryLayer,
    Never,
    PerLayer,
    Proportional,
    Schedule,
)

UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9}
WITHOUT_SCHEDULE: dict[str, Schedule] = {"exact": Never(), "box": AboveSymbols(0)}
EXAMPLES = "512, 50%, 2GB, auto, 512/256/128, 512 every 3, every 512, backoff 64"


@dataclass(frozen=True, slots=True)
class ReductionChoice:
    """A rule with its parameter, a schedule, whether the inputs' symbols are protected; or how neurons are merged."""

    rule: str
    schedule: Schedule
    protect_inputs: bool = False
    merging: NeuronMerging | None = None

    @classmethod
    def parse(cls, text: str) -> ReductionChoice:
        """Read what stands between the brackets of a method's name.

        Raises:
            UnknownNameError: no such rule.
            SettingError: a malformed parameter or schedule.
        """
        rule, *rest = (part.strip() for part in text.strip().lower().split(","))
        if rule == "neurons":
            return cls(rule, Never(), merging=_merging(text, rest))
        choice = cls(rule, Never())
        choice.reduction()
        protect = rest[-1:] == ["inputs"]
        rest = rest[:-1] if protect else rest
        if not rest and rule.partition(":")[0] in WITHOUT_SCHEDULE:
            return cls(rule, WITHOUT_SCHEDULE[rule.partition(":")[0]], protect)
        if len(rest) != 1:
            raise SettingError(f"Reduction {text!r}: write [rule,when], such as [girard,512]. When: {EXAMPLES}.")
        return cls(rule, parse_schedule(rest[0]), protect)

    def reduction(self) -> Reduction:
        """The rule with its parameter."""
        name, _, option = self.rule.partition(":")
        return REDUCTIONS.get(name).from_option(option or None)

    def __str__(self) -> str:
        if self.merging is not None:
            return f"neurons,{100 * (self.merging.rate or 0):g}%"
        parts = [self.rule] if isinstance(self.schedule, Never) else [self.rule, str(self.schedule)]
        return ",".join([*parts, "inputs"] if self.protect_inputs else parts)


def _merging(text: str, rest: list[str]) -> NeuronMerging:
    match = re.fullmatch(r"(\d+(?:\.\d*)?) ?%", rest[0]) if len(rest) == 1 else None
    if match is None or not 0 < float(match[1]) <= 100:
        raise SettingError(f"Reduction {text!r}: write the share of the neurons to keep, such as [neurons,30%].")
    return NeuronMerging(rate=float(match[1]) / 100)


def parse_schedule(text: str) -> Schedule:
    """Read when to reduce, and to how many symbols. Raises SettingError, which says what is possible."""
    words = text.strip().lower()
    if words == "auto":
        return AboveBytes()
    if match := re.fullmatch(r"(\d+)", words):
        return AboveSymbols(int(match[1]))
    if match := re.fullmatch(r"every (\d+)", words):
        return EveryLayer(int(match[1]))
    if match := re.fullmatch(r"(\d+) every (\d+)", words):
        return EveryLayer(int(match[1]), int(match[2]))
    if re.fullmatch(r"\d+(/\d+)*/?", words):
        return PerLayer(tuple(int(number) for number in words.rstrip("/").split("/")))
    if match := re.fullmatch(r"(\d+(?:\.\d*)?) ?%", words):
        return Proportional(float(match[1]) / 100)
    if match := re.fullmatch(r"(\d+(?:\.\d*)?) ?([kmg]b)", words):
        return AboveBytes(int(float(match[1]) * UNITS[match[2]]))
    if match := re.fullmatch(r"backoff(?: (\d+))?", words):
        return Backoff(int(match[1])) if match[1] else Backoff()
    raise SettingError(f"When to reduce: got {text!r}. Possible: {EXAMPLES}.")
