"""The command line."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from typing import Any

from zonoplug.arguments import COMMANDS, parser
from zonoplug.errors import SettingError, ZonoplugError
from zonoplug.io.results import ResultsFile
from zonoplug.watchdog import Interrupted, reporting_seconds, run_job, seconds_since_start


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0 for any verdict, 2 for an error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    results: ResultsFile | None = None
    try:
        if "--version" in words[:1]:
            print(_version())
            return 0
        results = _results_file(words)
        named = words[:1] and words[0] in (*COMMANDS, "-h", "--help")
        options = parser().parse_args(words if named else ["verify", *words])
        if options.command == "list":
            return _list()
        if options.command == "check-certificate":
            return _check_certificate(options)
        if options.command == "trace":
            return _trace(options)
        if options.command == "explain":
            return _explain(options)
        return _compare(options) if options.command == "compare" else _verify(options, results)
    except ZonoplugError as error:
        return report_error(str(error), results)
    except Interrupted as signal:
        if results is not None:
            results.write("unknown\n")
        print(f"zonoplug: stopped by {signal}", file=sys.stderr)
        return 128 + signal.number
    except KeyboardInterrupt:
        print("zonoplug: stopped", file=sys.stderr)
        return 130


def verdict_text(result: dict[str, Any]) -> str:
    """A results file's content: the verdict, and for `sat` the counterexample."""
    text: str = result["verdict"] + "\n"
    if result["verdict"] == "sat":
        text += result["counterexample"].rstrip("\n") + "\n"
    return text


def verification_request(
    model: str, specification: str, timeout_seconds: float, **choices: Any
) -> tuple[dict[str, Any], float]:
    """A worker's request, and the seconds after which the watchdog ends it.

    Args:
        model, specification: files.
        timeout_seconds: for the whole run.
        choices: other fields of `Settings`.
    Raises:
        SettingError: a time limit that is not a positive number.
    """
    if not timeout_seconds > 0 or math.isnan(timeout_seconds):
        raise SettingError(f"The time limit is {timeout_seconds:g} seconds, and must be above 0. Type: --timeout 60")
    reserve = reporting_seconds(timeout_seconds)
    left = timeout_seconds - seconds_since_start() - reserve
    settings = {"timeout_seconds": max(left - reserve, 0.01), **choices}
    request = {"job": "verify", "model": model, "specification": specification, "settings": settings}
    return request, max(left, 0.05)


def _verify(options: argparse.Namespace, results: ResultsFile | None) -> int:
    chosen = {name: getattr(options, name) for name in ("method", "branching", "device", "seed", "input_bounds")}
    request, limit = verification_request(options.model, options.specification, _seconds(options.timeout), **chosen)
    request["progress"] = sys.stderr.isatty() and not options.quiet
    if options.certificate:
        ResultsFile(options.certificate)  # before any work: it can be written, and no older one stays there
        request["certificate"] = options.certificate
    result = run_job(request, min(limit, 1e8))
    if request["progress"]:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # a worker that was ended left its line there
    if result["verdict"] == "error":
        raise ZonoplugError("; ".join(result["notes"]))
    if results is not None:
        results.write(verdict_text(result))
    if options.json:
        shown = {key: value for key, value in result.items() if key not in ("counterexample", "summary")}
        print(json.dumps(shown))
    else:
        print(verdict_text(result) + (result.get("summary") or "; ".join(result["notes"])))
    return 0


def _compare(options: argparse.Namespace) -> int:
    limit = _seconds(options.timeout)
    results = []
    for method in re.split(r",(?![^\[]*\])", options.methods):  # commas inside brackets belong to a method
        settings = {"timeout_seconds": limit, "method": "auto", "device": options.device, "seed": options.seed}
        request = {
            "job": "compare",
            "model": options.model,
            "specification": options.specification,
            "method": method.strip(),
            "settings": settings,
        }
        results.append({"method": method.strip()} | run_job(request, limit))
    if all(result.get("verdict") == "error" for result in results):
        raise ZonoplugError("; ".join(dict.fromkeys(note for result in results for note in result["notes"])))
    if options.json:
        print(json.dumps(results))
    else:
        from zonoplug.report.compare import comparison_table

        print(comparison_table(results))
    return 0


