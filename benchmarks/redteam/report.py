"""The table of a long run: answers by class, false ones by method, and the classes of traps that it found."""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from typing import Any

# Class of trap: (classes of instances, pattern of the variant, pattern of the mode, kind of false answer)
TRAPS: dict[str, tuple[str, str, str, str]] = {
    "average pool, several boxes, default": ("host: average pool, boxes", "", "^auto", "unsat"),
    "average pool, method by name": ("host: average pool$", "", "crown", "unsat"),
    "sum that cancels, log-sum-exp": ("rounding: cancel", "^lse", "", "unsat"),
    "sum that cancels, reduce-max": ("rounding: cancel", "^reducem", "", "unsat"),
    "cast to float16": ("loader: cast float16", "^float16", "", "unsat"),
    "cast to int16 wraps": ("loader: cast integer", "^u?int16", "", "unsat"),
    "cast to uint8 wraps": ("loader: cast integer", "^u?int8", "", "unsat"),
    "certificate, Expand": ("certificate: moves", "expand", "certificate", "certificate"),
    "certificate, Gather": ("certificate: moves", "gather", "certificate", "certificate"),
    "certificate, repeated outputs": ("certificate: repeats", "concat", "certificate", "certificate"),
    "constants that cancel, sat": ("specification: constants", "false sat", "", "sat"),
    "jump, cast": ("rounding: jump", "^int", "", "unsat"),
    "jump, floor": ("rounding: jump", "^Floor", "", "unsat"),
    "jump, comparison": ("rounding: jump", "^(geq|less|greater|equal)", "", "unsat"),
    "leaky slope above 1, alpha-crown": ("host: leaky$", "", "alpha-crown", "unsat"),
    "leaky slope above 1, crown-ibp": ("host: leaky$", "", "crown-ibp", "unsat"),
    "leaky slope above 1, several boxes": ("host: leaky, boxes", "", "^auto", "unsat"),
    "resize linear asymmetric, tiny output": ("resize linear", "asymmetric.*tiny", "", "unsat"),
    "resize linear asymmetric, big second output": ("resize linear", "asymmetric.*big", "", "unsat"),
    "resize nearest, floor": ("resize nearest", "floor", "", "unsat"),
    "coefficient underflows": ("specification: coefficients", ">=|<=", "", "unsat"),
    "coefficient underflows, strict": ("specification: coefficients", "[<>]$", "", "unsat"),
    "box without a float, narrow": ("no float inside", "narrow|hair", "", "sat"),
    "box without a float, open": ("no float inside", "open|strict|mixed", "", "sat"),
}


def header(seed: int) -> dict[str, Any]:
    """What ran: seed, versions and host."""
    import onnx
    import onnxruntime
    import torch

    host = "?"
    try:
        from zonoplug.lirpa import compat

        host = str(compat.HOST_VERSION)
    except (ImportError, AttributeError):
        pass
    versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "torch": torch.__version__}
    return {"seed": seed, "host": host, "python": platform.python_version(), "cores": os.cpu_count(), **versions}


def found(rows: list[dict[str, Any]], trap: str) -> list[dict[str, Any]]:
    """The false answers of a class of traps."""
    cls, variant, mode, kind = TRAPS[trap]
    return [
        row
        for row in rows
        if row.get("false") == kind
        and re.search(cls, row["cls"])
        and re.search(variant, row.get("variant", ""))
        and re.search(mode, row["mode"])
    ]


def table(rows: list[dict[str, Any]], seed: int) -> str:
    """The whole report, in Markdown."""
    head = next((row for row in rows if "seed" in row), {})
    runs = [row for row in rows if "cls" in row and not row.get("closed")]
    false = [row for row in runs if row.get("false")]
    raised = [row for row in runs if row["verdict"] in ("raise", "crash", "hang")]
    seconds = sum(row.get("seconds", 0.0) for row in runs)
    instances = {(row["cls"], row["number"]) for row in runs}
    what = ", ".join(f"{key} {value}" for key, value in head.items())
    lines = [
        f"{len(runs)} runs on {len(instances)} instances in {seconds:.0f} s: **{len(false)} false answers**,"
        f" {len(raised)} exceptions that are no message for people. {what}.",
        "",
        "| class | instances | runs | false unsat | false sat | false certificate | raised | refused | easy proved |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["cls"] for row in runs):
        mine = [row for row in runs if row["cls"] == name]
        kinds = Counter(row.get("false", "") for row in mine)
        verdicts = Counter(row["verdict"] for row in mine)
        easy = [row["verdict"] == "unsat" for row in mine if row["mode"] == "easy"]
        cells = [
            len({row["number"] for row in mine}), len(mine), kinds["unsat"], kinds["sat"], kinds["certificate"],
            verdicts["raise"] + verdicts["crash"] + verdicts["hang"], verdicts["refused"],
            f"{sum(easy)} of {len(easy)}",
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    lines += ["", "| run | runs | false | no certificate made |", "|---|---|---|---|"]
    of = Counter(row["mode"] for row in runs)
    none = Counter(row["mode"] for row in runs if row["verdict"] == "none")
    bad = Counter(row["mode"] for row in false)
    lines += [
        f"| {mode} | {of[mode]} | {bad[mode]} | {none[mode] or ''} |"
        for mode in sorted(of, key=lambda mode: (-bad[mode], mode))
    ]
    lines += ["", "| class of trap | false answers | numbers of instances |", "|---|---|---|"]
    for trap in TRAPS:
        hits = found(runs, trap)
        numbers = ", ".join(str(number) for number in sorted({row["number"] for row in hits})[:8])
        lines.append(f"| {trap} | {len(hits)} | {numbers} |")
    if raised:
        lines += ["", "| raised | runs | class and number of one |", "|---|---|---|"]
        texts = Counter(_plain(row.get("text", row["verdict"])) for row in raised)
        for text, count in texts.most_common(25):
            one = next(row for row in raised if _plain(row.get("text", row["verdict"])) == text)
            lines.append(f"| {text} | {count} | {one['cls']} {one['number']}, {one['mode']} |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return re.sub(r"\d+", "n", text).replace("|", "/")[:110]
