"""Which bounds of the hosts are believed: each operator of their graphs, in random networks, by each of their methods.

python benchmarks/host_laws.py                       # every operator, for the host that is installed or chosen
ZONOPLUG_LIRPA=/folder/of/0.7 python benchmarks/host_laws.py
python benchmarks/host_laws.py --only BoundRelu,BoundAdd --methods ibp,crown --again
python benchmarks/host_laws.py --list                # writes the list and the table from what was found so far

A case is a small random network around the operator, one to three boxes, float32 or float64, perhaps a specification
matrix. The law is broken where a value that is reached lies outside the bounds by more than rounding explains; see
`zonoplug.testing.host_bounds`. An operator is trusted for a method if the law held in `--cases` cases (60) whose
bounds were finite, and never broke; where the method raises, or claims nothing, a case does not count. After one
broken law the search for more stops. What is found goes to `benchmarks/results/host_laws_VERSION.json`, operator by
operator, so that a run may be cut; the list of what is trusted is `zonoplug/lirpa/trusted_operators.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from host_laws_cases import Core, Net, random_box
from host_laws_families import FAMILIES
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.errors import ZonoplugError
from zonoplug.lirpa import compat
from zonoplug.lirpa.methods import HOST_METHODS, BoundMethod
from zonoplug.lirpa.module import ZonotopeModule, bound_set, build
from zonoplug.lirpa.trust import LIST, key_of
from zonoplug.testing.host_bounds import escape, reached

RESULTS = Path(__file__).parent / "results"
TABLE = RESULTS / "host_laws.md"
# What counts as which method of the host, and in which share of the cases it is tried.
SPELLINGS: dict[str, dict[str, float]] = {
    **{method: {method: 1.0} for method in HOST_METHODS},
    "crown": {"crown": 1.0, "zonotope+crown": 0.5, "zonotope+full-crown": 0.25},
    "alpha-crown": {"alpha-crown": 1.0, "zonotope+alpha-crown": 0.2},
}
ATTEMPTS = 6  # times `--cases`, at most
STEPS = {"iteration": 2, "start_save_best": -1.0, "lr_alpha": 0.7}  # of slopes: few, long ones, and all count
HOPELESS = 25  # cases without any bound, after which a method counts as not available


@dataclass
class Found:
    """What became of the cases of one operator and one method."""

    held: int = 0
    open: int = 0
    raised: int = 0
    broken: str = ""
    reason: str = ""

    def settled(self, cases: int) -> bool:
        tries = self.held + self.open + self.raised
        return self.held >= cases or bool(self.broken) or (tries >= HOPELESS and not self.held)


NOTHING = vars(Found())


@dataclass
class Case:
    """A network in the host's graph, boxes, and what it reaches on them."""

    graph: Any
    box: Box
    rows: Tensor | None
    truth: Any
    text: str
    random: random.Random = field(repr=False)

    def verdict(self, method: str) -> tuple[str, str]:
        """What the bounds are worth ("held", "open", "raised" or "broken"), and a few words."""
        parsed = BoundMethod.parse(method)
        with torch.enable_grad() if parsed.needs_gradients else torch.no_grad(), compat.quietly():
            try:
                bounds, _ = bound_set(self.graph, self.box, parsed, self.rows)
            except Exception as error:
                return "raised", f"{type(error).__name__} {str(error).strip()}".splitlines()[0][:90]
        if bounds.lower.shape != self.truth.lower.shape:
            return "raised", f"bounds of shape {tuple(bounds.lower.shape)} for {tuple(self.truth.lower.shape)}"
        if not bool(bounds.lower.isfinite().any()):
            return "open", ""
        worst = escape(bounds, self.truth)
        return (
            ("held", "") if worst <= 1 else ("broken", f"{method}: {worst:.2g} times what rounding may do; {self.text}")
        )


def make_case(name: str, number: int, seed: int) -> Case:
    """Case `number` of an operator; the same for the same seed.

    Raises:
        Exception: the attributes do not fit together, or the host cannot build the network.
    """
    r = random.Random(f"{seed} {name} {number}")
    torch.manual_seed(r.getrandbits(40))
    dtype = torch.float64 if r.random() < 0.35 else torch.float32
    core: Core = FAMILIES[name][number % len(FAMILIES[name])](r)
    net = Net(r, core).to(dtype).eval()
    box = random_box(r, core.shape, dtype)
    with torch.no_grad():
        image = net(box.lower)
    if r.random() < 0.3:
        graph = compat.build(net, box.lower[:1], "matrix", module_class=ZonotopeModule)
    else:
        graph = build(net, box.lower[:1])
    graph.bound_opts["optimize_bound_args"] |= STEPS
    boxes, outputs = box.lower.shape[0], image[0].numel()
    rows = torch.randn(boxes, 2, outputs, dtype=dtype) if image.dim() == 2 and r.random() < 0.5 else None
    text = f"seed {seed}, case {number}: {' '.join(str(core.function).split())[:110]} on {boxes} x {core.shape}"
    return Case(graph, box, rows, reached(net, box, rows), text, r)


