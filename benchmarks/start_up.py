"""Where the wall time of an instance goes that is decided at once.

    .venv/bin/python benchmarks/start_up.py [--repeats 7] [--model M.onnx --specification S.vnnlib]

Runs `run_instance.sh v1` on an instance whose first attack succeeds (by default the bundled violated digits property),
and fresh processes that only import parts of what it needs. Prints medians in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from children import ROOT, environment

from zonoplug.examples import digits_model, digits_violated
from zonoplug.report.tables import text_table

PARTS = {
    "Python alone": "pass",
    "the watching process": "import zonoplug.watchdog, zonoplug.io.results, zonoplug.cli",
    "numpy": "import numpy",
    "torch": "import torch",
    "onnxruntime and onnx": "import onnxruntime, onnx",
    "reading of models (torch, onnx2torch)": "import zonoplug.io.onnx_model as m; m.load_model",
    "the verifier, without the host": "import zonoplug.verify.verifier, zonoplug.io.onnx_model, zonoplug.io.vnnlib",
    "auto_LiRPA": "import zonoplug.lirpa.module",
}


def seconds_of(command: list[str]) -> float:
    """Wall time of one run. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", type=Path, default=digits_model())
    parser.add_argument("--specification", type=Path, default=digits_violated())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.txt"
        instance = ["v1", "start-up", str(options.model), str(options.specification), str(results), "60"]
        commands = {f"import: {name}": [sys.executable, "-c", code] for name, code in PARTS.items()}
        commands["whole instance"] = [str(ROOT / "run_instance.sh"), *instance]
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.repeats + 1):  # the first round warms the disk's cache and is dropped
            for name, command in commands.items():
                times[name].append(seconds_of(command))
        verdict = results.read_text().split()[0]
    rows = [
        (name, f"{statistics.median(values[1:]):.2f}", f"{min(values[1:]):.2f}", f"{max(values[1:]):.2f}")
        for name, values in times.items()
    ]
    print(text_table(("fresh process", "median s", "min", "max"), rows))
    print(f"verdict: {verdict}")


if __name__ == "__main__":
    main()
