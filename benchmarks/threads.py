"""Do more threads help? The same instances with one thread and with two, one after the other, several times.

A ratio below 1 says that two threads are faster. The default is one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from children import environment
from instances import PACK, ROOT, Instance, instances

from zonoplug.report.tables import markdown_table

CASES = (("acasxu", "prop_5", "unsat"), ("mnist_fc", "prop_11_0.05", "unsat"), ("oval21", "base_kw", "unsat"))
RUN = """
import json, sys, torch
threads, model, specification, limit = int(sys.argv[1]), *sys.argv[2:4], float(sys.argv[4])
torch.set_num_threads(threads)
from zonoplug.verify.settings import Settings
from zonoplug.verify.verifier import verify_files
outcome = verify_files(model, specification, Settings(limit, device="cpu"))
print(json.dumps([outcome.verdict.value, outcome.seconds, outcome.subdomains]))
"""


def run(instance: Instance, threads: int, limit: float) -> tuple[str, float, int]:
    count = str(threads)
    threaded = environment() | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    words = [sys.executable, "-c", RUN, count, str(instance.model), str(instance.specification), str(limit)]
    done = subprocess.run(words, capture_output=True, text=True, env=threaded, check=True)
    verdict, seconds, subdomains = json.loads(done.stdout.splitlines()[-1])
    return verdict, seconds, subdomains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, default=PACK, help="folder of VNN-COMP benchmarks (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=30.0, help="limit of each run (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, alternating (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "threads.md")
    arguments = parser.parse_args()
    rows = []
    for benchmark, named, expected in CASES:
        instance = next(
            one
            for one in instances(arguments.pack, benchmark)
            if named in one.name and one.expected == expected and one.model.exists()
        )
        rates: dict[int, list[float]] = {1: [], 2: []}
        verdicts = set()
        for _ in range(arguments.repeat):
            for threads, seen in rates.items():
                verdict, seconds, subdomains = run(instance, threads, arguments.timeout)
                seen.append(seconds / max(subdomains, 1))
                verdicts.add(verdict)
        one, two = (statistics.median(seen) * 1000 for seen in rates.values())
        rows.append((instance.name, "/".join(sorted(verdicts)), f"{one:.2f}", f"{two:.2f}", f"{two / one:.2f}"))
        print(*rows[-1], flush=True)
    head = ("instance", "verdict", "ms a subdomain, 1 thread", "2 threads", "ratio")
    text = (
        f"# One thread or two\n\nMade by `benchmarks/threads.py` on {os.cpu_count()} cores: medians of"
        f" {arguments.repeat} runs, at most {arguments.timeout:g} s each, one and two threads in turn.\n\n"
        f"{markdown_table(head, rows)}\n"
    )
    arguments.output.write_text(text)
    print(f"\n{text}\nwritten to {arguments.output}")


if __name__ == "__main__":
    main()
