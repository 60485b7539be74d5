"""What can be typed: the parser of the command line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from zonoplug.errors import SettingError

DEFAULT_METHODS = "ibp,crown-ibp,crown,forward,zonotope,zonotope+crown"
COMMANDS = ("verify", "compare", "trace", "explain", "list", "check-certificate")


class _Parser(argparse.ArgumentParser):
    """Reports bad usage as an error like any other, so that a results file can say so too."""

    def error(self, message: str) -> NoReturn:
        raise SettingError(f"{message}. Type: {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; it raises SettingError for bad usage."""
    whole = _Parser(
        prog="zonoplug",
        allow_abbrev=False,
        description=(
            "Verify neural networks with zonotopes inside auto_LiRPA. `zonoplug MODEL SPEC` is short for"
            " `zonoplug verify MODEL SPEC`; `zonoplug --version` shows what is installed."
        ),
    )
    commands = whole.add_subparsers(dest="command", required=True, parser_class=_Parser)

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
    verify.add_argument("--branching", default="auto", help="a rule for splits, see `zonoplug list` (default auto)")
    verify.add_argument(
        "--input-bounds",
        choices=("written", "nearest"),
        default="written",
        help="nearest: where no number of the model's type satisfies an input's bounds, they are read as the nearest"
        " numbers (default written)",
    )
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

    from zonoplug.report.explain.options import add_explain_arguments

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
    return whole


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="network, .onnx or .onnx.gz")
    parser.add_argument("specification", help="property, .vnnlib or .vnnlib.gz, version 1.0 or 2.0")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default 0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