def _check_certificate(options: argparse.Namespace) -> int:
    from zonoplug.certificates.check import check_certificate

    report = check_certificate(options.model, options.specification, options.certificate, options.further_splits)
    print(report.text())
    return 0 if report.valid else 1


def _trace(options: argparse.Namespace) -> int:
    limit = _seconds(options.timeout)
    settings = {"timeout_seconds": limit, "method": "auto", "device": options.device, "seed": options.seed}
    request = {
        "job": "trace",
        "model": options.model,
        "specification": options.specification,
        "method": options.method,
        "settings": settings,
    }
    result = run_job(request, limit)
    if "reductions" not in result:
        raise ZonoplugError("; ".join(result["notes"]))
    if options.plot is not None:
        from zonoplug.report.trace_plot import draw_trace

        draw_trace(result, options.plot)
    if options.json:
        print(json.dumps(result))
    else:
        from zonoplug.report.trace import trace_table

        print(trace_table(result))
    return 0


def _explain(options: argparse.Namespace) -> int:
    from zonoplug.report.explain.options import explain_request, explained_text

    request, limit = explain_request(options)
    result = run_job(request, limit)
    if result["verdict"] != "explained":
        raise ZonoplugError("; ".join(result["notes"]))
    print(json.dumps(result) if options.json else explained_text(result))
    return 0


def _list() -> int:
    from zonoplug.lirpa.methods import method_names
    from zonoplug.lirpa.operators.all import TRANSFORMERS
    from zonoplug.reduction import REDUCTIONS
    from zonoplug.report.tables import text_table

    print("Bound methods\n  " + "\n  ".join(method_names()))
    rows = [
        (name, (reduction.__doc__ or "").splitlines()[0], reduction.source) for name, reduction in REDUCTIONS.items()
    ]
    print("\nReductions\n" + text_table(("name", "what it does", "source"), rows))
    from zonoplug.verify.branching.by_name import KINDS

    rows = [
        (name, kind, (rule.__doc__ or "").splitlines()[0])
        for kind, rules in KINDS.items()
        for name, rule in rules.items()
    ]
    print("\nBranching rules\n" + text_table(("name", "splits", "what it prefers"), rows))
    operators = [
        (name, entry.kind if entry.otherwise is None else f"{entry.kind}, else {entry.otherwise.kind}")
        for name, entry in sorted(TRANSFORMERS.items())
    ]
    print(
        "\nOperators of the host (any other: the host's interval bounds)\n"
        + text_table(("operator", "what a zonotope gets"), operators)
    )
    return 0


def _version() -> str:
    from zonoplug.version import __version__

    try:
        import torch

        from zonoplug.lirpa.compat import HOST_VERSION

        return f"zonoplug {__version__}, auto_LiRPA {HOST_VERSION}, torch {torch.__version__}"
    except ImportError as error:
        return f"zonoplug {__version__}, and cannot import {error.name}"


def _results_file(words: list[str]) -> ResultsFile | None:
    """The file after --results, found before anything else can go wrong."""
    for place, word in enumerate(words):
        if word == "--results" and place + 1 < len(words):
            return ResultsFile(words[place + 1])
        if word.startswith("--results="):
            return ResultsFile(word.removeprefix("--results="))
    return None


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingError(f"The time limit {text!r} is not a number of seconds. Type: --timeout 60") from None


def report_error(message: str, results: ResultsFile | None) -> int:
    """One line on stderr, `error` in the results file if there is one, and the exit status 2."""
    if results is not None:
        results.write("error\n")
    print(f"zonoplug: {' '.join(message.split())}", file=sys.stderr)
    return 2
