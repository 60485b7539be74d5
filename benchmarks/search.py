"""What each ingredient of the search is worth: instances solved and time, with everything and without each in turn.

Each run is a process of its own, as a user's. Seconds are whole runs, start-up included, unsolved ones at the limit;
compare them within one table only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from instances import PACK, ROOT, Instance, instances

from zonoplug.report.tables import markdown_table
from zonoplug.verify.ingredients import INGREDIENTS, check_ingredients
from zonoplug.watchdog import run_job

BENCHMARKS = {
    "acasxu": 8,
    "mnist_fc": 5,
    "cora": 4,
    "safenlp": 5,
    "linearizenn": 3,
    "collins_rul_cnn": 3,
    "dist_shift": 3,
    "tllverifybench": 2,
    "rl_benchmarks": 3,
    "reach_prob_density": 3,
    "oval21": 2,
}


@dataclass(frozen=True)
class Run:
    """One instance under one configuration."""

    verdict: str
    seconds: float
    subdomains: int

    def is_wrong(self, expected: str) -> bool:
        return {self.verdict, expected} == {"sat", "unsat"}


def run(instance: Instance, without: Iterable[str], cap_seconds: float) -> Run:
    limit = min(cap_seconds, instance.timeout_seconds)
    request = {
        "job": "verify",
        "model": str(instance.model),
        "specification": str(instance.specification),
        "settings": {"timeout_seconds": limit, "device": "cpu", "without": list(without)},
    }
    start = time.monotonic()
    answer = run_job(request, limit + 2.0)
    seconds = time.monotonic() - start
    return Run(answer["verdict"], min(seconds, limit), answer.get("subdomains", 0))


def row(name: str, chosen: list[Instance], runs: list[Run], base: list[Run] | None) -> tuple[str, ...]:
    """One line of the table; the ratio of times is the geometric mean over instances that both solve."""
    solved = [run.verdict in ("sat", "unsat") for run in runs]
    wrong = sum(run.is_wrong(instance.expected) for run, instance in zip(runs, chosen, strict=True))
    ratio = ""
    if base is not None:
        both = [
            mine.seconds / theirs.seconds
            for mine, theirs in zip(runs, base, strict=True)
            if {mine.verdict, theirs.verdict} <= {"sat", "unsat"}
        ]
        ratio = f"{statistics.geometric_mean(both):.2f}" if both else "-"
    total = sum(run.seconds for run in runs)
    subdomains = sum(run.subdomains for run in runs)
    return name, f"{sum(solved)}/{len(runs)}", str(wrong), f"{total:.0f}", ratio, f"{subdomains:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, default=PACK, help="folder of VNN-COMP benchmarks (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=list(BENCHMARKS), help="benchmarks (default: %(default)s)")
    parser.add_argument("--count", type=int, help="instances of each benchmark (default: its own number)")
    parser.add_argument("--timeout", type=float, default=20.0, help="cap on each run's seconds (default: %(default)s)")
    parser.add_argument("--without", nargs="+", default=list(INGREDIENTS), help="what to leave out, one after another")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "search.md")
    arguments = parser.parse_args()
    check_ingredients(arguments.without)
    chosen = [
        instance
        for name in arguments.only
        for instance in instances(arguments.pack, name, arguments.count or BENCHMARKS.get(name, 3))
    ]
    rows: list[tuple[str, ...]] = []
    base: list[Run] | None = None
    for name in ("", *arguments.without):
        runs = []
        for instance in chosen:
            runs.append(run(instance, (name,) if name else (), arguments.timeout))
            print(f"{name or 'everything':20} {instance.name[:70]:70} {runs[-1].verdict:8} {runs[-1].seconds:6.1f} s")
        rows.append(row(f"without {name}" if name else "everything", chosen, runs, base))
        base = base or runs
    head = ("search", "solved", "wrong", "seconds", "time ratio", "subdomains")
    used = ", ".join(f"{name} ({sum(one.benchmark == name for one in chosen)})" for name in arguments.only)
    kinds = "\n".join(f"- `{name}`: {INGREDIENTS[name]}" for name in arguments.without)
    text = (
        "# What each ingredient of the search is worth\n\nMade by `benchmarks/search.py`, with at most"
        f" {arguments.timeout:g} s for each instance of {used}. The time ratio is the geometric mean over instances"
        f" that the whole search solves too.\n\n{markdown_table(head, rows)}\n\n{kinds}\n"
    )
    arguments.output.write_text(text)
    print(f"\n{text}\nwritten to {arguments.output}")


if __name__ == "__main__":
    main()
