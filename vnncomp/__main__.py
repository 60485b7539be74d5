"""`python -m vnncomp v1 CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT`: one instance, silently, into a results file.

The results file's first line is the verdict, or `error`; for `sat` the counterexample follows. Nothing goes to stdout.
Input bounds that no number of the model's type satisfies are read as the nearest numbers, as the competition does.
"""

from __future__ import annotations

import sys

from vnncomp.categories import category_settings
from zonoplug.cli import report_error, verdict_text, verification_request
from zonoplug.errors import SettingError, ZonoplugError
from zonoplug.io.results import ResultsFile
from zonoplug.watchdog import Interrupted, run_job

USAGE = "usage: run_instance.sh v1 CATEGORY ONNX_FILE VNNLIB_FILE RESULTS_FILE TIMEOUT_SECONDS"


def main(arguments: list[str]) -> int:
    """Run one instance. Returns the exit status: 0 for any verdict, 2 for an error."""
    results: ResultsFile | None = None
    try:
        if len(arguments) != 6 or arguments[0] != "v1":
            raise SettingError(USAGE)
        _, category, model, specification, results_path, timeout = arguments
        results = ResultsFile(results_path)
        try:
            seconds = float(timeout)
        except ValueError:
            raise SettingError(f"TIMEOUT_SECONDS is {timeout!r}, and must be a number. {USAGE}") from None
        # The competition's checker compares inputs with bounds that are rounded to the model's type.
        request, limit = verification_request(model, specification, seconds, input_bounds="nearest")
        request["settings"] |= category_settings(category)
        result = run_job(request, limit)
        if result["verdict"] == "error":
            raise ZonoplugError("; ".join(result["notes"]))
        results.write(verdict_text(result))
        return 0
    except ZonoplugError as error:
        return report_error(str(error), results)
    except Interrupted as signal:
        if results is not None:
            results.write("unknown\n")
        return 128 + signal.number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