def try_operator(
    name: str, cases: int, seed: int, methods: Collection[str] = HOST_METHODS
) -> dict[str, dict[str, Found]]:
    """Key of each class that serves the operator -> method of the host -> what became of its cases."""
    table: dict[str, dict[str, Found]] = {}
    unbuilt = ""
    for number in range(ATTEMPTS * cases):
        if table and all(found.settled(cases) for row in table.values() for found in row.values()):
            break
        if not table and number >= HOPELESS:
            break
        try:
            case = make_case(name, number, seed)
        except Exception as error:
            unbuilt = f"{type(error).__name__}: {error}"
            if not isinstance(error, ZonoplugError | ValueError | RuntimeError | NotImplementedError | AssertionError):
                print(f"{name} {number}: {unbuilt}", flush=True)
            continue
        keys = {
            key_of(node) for node in case.graph._modules.values() if type(node).__name__ == name and node.from_input
        }
        for key in keys:
            table.setdefault(key, {method: Found() for method in methods})
        for method, spellings in SPELLINGS.items():
            if method not in methods:
                continue
            asked = [table[key][method] for key in keys if not table[key][method].settled(cases)]
            if asked:
                _record(case, spellings, asked)
    if not table:
        print(f"{name}: not met ({unbuilt[:100]})", flush=True)
    return table


def _record(case: Case, spellings: dict[str, float], asked: list[Found]) -> None:
    for spelling, share in spellings.items():
        if case.random.random() >= share:
            continue
        kind, words = case.verdict(spelling)
        for found in asked:
            if kind == "broken":
                found.broken = words
            elif kind == "raised" or share == 1.0:
                setattr(found, kind, getattr(found, kind) + 1)
                found.reason = words or found.reason


def results_file() -> Path:
    return RESULTS / f"host_laws_{compat.HOST_VERSION}.json"


def write_list() -> None:
    """The list of what is trusted, and the table for people, from the results of all hosts."""
    found = {
        file.stem.removeprefix("host_laws_"): json.loads(file.read_text()) for file in RESULTS.glob("host_laws_*.json")
    }
    hosts = {
        version: {
            method: sorted(
                key for key, row in result["operators"].items() if _trusted(row.get(method, NOTHING), result["cases"])
            )
            for method in HOST_METHODS
        }
        for version, result in sorted(found.items())
    }
    seeds = {version: {"seed": result["seed"], "cases": result["cases"]} for version, result in sorted(found.items())}
    LIST.write_text(
        json.dumps({"made by": "benchmarks/host_laws.py", "runs": seeds, "trusted": hosts}, indent=1) + "\n"
    )
    TABLE.write_text(_table(found))


def _trusted(row: dict[str, Any], cases: int) -> bool:
    return row["held"] >= cases and not row["broken"]


def _table(found: dict[str, Any]) -> str:
    lines = [
        "# The laws of the hosts' bounds, operator by operator",
        "",
        "Written by `python benchmarks/host_laws.py --list`. A number: that many random cases held and none broke, so",
        "that the operator is trusted for the method; (n): fewer than asked for held, the others raised or claimed",
        "nothing; -: no case gave a bound; ?: not tried; **broken**: see the examples below the table. Classes with a",
        "module's name are our own.",
    ]
    for version, result in sorted(found.items()):
        lines += ["", f"## auto_LiRPA {version} (seed {result['seed']}, {result['cases']} cases asked for)", ""]
        lines += ["| operator | " + " | ".join(HOST_METHODS) + " |", "|---" * (len(HOST_METHODS) + 1) + "|"]
        broken = []
        for key, row in sorted(result["operators"].items()):
            cells = [_cell(row.get(method, NOTHING), result["cases"]) for method in HOST_METHODS]
            lines.append(f"| {key} | " + " | ".join(cells) + " |")
            broken += [f"- {key}, {method}: {of['broken']}" for method, of in sorted(row.items()) if of["broken"]]
        lines += ["", *broken]
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any], cases: int) -> str:
    if row["broken"]:
        return "**broken**"
    if row["held"] >= cases:
        return str(row["held"])
    if not row["held"] + row["open"] + row["raised"]:
        return "?"
    return f"({row['held']})" if row["held"] else "-"


def main() -> int:
    """Try operators, write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of operators, separated by commas")
    parser.add_argument("--methods", default=",".join(HOST_METHODS), help="of the host, separated by commas")
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="only write the list and the table")
    parser.add_argument("--again", action="store_true", help="also operators that the results have already")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if chosen.list:
        write_list()
        return 0
    file = results_file()
    result: dict[str, Any] = {"seed": chosen.seed, "cases": chosen.cases, "operators": {}, "tried": {}}
    if file.exists():
        result = json.loads(file.read_text())
    for name in chosen.only.split(",") if chosen.only else FAMILIES:
        done = result["tried"].get(name, [])
        methods = [method for method in chosen.methods.split(",") if chosen.again or method not in done]
        if not methods:
            continue
        start = time.monotonic()
        for key, row in try_operator(name, chosen.cases, chosen.seed, methods).items():
            result["operators"].setdefault(key, {}).update({method: vars(found) for method, found in row.items()})
            cells = {method: _cell(vars(found), chosen.cases) for method, found in row.items()}
            print(f"{key} {time.monotonic() - start:.0f} s {cells}", flush=True)
        result["tried"][name] = sorted({*done, *methods})
        file.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    write_list()
    return 0


if __name__ == "__main__":
    sys.exit(main())
