"""What a verification ends with."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from zonoplug.specification import Floats
from zonoplug.verify.statistics import Statistics


class Verdict(str, Enum):
    """The competition's words. HOLDS: no point of the unsafe set is reached; VIOLATED: one is, and it is shown."""

    HOLDS = "unsat"
    VIOLATED = "sat"
    UNKNOWN = "unknown"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A point that ONNX Runtime confirmed: inputs (inputs,) in the model's precision, and their outputs (outputs,).

    `reading` says which input bounds were read as something else than what is written; "" if none were.
    """

    inputs: Floats
    outputs: Floats
    disjunct: int
    reading: str = ""


@dataclass(slots=True)
class Outcome:
    """A verdict and how it was reached.

    Attributes:
        method: the bound method, or "attack", that decided; the last one tried if nothing did.
        seconds: wall time.
        subdomains: how many subdomains were bounded.
        statistics: counts of the search.
        notes: what a user should know: methods found broken, operators bounded by intervals, why it is unknown.
    """

    verdict: Verdict
    counterexample: Counterexample | None = None
    method: str = ""
    seconds: float = 0.0
    subdomains: int = 0
    notes: list[str] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)

    def summary(self) -> str:
        """One line: how the verdict was reached."""
        parts = [
            self.method or "no method",
            f"{self.seconds:.2f} s",
            f"{self.subdomains} subdomain{'' if self.subdomains == 1 else 's'}",
        ]
        return ", ".join(parts) + "".join(f"; {note}" for note in self.notes)
