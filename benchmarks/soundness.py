"""Does any stage of the verifier prove a planted counterexample away? Prints each run; exit status 1 if one does.

Networks: benchmarks/planted_violations.py, several seeds of each. Runs: the whole verifier; without attacks, so that
only bounds count; with each kind of split alone; and with every reduction at the root and in the search.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from planted_violations import LARGE, SMALL, Planted

from zonoplug.reduction import REDUCTIONS
from zonoplug.verify.outcome import Outcome
from zonoplug.verify.settings import Settings
from zonoplug.verify.verifier import verify_files

BLIND = ("attack", "inner-attack")


def runs(seconds: float) -> dict[str, Settings]:
    """The settings to try, by a name for the table."""
    chosen = {
        "whole": Settings(seconds, device="cpu"),
        "no attack": Settings(seconds, device="cpu", without=BLIND),
        "no attack, no crown": Settings(seconds, device="cpu", without=(*BLIND, "crown")),
        "no attack, plain pre-activation bounds": Settings(seconds, device="cpu", without=(*BLIND, "refined-bounds")),
        "no attack, signs split": Settings(seconds, device="cpu", without=(*BLIND, "input-splits")),
    }
    for name in REDUCTIONS.names():
        method = f"zonotope[{name},16]"
        chosen[method] = Settings(seconds, method, "cpu", without=BLIND)
    return chosen


def run(case: Planted, settings: Settings) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return verify_files(*case.write(Path(folder)), settings)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="limit of each run (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="networks of each kind (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=sorted(SMALL | LARGE), help="kinds of networks (default: all)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    for kind in arguments.only or [*SMALL, *LARGE]:
        for seed in range(arguments.seeds):
            case = (SMALL | LARGE)[kind](seed)
            if not case.output_at_point() >= case.threshold:
                raise SystemExit(f"{kind}, seed {seed}: the planted point is no counterexample")
            for name, settings in runs(arguments.seconds).items():
                outcome = run(case, settings)
                is_wrong = outcome.verdict.value == "unsat"
                wrong += is_wrong
                flag = "WRONG" if is_wrong else ""
                print(f"{kind:20} {seed:3} {name:30} {outcome.verdict.value:8} {outcome.summary()[:60]:60} {flag}")
                sys.stdout.flush()
    print(f"{wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
