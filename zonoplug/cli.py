"""The command line: verify, compare, explain, list."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from typing import Any, NoReturn

from zonoplug.errors import SettingError, ZonoplugError
from zonoplug.io.results import ResultsFile
from zonoplug.watchdog import Interrupted, reporting_seconds, run_job, seconds_since_start

DEFAULT_METHODS = "ibp,crown-ibp,crown,forward,zonotope,zonotope+crown"
COMMANDS = ("verify", "compare", "explain", "list")


class _Parser(argparse.ArgumentParser):
    """Reports bad usage as an error like any other, so that a results file can say so too."""

    def error(self, message: str) -> NoReturn:
        raise SettingError(f"{message}. Type: {self.prog} --help")


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
        options = _parser().parse_args(words if named else ["verify", *words])
        if options.command == "list":
            return _list()
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
    model: str, specification: str, timeout_seconds: float, method: str = "auto", device: str = "auto", seed: int = 0
) -> tuple[dict[str, Any], float]:
    """A worker's request, and the seconds after which the watchdog ends it.

    Raises:
        SettingError: a time limit that is not a positive number.
    """
    if not timeout_seconds > 0 or math.isnan(timeout_seconds):
        raise SettingError(f"The time limit is {timeout_seconds:g} seconds, and must be above 0. Type: --timeout 60")
    reserve = reporting_seconds(timeout_seconds)
    left = timeout_seconds - seconds_since_start() - reserve
    settings = {
        "timeout_seconds": max(left - reserve, 0.01),
        "method": method,
        "device": device,
        "seed": seed,
    }
    request = {"job": "verify", "model": model, "specification": specification, "settings": settings}
    return request, max(left, 0.05)


def _verify(options: argparse.Namespace, results: ResultsFile | None) -> int:
    request, limit = verification_request(
        options.model, options.specification, _seconds(options.timeout), options.method, options.device, options.seed
    )
    result = run_job(request, min(limit, 1e8))
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


def _explain(options: argparse.Namespace) -> int:
    from zonoplug.report.explain_options import explain_request, explained_text

    request, limit = explain_request(options)
    result = run_job(request, limit)
    if result["verdict"] != "explained":
        raise ZonoplugError("; ".join(result["notes"]))
    print(json.dumps(result) if options.json else explained_text(result))
    return 0


def _list() -> int:
    from zonoplug.lirpa.methods import method_names
    from zonoplug.lirpa.operators import TRANSFORMERS
    from zonoplug.reduction import REDUCTIONS
    from zonoplug.report.tables import text_table

    print("Bound methods\n  " + "\n  ".join(method_names()))
    rows = [
        (name, (reduction.__doc__ or "").splitlines()[0], reduction.source) for name, reduction in REDUCTIONS.items()
    ]
    print("\nReductions\n" + text_table(("name", "what it does", "source"), rows))
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
    from zonoplug import __version__

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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="zonoplug",
        allow_abbrev=False,
        description=(
            "Verify neural networks with zonotopes inside auto_LiRPA. `zonoplug MODEL SPEC` is short for"
            " `zonoplug verify MODEL SPEC`; `zonoplug --version` shows what is installed."
        ),
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    verify = commands.add_parser(
        "verify",
        allow_abbrev=False,
        help="decide a property of a network",
        description="Prints unsat (the property holds), sat with a counterexample, unknown or"
        " timeout, and how the verdict was reached.",
    )
    _add_inputs(verify)
    verify.add_argument("--timeout", default="60", metavar="SECONDS", help="limit on wall time (default 60)")
    verify.add_argument("--method", default="auto", help="a bound method, see `zonoplug list` (default auto)")
    verify.add_argument("--results", metavar="FILE", help="also write verdict and counterexample here")

    compare = commands.add_parser(
        "compare",
        allow_abbrev=False,
        help="bound methods side by side",
        description="Bounds the specification on the whole input set by each method.",
    )
    _add_inputs(compare)
    compare.add_argument("--methods", default=DEFAULT_METHODS, help=f"comma-separated (default {DEFAULT_METHODS})")
    compare.add_argument("--timeout", default="300", metavar="SECONDS", help="limit for each method (default 300)")

    from zonoplug.report.explain_options import add_explain_arguments

    add_explain_arguments(
        commands.add_parser(
            "explain",
            allow_abbrev=False,
            help="which inputs a decision hangs on, as a page with pictures",
            description="Writes one self-contained page: influence of every input by noise symbols, a proved"
            " sufficient set, groups, and other attribution methods beside them.",
        )
    )
    commands.add_parser("list", help="bound methods, reductions and operators")
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="network, .onnx or .onnx.gz")
    parser.add_argument("specification", help="property, .vnnlib or .vnnlib.gz, version 1.0 or 2.0")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default 0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
