"""What each part of the search is worth: instances solved and time, with everything, and with one thing changed.

Three groups of rows: one component left out; another branching rule; another bound method, at the root and in the
search. What belongs to one kind of split is run on those instances on which the whole search came to splits of that
kind. Rows are compared with the whole search on the same instances.

Each run is a process of its own, as a user's. Seconds are whole runs, start-up included, unsolved ones at the limit;
compare them within one table only. The file is written anew after each row.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instances import PACK, ROOT, Instance, instances

from zonoplug.lirpa.methods import BoundMethod
from zonoplug.report.tables import markdown_table
from zonoplug.verify.branching.by_name import KINDS, Branching
from zonoplug.verify.components import COMPONENTS, check_components
from zonoplug.watchdog import Interrupted, run_job

BENCHMARKS = {
    "acasxu": 5,
    "dist_shift": 2,
    "linearizenn": 2,
    "collins_rul_cnn": 2,
    "tllverifybench": 1,
    "rl_benchmarks": 2,
    "reach_prob_density": 2,
    "safenlp": 10,
    "cora": 2,
    "mnist_fc": 3,
    "oval21": 5,
    "sri_resnet_b": 2,
    "vit": 2,
    "traffic_signs": 1,
}
START_SECONDS = 10.0  # for the start of a process and its end, beside its limit
METHODS = ("zonotope", "zonotope[girard,50%]", "alpha-zonotope", "zonotope+crown", "crown")
SPLITS = {"inputs": "input splits", "activations": "activation splits", "mixed": "mixed splits"}
BELONGS_TO = {  # components of some searches only, by the kinds of splits that these do; all others act everywhere
    "inner-attack": ("inputs", "activations", "mixed"),
    "input-splits": ("inputs",),
    "influence": ("inputs",),
    "contraction": ("inputs", "mixed"),
    "activation-splits": ("activations",),
    "mixed-splits": ("mixed",),
    "refined-bounds": ("activations",),
    "tuned-linear-bounds": ("activations",),
    "affine-form": ("activations",),
    "neuron-search": ("activations",),
    "linear-programs": ("activations",),
    "clipping": ("mixed",),
}
HEAD = ("search", "solved", "wrong", "seconds", "subdomains", "whole search: solved", "its seconds", "time ratio")


@dataclass(frozen=True)
class Configuration:
    """One row: a name, settings that differ from the default, and the kinds of splits that it is about, () for all."""

    group: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    splits: tuple[str, ...] = ()


WHOLE = Configuration("Ingredients left out", "everything")


def configurations(without: Sequence[str], branching: Sequence[str], methods: Sequence[str]) -> Iterator[Configuration]:
    """The rows that are compared with the whole search."""
    for name in without:
        yield Configuration(WHOLE.group, f"without {name}", {"without": [name]}, BELONGS_TO.get(name, ()))
    for kind, rules in KINDS.items():
        for name in sorted(set(branching) & set(rules.names())):
            yield Configuration("Branching rules", f"{SPLITS[kind]} by {name}", {"branching": name}, (kind,))
    for name in methods:
        yield Configuration("Bound methods", name, {"method": name})


@dataclass(frozen=True)
class Run:
    """One instance under one configuration; `splits` are the kinds of splits that the search came to."""

    verdict: str
    seconds: float
    subdomains: int
    splits: tuple[str, ...]

    @property
    def is_solved(self) -> bool:
        return self.verdict in ("sat", "unsat")

    def is_wrong(self, expected: str) -> bool:
        return {self.verdict, expected} == {"sat", "unsat"}


def run(instance: Instance, settings: dict[str, Any], cap_seconds: float) -> Run:
    limit = min(cap_seconds, instance.timeout_seconds)
    request = {
        "job": "verify",
        "model": str(instance.model),
        "specification": str(instance.specification),
        "settings": {"timeout_seconds": limit, "device": "cpu"} | settings,
    }
    start = time.monotonic()
    answer = run_job(request, limit + START_SECONDS)
    seconds = time.monotonic() - start
    stages = answer.get("search", {}).get("seconds_by_stage", {})
    splits = tuple(kind for kind, words in SPLITS.items() if any(stage.endswith(f" with {words}") for stage in stages))
    return Run(answer["verdict"], min(seconds, limit), answer.get("subdomains", 0), splits)


class Table:
    """The rows so far, and the file that they are written to.

    Args:
        chosen: instances.
        cap_seconds: on each run.
        waiting: configurations to be run, the whole search first.
    """

    def __init__(self, chosen: list[Instance], cap_seconds: float, waiting: list[Configuration], output: Path) -> None:
        self._chosen, self._cap, self._output = chosen, cap_seconds, output
        self._waiting = waiting
        self._whole: dict[Instance, Run] = {}
        self._rows: dict[str, list[tuple[str, ...]]] = {}
        self._nowhere: list[str] = []

    def fill(self) -> None:
        """Run every configuration, and write the file after each."""
        while self._waiting:
            now = self._waiting[0]
            where = [one for one in self._chosen if not now.splits or set(now.splits) & set(self._whole[one].splits)]
            runs = {}
            for instance in where:
                runs[instance] = found = run(instance, now.settings, self._cap)
                line = f"{now.name:28} {instance.name[:60]:60} {found.verdict:8} {found.seconds:5.1f} s"
                print(line, *found.splits, flush=True)
            if now is WHOLE:
                self._whole = runs
            if runs:
                self._rows.setdefault(now.group, []).append(self._row(now, runs))
            else:
                self._nowhere.append(now.name)
            del self._waiting[0]
            self._output.write_text(self.text())

    def _row(self, configuration: Configuration, runs: dict[Instance, Run]) -> tuple[str, ...]:
        wrong = sum(found.is_wrong(instance.expected) for instance, found in runs.items())
        name, row = configuration.name, [_solved(runs.values()), str(wrong), _seconds(runs.values())]
        row.append(f"{sum(found.subdomains for found in runs.values()):,}")
        if configuration is WHOLE:
            return name, *row, "", "", ""
        whole = [self._whole[instance] for instance in runs]
        pairs = zip(runs.values(), whole, strict=True)
        ratios = [mine.seconds / theirs.seconds for mine, theirs in pairs if mine.is_solved and theirs.is_solved]
        ratio = f"{statistics.geometric_mean(ratios):.2f}" if ratios else "-"
        return name, *row, _solved(whole), _seconds(whole), ratio

    def text(self) -> str:
        """The file."""
        number = {instance.benchmark: 0 for instance in self._chosen}
        for instance in self._chosen:
            number[instance.benchmark] += 1
        used = ", ".join(f"{name} ({count})" for name, count in number.items())
        tables = [f"## {group}\n\n{markdown_table(HEAD, rows)}" for group, rows in self._rows.items()]
        left_out = [name.removeprefix("without ") for name, *_ in self._rows.get(WHOLE.group, [])]
        parts = [
            "# What each part of the search is worth",
            f"Made by `benchmarks/search.py`, with at most {self._cap:g} s for each instance of {used}. Each row"
            " changes one thing. The columns on the right are the whole search's on the same instances; the time ratio"
            " is the geometric mean over instances that both solve, below 1 where the row is faster. What belongs to"
            " one kind of split is run where the whole search came to splits of that kind. A rule that the search takes"
            " by itself shows how much two runs of the same differ.",
            *tables,
            "\n".join(f"- `{name}`: {COMPONENTS[name]}" for name in left_out if name in COMPONENTS),
        ]
        if self._nowhere:
            parts.append(
                f"No instance here was split that way, so these rows were not run: {', '.join(self._nowhere)}."
            )
        if self._waiting:
            parts.insert(2, f"**Unfinished.** Not run: {', '.join(one.name for one in self._waiting)}.")
        return "\n\n".join(part for part in parts if part) + "\n"


def _solved(runs: Iterable[Run]) -> str:
    solved = [found.is_solved for found in runs]
    return f"{sum(solved)}/{len(solved)}"


def _seconds(runs: Iterable[Run]) -> str:
    return f"{sum(found.seconds for found in runs):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rules = sorted({name for kind in KINDS.values() for name in kind.names()})
    parser.add_argument("--pack", type=Path, default=PACK, help="folder of VNN-COMP benchmarks (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=list(BENCHMARKS), help="benchmarks (default: %(default)s)")
    parser.add_argument("--count", type=int, help="instances of each benchmark (default: its own number)")
    parser.add_argument("--timeout", type=float, default=20.0, help="cap on each run's seconds (default: %(default)s)")
    every = "default: all; nothing behind it: none"
    parser.add_argument("--without", nargs="*", default=list(COMPONENTS), help=f"components to leave out ({every})")
    parser.add_argument("--branching", nargs="*", default=rules, help=f"branching rules ({every})")
    parser.add_argument("--methods", nargs="*", default=METHODS, help="bound methods (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "search.md")
    arguments = parser.parse_args()
    check_components(arguments.without)
    for name in arguments.branching:
        Branching.named(name)
    for name in arguments.methods:
        BoundMethod.parse(name)
    chosen = [
        instance
        for name in arguments.only
        for instance in instances(arguments.pack, name, arguments.count or BENCHMARKS.get(name, 3))
    ]
    rows = configurations(arguments.without, arguments.branching, arguments.methods)
    table = Table(chosen, arguments.timeout, [WHOLE, *rows], arguments.output)
    try:
        run(chosen[0], {}, arguments.timeout)  # the first process reads everything from disk: not measured
        table.fill()
    except (Interrupted, KeyboardInterrupt):
        print("interrupted")
    print(f"\n{table.text()}\nin {arguments.output}, as far as rows are whole")


if __name__ == "__main__":
    main()
