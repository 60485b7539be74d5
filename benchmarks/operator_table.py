"""What each operator of a network gets: the table of the README, from the operator table itself.

python benchmarks/operator_table.py            # writes it into README.md
python benchmarks/operator_table.py --check    # says whether README.md has it, and exits with 1 if not
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from zonoplug.lirpa import compat
from zonoplug.lirpa.fusion.formulas import ACTIVATIONS
from zonoplug.lirpa.operators.all import TRANSFORMERS, Entry

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- operators: written by benchmarks/operator_table.py -->", "<!-- operators: end -->"

# Operators of the supported hosts that carry values and have no transformer.
FALLBACK = frozenset(
    "ATenDiag ATenDiagonal ConcatFromSequence CumSum GatherElements LayerNormalization RNN ReduceProd Sec Tan"
    " Conv2dGrad ReluGrad SigmoidGrad SliceGrad TanhGrad ConcatGrad JacobianInit JacobianOP".split()
)
# Classes that are no operators of a network on perturbed values: bases, leaves, shapes, and numbers.
NO_OPERATORS = frozenset(
    "Activation Buffers Constant ConstantOfShape Equal Input MinMax MultiPiecewiseNonlinear Not OptimizableActivation"
    " Params PrimConstant Range Reduce SShaped Shape SoftmaxImpl TwoPieceLinear".split()
)
MEANING = {
    "exact": "exact",
    "relaxation": "relaxation: two parallel lines, of least area",
    "composition": "composition of relaxations and products",
    "exact, composition": "exact where one operand is constant, composition where two are perturbed",
    "relaxation, composition": "relaxation where one operand is perturbed, composition where several are",
}


def kinds(entry: Entry | None) -> str:
    """What an entry gives, and what it gives where that does not apply: "exact, composition"."""
    found: list[str] = []
    while entry is not None:
        found.append(entry.kind)
        entry = entry.otherwise
    return ", ".join(found)


def table() -> str:
    """The table, in Markdown."""
    patterns = {*ACTIVATIONS, "BoundNormalization"}
    ours = {name: entry for name, entry in TRANSFORMERS.items() if _module(entry).startswith("zonoplug.")}
    rows = [
        (meaning, names(name for name, entry in ours.items() if name not in patterns and kinds(entry) == kind))
        for kind, meaning in MEANING.items()
    ]
    rows.append(("the same, found where it is written as several operators", names({*patterns, *_IN_PARTS})))
    rows.append(("fallback: the host's interval, as a box, with a warning", f"{names(FALLBACK)}, and anything else"))
    lines = ["| what it gets | operators |", "|---|---|", *(f"| {meaning} | {found} |" for meaning, found in rows)]
    return "\n".join(lines)


def _module(entry: Entry) -> str:
    """Where a transformer is from: not everybody's are in the README."""
    return str(getattr(entry.transformer, "func", entry.transformer).__module__)


_IN_PARTS = ("BoundSoftmax", "BoundLogSoftmax")


def names(classes: Iterable[str]) -> str:
    """Operator names, sorted, without the host's prefixes."""
    return ", ".join(sorted(name.removeprefix("Bound").removeprefix("ATen") for name in classes))


def unlisted() -> list[str]:
    """Operator classes of the installed host that the table says nothing about."""
    host = importlib.import_module(f"{compat.BoundedModule.__module__.partition('.')[0]}.operators")
    found = {name for name in vars(host) if name.startswith("Bound") and isinstance(getattr(host, name), type)}
    known = {*TRANSFORMERS, *(f"Bound{name}" for name in (*FALLBACK, *NO_OPERATORS)), "Bound"}
    return sorted(found - known)


def with_table(text: str) -> str:
    """The README's text with the table in its place."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    """Write the table, or compare it."""
    text = README.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        return int(with_table(text) != text)
    README.write_text(with_table(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
