"""The options of `zonoplug explain`, and what it prints. Free of torch, so that bad usage is answered at once."""

from __future__ import annotations

import argparse
import math
from typing import Any

from zonoplug.errors import SettingError

GRACE_SECONDS = 60.0  # beyond the time limit, for what is under way: pages are better late than cut off


def add_explain_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", help="network, .onnx or .onnx.gz")
    parser.add_argument(
        "input", help=".png or .jpg picture, .npy array, or .csv row, perhaps with a header and a label"
    )
    parser.add_argument(
        "--eps", default="0.03", help="how far each input may move; pictures go from 0 to 1 (default 0.03)"
    )
    parser.add_argument("--out", default="explanation.html", metavar="FILE", help="the page (default explanation.html)")
    parser.add_argument("--target", type=int, help="class to explain (default: the label, or what the network says)")
    parser.add_argument("--method", default="zonotope", help="a zonotope bound method (default zonotope)")
    parser.add_argument("--smallest", action="store_true", help="the decision is the smallest output")
    parser.add_argument("--delta", help="for one output: the change of it that matters (default: a tenth of its size)")
    parser.add_argument("--mean", default="0", metavar="M[,M,M]", help="taken off each channel (default 0)")
    parser.add_argument("--std", default="1", metavar="S[,S,S]", help="each channel is then divided by it (default 1)")
    parser.add_argument("--range", metavar="LOW,HIGH", help="valid values (default 0,1 for images, any for tables)")
    parser.add_argument("--divide", default="1", help="numbers in .npy and .csv files are divided by it (default 1)")
    parser.add_argument("--row", type=int, default=0, help="row of a .csv file, from 0 (default 0)")
    parser.add_argument("--transpose", action="store_true", help="the network counts pixels column by column")
    parser.add_argument("--interleaved", action="store_true", help="a .csv row holds a pixel's channels side by side")
    parser.add_argument("--names", help="of a table's columns, separated by commas (default: the .csv file's header)")
    parser.add_argument("--no-compare", action="store_true", help="leave other attribution methods out")
    parser.add_argument("--timeout", default="120", metavar="SECONDS", help="what is not begun by then is left out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def explain_request(options: argparse.Namespace) -> tuple[dict[str, Any], float]:
    """A worker's request, and the seconds after which the watchdog ends it.

    Raises:
        SettingError: something that is to be a number is none.
    """
    timeout = _number(options.timeout, "--timeout")
    if not 0 < timeout < math.inf:
        raise SettingError(f"The time limit is {timeout:g} seconds, and must be above 0. Type: --timeout 120")
    limits: tuple[float, ...] = () if options.range is None else _numbers(options.range, "--range")
    if len(limits) not in (0, 2):
        raise SettingError(f"--range takes two numbers, got {options.range!r}. Type: --range 0,1")
    settings = {
        "eps": _number(options.eps, "--eps"),
        "target": options.target,
        "method": options.method,
        "smallest": options.smallest,
        "delta": None if options.delta is None else _number(options.delta, "--delta"),
        "mean": _numbers(options.mean, "--mean"),
        "std": _numbers(options.std, "--std"),
        "low": limits[0] if limits else None,
        "high": limits[1] if limits else None,
        "divide": _number(options.divide, "--divide"),
        "row": options.row,
        "transpose": options.transpose,
        "interleaved": options.interleaved,
        "names": None if options.names is None else [name.strip() for name in options.names.split(",")],
        "timeout_seconds": timeout,
        "compare": not options.no_compare,
    }
    request = {"job": "explain", "model": options.model, "input": options.input, "out": options.out}
    return request | {"settings": settings}, timeout + GRACE_SECONDS


def explained_text(result: dict[str, Any]) -> str:
    """What a person reads in the terminal."""
    lines = [
        f"{result['size']} of {result['of']} features settle the decision"
        + (
            " (none: it is proved for the whole box)"
            if not result["size"]
            else f"; {result['needed']} are shown needed"
        ),
        f"{result['unattributed']:.0%} of the margin's radius is unattributed",
        *result["notes"],
        f"page: {result['out']}",
    ]
    return "\n".join(lines)


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingError(f"{option} takes a number, got {text!r}.") from None


def _numbers(text: str, option: str) -> tuple[float, ...]:
    return tuple(_number(part, option) for part in text.split(","))
