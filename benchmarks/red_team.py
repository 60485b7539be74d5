"""Makes networks and specifications on which an answer can be false, runs every stage on them, and counts.

    python benchmarks/red_team.py --runs 20000 --seed 0 --out runs.jsonl --table table.md [--keep FOLDER]

Each class of instances gets as many as any other. What is true of an instance is known before it is run: a planted
point that ONNX Runtime maps into the unsafe set (see redteam/planting.py), the optimum of a mixed-integer program
(redteam/optimum.py), or exact arithmetic (redteam/statements.py). Another call with the same arguments goes on where
the last one ended. Limits are of processor time, not of the clock. `--explore SECONDS` lets Hypothesis choose. Exit
status 1 if an answer is false or an exception escapes. A folder that --keep names gets every false instance as a case
with model.onnx, spec.vnnlib and case.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

RUNS_PER_PROCESS = 1500
STUCK_SECONDS = 300.0
AGAIN, DONE = 3, 0


def main() -> int:
    options = _options()
    if options.worker:
        return _work(options)
    out = Path(options.out)
    start = time.monotonic()
    while True:
        status = _watched(options, out, start)
        if status == DONE:
            break
    from redteam.report import table

    text = table([json.loads(line) for line in out.read_text().splitlines()], options.seed)
    if options.table:
        Path(options.table).write_text(text)
    print(text)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return int(any(row.get("false") or row.get("verdict") in ("raise", "crash", "hang") for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="instance-and-method runs in all (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="red_team.jsonl", help="one row for each run; appended to")
    parser.add_argument("--table", help="write the table here")
    parser.add_argument("--keep", help="a folder for cases of false answers")
    parser.add_argument("--classes", nargs="+", default=[], metavar="WORD", help="only classes with one of these words")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--more", type=int, default=3, help="further runs of each instance (default %(default)s)")
    parser.add_argument("--explore", type=float, default=0.0, help="seconds in which Hypothesis chooses, at the end")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _watched(options: argparse.Namespace, out: Path, start: float) -> int:
    """One process that works, watched: what it was at when it crashed or got stuck becomes a row."""
    pending = out.with_suffix(".pending")
    pending.unlink(missing_ok=True)  # of a call that was ended from outside
    left = options.seconds - (time.monotonic() - start)
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", "--seconds", str(left)]
    worker = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    stuck = False
    while worker.poll() is None:
        time.sleep(0.3)
        if pending.exists() and time.time() - pending.stat().st_mtime > STUCK_SECONDS:
            stuck = True
            worker.kill()
            worker.wait()
    if worker.returncode in (DONE, AGAIN):
        return worker.returncode
    if not pending.exists():
        raise SystemExit(f"the worker ended with status {worker.returncode} before its first run")
    row = json.loads(pending.read_text()) | {"verdict": "hang" if stuck else "crash"}
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    pending.unlink()
    return AGAIN


def _work(options: argparse.Namespace) -> int:
    import torch
    from redteam.classes import CLASSES
    from redteam.report import header
    from redteam.running import use_processor_time
    from redteam.session import Session, explore

    torch.set_num_threads(1)
    use_processor_time()
    out = Path(options.out)
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    names = [name for name in CLASSES if not options.classes or any(word in name for word in options.classes)]
    with out.open("a", buffering=1) as file, tempfile.TemporaryDirectory() as folder:
        if not known:
            file.write(json.dumps(header(options.seed)) + "\n")
        session = Session(options.seed, file, out.with_suffix(".pending"), Path(folder), options.keep, known)
        limit = time.monotonic() + options.seconds
        number = 0
        done: Counter[Any] = session.counts
        while done.total() < options.runs:
            for name in names:
                if time.monotonic() > limit or done.total() >= options.runs:
                    break
                session.play(name, number, options.more)
                if session.made >= RUNS_PER_PROCESS:
                    return AGAIN
            number += 1
            if time.monotonic() > limit:
                return DONE
        if options.explore:
            explore(session, names, min(options.explore, limit - time.monotonic()))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
