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
    if request["job"] == "explain":
        from zonoplug.report.explain_page import explain_file

        return explain_file(request)
    import torch

    from zonoplug.clock import Deadline
    from zonoplug.io.counterexample import format_counterexample
    from zonoplug.verify.verifier import Settings, Verification, check_method, load_problem

    torch.set_num_threads(1)  # small batches on few cores: several threads wait for one another more than they help
    settings = Settings(**request["settings"])
    deadline = Deadline(settings.timeout_seconds)
    check_method(settings.method)
    problem = load_problem(request["model"], request["specification"], settings)
    outcome = Verification(problem, settings, deadline).run()
    result = {
        "verdict": outcome.verdict.value,
        "method": outcome.method,
        "seconds": outcome.seconds,
        "subdomains": outcome.subdomains,
        "notes": outcome.notes,
        "summary": outcome.summary(),
    }
    if outcome.counterexample is not None:
        found = outcome.counterexample
        result["counterexample"] = format_counterexample(problem.specification, found.inputs, found.outputs)
        result["inputs"], result["outputs"] = found.inputs.tolist(), found.outputs.tolist()
    return result


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
