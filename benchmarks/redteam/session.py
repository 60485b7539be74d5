"""A long run: plays instances one after another, appends a row for each answer, keeps what was false."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from redteam.classes import instance, make
from redteam.draws import Draws, Explored
from redteam.graph import SkipError
from redteam.planting import Instance
from redteam.running import MODES, Run, as_json, modes_of, run

EXPLORED = 10**6  # instances that Hypothesis made have larger numbers
UNREADABLE = ("ModelError", "ModelMismatchError", "SpecificationError", "UnsupportedSpecificationError")


class Session:
    """Rows of a file, and what is already in it.

    Args:
        seed: of all instances.
        file: where rows go.
        pending: a file that says what is being run, for the process that watches.
        folder: for the files of one instance at a time.
        keep: a folder for cases of false answers, or None.
        known: rows of earlier calls.

    Attributes:
        counts: runs of each (class, number).
        made: runs of this process.
    """

    def __init__(
        self, seed: int, file: TextIO, pending: Path, folder: Path, keep: str | None, known: list[dict[str, Any]]
    ) -> None:
        self._seed, self._file, self._pending, self._folder = seed, file, pending, folder
        self._keep = Path(keep) if keep else None
        self.made = 0
        rows = [row for row in known if "verdict" in row]
        self.counts: Counter[Any] = Counter((row["cls"], row["number"]) for row in rows)
        self._modes = {(row["cls"], row["number"], row["mode"]) for row in rows}
        over = [row for row in known if row.get("closed") or row.get("mode") == "making"]
        self._closed = {(row["cls"], row["number"]) for row in over}

    def play(self, name: str, number: int, more: int) -> None:
        """All runs of one instance that are not in the file yet."""
        if (name, number) in self._closed:
            return
        self._note(name, number, "making", "")
        made = instance(name, self._seed, number)
        if made is not None:
            case, d = made
            case.facts["draws"] = list(d.taken)
            for mode in modes_of(case, d, more):
                if (name, number, mode) not in self._modes:
                    row = self.one(name, number, case, mode, Draws(self._seed, f"{name} {mode}", number))
                    if row.verdict == "refused" and row.text.startswith(UNREADABLE):
                        break
        self._file.write(json.dumps({"closed": True, "cls": name, "number": number, "mode": "-"}) + "\n")

    def one(self, name: str, number: int, case: Instance, mode: str, d: Draws) -> Run:
        """One run, with its row."""
        self._note(name, number, mode, case.variant)
        row = run(name, number, case, mode, d, self._folder)
        self._file.write(as_json(row) + "\n")
        self._pending.unlink(missing_ok=True)
        self.counts[name, number] += 1
        self.made += 1
        if row.false and self._keep is not None:
            keep_case(self._keep, row, case, self._folder)
        return row

    def _note(self, name: str, number: int, mode: str, variant: str) -> None:
        self._pending.write_text(json.dumps({"cls": name, "number": number, "mode": mode, "variant": variant}))


def keep_case(root: Path, row: Run, case: Instance, folder: Path) -> None:
    """The instance as a folder: model, specification, certificate, and what the false answer was."""
    words = f"{row.cls} {row.variant} {row.mode} {row.number}"
    to = root / "".join(letter if letter.isalnum() or letter in "+-.[]%" else "_" for letter in words)
    to.mkdir(parents=True, exist_ok=True)
    (to / "model.onnx").write_bytes(case.model)
    (to / "spec.vnnlib").write_text(case.spec)
    if case.facts.get("version two"):
        (to / "spec_two.vnnlib").write_bytes((folder / "spec.vnnlib").read_bytes())
    method = None
    if row.mode.startswith("certificate"):
        (to / "c.jsonl").write_bytes((folder / "c.jsonl").read_bytes())
    elif MODES.get(row.mode) and MODES[row.mode].method != "auto":
        method = MODES[row.mode].method
    wrong = "accepted certificate" if row.false == "certificate" else row.verdict
    witness = None if case.witness is None else [float(value) for value in case.witness]
    note = f"mode {row.mode}, decided by {row.by}; levels {', '.join(case.levels)}"
    told = {"wrong": wrong, "method": method, "witness": witness, "note": note, "draws": case.facts.get("draws")}
    (to / "case.json").write_text(json.dumps(told))


def explore(session: Session, names: list[str], seconds: float) -> None:
    """Let Hypothesis choose class, instance and mode for so long.

    A false answer is shrunk, with a row for each step; then its class is left out until every other one had its turn.
    """
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    limit = time.monotonic() + seconds
    number = max([EXPLORED, *(number for _, number in session.counts)])
    phases = (Phase.generate, Phase.shrink)
    left, failed = list(names), [""]

    def body(data: Any) -> None:
        nonlocal number
        if time.monotonic() > limit:
            return
        d = Explored(data)
        name = d.choice(left)
        try:
            case = make(name, d)
        except SkipError:
            return
        case.facts["draws"] = list(d.taken)
        mode = d.choice([*MODES, *case.modes])
        number += 1
        row = session.one(name, number, case, mode, Draws(0, mode, number))
        if row.false or row.verdict == "raise":
            failed[0] = name
            raise AssertionError(f"{name}, {mode}: {row.false or row.text}")

    while time.monotonic() < limit:
        how = settings(
            max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), phases=phases, database=None
        )
        failed[0] = ""
        try:
            how(given(st.data())(body))()
        except Exception as error:  # a failing example, or Hypothesis at the end of the time: rows are in the file
            print(str(error).splitlines()[0][:300], flush=True)
        if failed[0]:
            left = [name for name in left if name != failed[0]] or list(names)
