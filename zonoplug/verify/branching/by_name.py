"""Branching rules by name, for every kind of split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zonoplug.errors import UnknownNameError
from zonoplug.registry import Registry
from zonoplug.verify.branching.activations import ACTIVATION_RULES
from zonoplug.verify.branching.inputs import INPUT_RULES
from zonoplug.verify.branching.mixed import MIXED_RULES

KINDS: dict[str, Registry[Any]] = {"inputs": INPUT_RULES, "activations": ACTIVATION_RULES, "mixed": MIXED_RULES}


@dataclass(frozen=True, slots=True)
class Branching:
    """The rule of each search, by name; "auto" is the search's own choice.

    Attributes:
        inputs, activations, mixed: for splits of input boxes, of activations, and of both in one tree.
    """

    inputs: str = "auto"
    activations: str = "auto"
    mixed: str = "auto"

    @classmethod
    def named(cls, name: str) -> Branching:
        """The rule of that name for every search that has one, else "auto".

        Raises:
            UnknownNameError: no search has a rule called so; it lists those that are known.
        """
        if name != "auto" and all(name not in rules.names() for rules in KINDS.values()):
            every = sorted({"auto"}.union(*(rules.names() for rules in KINDS.values())))
            raise UnknownNameError("branching rule", name, every)
        return cls(**{kind: name for kind, rules in KINDS.items() if name in rules.names()})
