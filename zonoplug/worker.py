"""The process that does the work: reads a request as JSON from stdin, answers with JSON on stdout.

Nothing else can reach stdout: what libraries print there goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from typing import Any

MEMORY_SHARE = 0.9


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what the request's "job" says. Raises ZonoplugError for what a user can mend."""
    if request["job"] == "compare":
        from zonoplug.report.compare import measure_method

        return measure_method(request)
    if request["job"] == "trace":
        from zonoplug.report.trace import measure_trace

        return measure_trace(request)
    if request["job"] == "explain":
        from zonoplug.report.explain.page import explain_file

        return explain_file(request)
    import torch

    from zonoplug.clock import Deadline
    from zonoplug.io.counterexample import format_counterexample
    from zonoplug.verify.observer import Observer
    from zonoplug.verify.settings import Settings, load_problem
    from zonoplug.verify.verifier import Verification

    torch.set_num_threads(1)  # small batches on few cores: several threads wait for one another more than they help
    settings = Settings(**request["settings"] | {"without": tuple(request["settings"].get("without", ()))})
    deadline = Deadline(settings.timeout_seconds)
    settings.check()
    observer = Observer(_progress_line() if request.get("progress") else None)
    with observer.stage("reading"):
        problem = load_problem(request["model"], request["specification"], settings)
    if request.get("certificate"):
        from zonoplug.verify.leaf_record import LeafRecord

        observer.record = LeafRecord(problem)
    outcome = Verification(problem, settings, deadline, observer).run()
    if observer.record is not None:
        with observer.stage("certificate"):
            outcome.notes.append(_write_certificate(request, observer.record, outcome.verdict.value))
    if observer.progress is not None:
        observer.progress.clear()
    result = {
        "verdict": outcome.verdict.value,
        "method": outcome.method,
        "seconds": outcome.seconds,
        "subdomains": outcome.subdomains,
        "search": outcome.statistics.as_json(),
        "notes": outcome.notes,
        "summary": outcome.summary(),
    }
    if outcome.counterexample is not None:
        found = outcome.counterexample
        result["counterexample"] = format_counterexample(problem.specification, found.inputs, found.outputs)
        result["inputs"], result["outputs"] = found.inputs.tolist(), found.outputs.tolist()
    return result


def _progress_line() -> Any:
    """A line on this process's stderr, which it shares with the process that watches it."""
    from zonoplug.verify.progress import ProgressLine

    return ProgressLine(sys.stderr)


def _write_certificate(request: dict[str, Any], record: Any, verdict: str) -> str:
    """Write the proof of an `unsat` to the file that was asked for. Returns a note."""
    from zonoplug.io.results import ResultsFile
    from zonoplug.version import __version__

    path = request["certificate"]
    file = ResultsFile(path)
    if verdict != "unsat":
        return f"no certificate: the verdict is {verdict}"
    if not record.is_complete:
        return "no certificate: there are too many leaves"
    claim = record.certificate(request["model"], request["specification"], f"zonoplug {__version__}")
    data = claim.data(str(path).endswith(".gz"))
    file.write(data)
    return f"certificate of {len(data):,} bytes in {path}"


def limit_memory() -> None:
    """Let allocations fail before the system runs out of memory, so that running out can be reported."""
    if os.path.exists("/dev/nvidiactl"):
        return  # a CUDA driver maps far more than it uses
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open("/proc/meminfo") as lines:
            available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = int(MEMORY_SHARE * available)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


def main() -> None:
    """Answer one request and end at once, without waiting for libraries to tidy up."""
    output = os.dup(1)
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.read())
    limit_memory()
    from zonoplug.errors import ZonoplugError

    try:
        result = answer(request)
    except ZonoplugError as error:
        result = {"verdict": "error", "notes": [str(error)]}
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
            result = {"verdict": "error", "notes": [_unexpected(error)]}
        else:
            result = {"verdict": "unknown", "notes": ["out of memory"]}
    except Exception as error:
        result = {"verdict": "error", "notes": [_unexpected(error)]}
    with os.fdopen(output, "w") as stream:
        json.dump(result, stream)
    os._exit(0)


def _unexpected(error: Exception) -> str:
    if os.environ.get("ZONOPLUG_DEBUG"):
        import traceback

        traceback.print_exception(error)
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    return f"unexpected {type(error).__name__}: {reason} (set ZONOPLUG_DEBUG=1 to see where)"


if __name__ == "__main__":
    main()
