"""The command line: verify, compare, trace, list."""

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
COMMANDS = ("verify", "compare", "trace", "list", "check-certificate")


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
        if options.command == "check-certificate":
            return _check_certificate(options)
        if options.command == "trace":
            return _trace(options)
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
    verify.add_argument("--certificate", metavar="FILE", help="write the proof of an unsat here (.gz: compressed)")
    verify.add_argument("--quiet", action="store_true", help="no progress line on a terminal")

    check = commands.add_parser(
        "check-certificate",
        allow_abbrev=False,
        help="prove all over again what a certificate claims",
        description="Exit status 0 if every leaf of the certificate is proved again, 1 if not, 2 for an error.",
    )
    check.add_argument("model", help="network, .onnx or .onnx.gz")
    check.add_argument("specification", help="property, .vnnlib or .vnnlib.gz")
    check.add_argument("certificate", help="what `zonoplug verify --certificate` wrote")
    check.add_argument(
        "--further-splits",
        type=int,
        default=20_000,
        metavar="N",
        help="splits the checker may add where a leaf resists (default 20000)",
    )

    compare = commands.add_parser(
        "compare",
        allow_abbrev=False,
        help="bound methods side by side",
        description="Bounds the specification on the whole input set by each method.",
    )
    _add_inputs(compare)
    compare.add_argument("--methods", default=DEFAULT_METHODS, help=f"comma-separated (default {DEFAULT_METHODS})")
    compare.add_argument("--timeout", default="300", metavar="SECONDS", help="limit for each method (default 300)")

    trace = commands.add_parser(
        "trace",
        allow_abbrev=False,
        help="what each reduction of noise symbols costs",
        description="Bounds the specification by a reducing method, and says of each reduction how many symbols it"
        " left and how much of the margin it cost.",
    )
    _add_inputs(trace)
    trace.add_argument("--method", default="zonotope[girard,50%]", help="such as zonotope[girard,200]")
    trace.add_argument("--plot", metavar="FILE", help="also draw it, for example trace.png")
    trace.add_argument("--timeout", default="300", metavar="SECONDS", help="limit on wall time (default 300)")

    commands.add_parser("list", help="bound methods, reductions and operators")
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="network, .onnx or .onnx.gz")
    parser.add_argument("specification", help="property, .vnnlib or .vnnlib.gz, version 1.0 or 2.0")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default 0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
