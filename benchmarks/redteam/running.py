"""Runs the verifier on an instance in many ways, and judges every answer by exact arithmetic."""

from __future__ import annotations

import contextlib
import json
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from redteam.certifying import FURTHER_SPLITS, make_certificate
from redteam.certifying import MODES as CERTIFICATE_MODES
from redteam.draws import Draws
from redteam.exact import Statement, in_version_two
from redteam.graph import SkipError
from redteam.planting import Instance
from redteam.runtime import Runtime

BLIND = ("attack", "inner-attack")  # so that only bounds stand between the search and a false proof
SPLITS = ("input-splits", "activation-splits", "mixed-splits")
LIMIT_SECONDS = 120.0
METHODS = (
    "ibp", "crown-ibp", "crown", "alpha-crown", "forward", "forward+crown", "zonotope", "zonotope+crown",
    "zonotope+alpha-crown", "zonotope+full-crown", "zonotope+full-alpha-crown", "alpha-zonotope",
    "alpha-zonotope+crown", "alpha-zonotope+alpha-crown", "alpha-zonotope+full-crown", "zonotope[girard,8]",
    "zonotope[girard,50%]", "zonotope[girard,backoff 64]", "zonotope[neurons,30%]",
)  # fmt: skip


@dataclass(frozen=True)
class Mode:
    """How the verifier runs: the bound method, what is left out, the seconds it gets."""

    method: str = "auto"
    without: tuple[str, ...] = ()
    seconds: float = 0.5


MODES: dict[str, Mode] = {
    "auto": Mode("auto", (), 0.3),
    "auto blind": Mode("auto", BLIND, 0.25),
    "auto root": Mode("auto", (*BLIND, *SPLITS), 4.0),
    "inputs blind": Mode("auto", (*BLIND, "activation-splits", "mixed-splits"), 0.4),
    "signs blind": Mode("auto", (*BLIND, "input-splits", "mixed-splits"), 0.4),
    "mixed blind": Mode("auto", (*BLIND, "input-splits", "activation-splits"), 0.4),
    "no crown": Mode("auto", (*BLIND, "crown"), 0.3),
    "no zonotope root": Mode("auto", (*BLIND, "zonotope-root"), 0.3),
    "plain": Mode(
        "auto", (*BLIND, "contraction", "influence", "refined-bounds", "tuned-linear-bounds", "affine-form"), 0.3
    ),
    **{f"root {name}": Mode(name, (*BLIND, *SPLITS), 4.0) for name in METHODS},
    **{f"search {name}": Mode(name, BLIND, 0.25) for name in METHODS},
}


@dataclass
class Run:
    """One answer, as a row of the table of runs.

    Attributes:
        false: "unsat", "sat" or "certificate" if the answer is false; "" if not.
        verdict: what was answered; "refused" where the verifier said why it cannot; "raise" for any other exception.
    """

    cls: str
    number: int
    variant: str
    mode: str
    verdict: str
    false: str = ""
    truth: str = ""
    by: str = ""
    text: str = ""
    seconds: float = 0.0


def modes_of(instance: Instance, d: Draws, more: int) -> list[str]:
    """The runs of an instance: the default one, one that only proves, some of those it is meant for, and any others."""
    chosen = [*instance.base, *(d.choice(instance.modes) for _ in range(min(3, len(instance.modes))))]
    chosen += [d.choice(list(MODES)) if number % 3 == 2 else f"root {d.choice(METHODS)}" for number in range(more)]
    if instance.truth == "violated" and instance.real and not instance.facts.get("version two") and d.flag(0.2):
        chosen.append(d.choice(CERTIFICATE_MODES))
    if instance.easy_spec and d.flag(0.3):
        chosen.append("easy")
    return list(dict.fromkeys(chosen))


def run(name: str, number: int, instance: Instance, mode: str, d: Draws, folder: Path) -> Run:
    """Run the verifier, or the checker of certificates, in this process."""
    row = Run(name, number, instance.variant, mode, "", truth=instance.truth)
    model, spec, easy = (folder / file for file in ("model.onnx", "spec.vnnlib", "easy.vnnlib"))
    model.write_bytes(instance.model)
    spec.write_text(_as_read(instance, instance.spec))
    if instance.easy_spec:
        easy.write_text(_as_read(instance, instance.easy_spec))
    elif easy.exists():
        easy.unlink()
    start = time.process_time()
    try:
        with _limited(LIMIT_SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if mode.startswith("certificate"):
                _certificate(row, mode.split()[1], instance, d, (model, spec, easy), folder / "c.jsonl")
            else:
                _verify(row, instance, mode, model, easy if mode == "easy" else spec)
    except Exception as error:
        row.verdict = "refused" if _is_ours(error) else "raise"
        row.text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    row.seconds = round(time.process_time() - start, 3)
    return row


def use_processor_time() -> None:
    """Let the verifier count this process's own seconds, so that its answers are the same on a busy machine."""
    from zonoplug import clock

    if hasattr(clock, "time"):
        clock.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[assignment]


def as_json(row: Run) -> str:
    return json.dumps({key: value for key, value in asdict(row).items() if value != ""})


def _verify(row: Run, instance: Instance, mode: str, model: Path, spec: Path) -> None:
    from zonoplug.verify.settings import Settings
    from zonoplug.verify.verifier import verify_files

    chosen = Mode("auto", BLIND, 0.6) if mode == "easy" else MODES[mode]
    without = tuple(name for name in chosen.without if name in _components())
    outcome = verify_files(model, spec, Settings(chosen.seconds, chosen.method, "cpu", without=without))
    row.verdict, row.by = str(outcome.verdict.value), str(outcome.method)
    if outcome.notes:
        row.text = "; ".join(outcome.notes)[:300]
    if mode == "easy":
        row.truth = "easy"
    if row.verdict == "unsat" and instance.truth == "violated" and mode != "easy":
        row.false = "unsat"
    if row.verdict == "sat":
        found = outcome.counterexample
        text = instance.easy_spec if mode == "easy" else instance.spec
        if found is None or not genuine(instance.model, text, found.inputs):
            row.false = "sat"


def _as_read(instance: Instance, text: str) -> str:
    """The specification in the version that the verifier gets."""
    if not instance.facts.get("version two"):
        return text
    runtime = Runtime(instance.model)
    return in_version_two(text, *runtime.shapes, runtime.dtype.name)


def genuine(model: bytes, spec: str, inputs: Any) -> bool:
    """Whether a counterexample is one: of the model's own type, inside, and unsafe by ONNX Runtime, all exactly."""
    runtime = Runtime(model)
    given = np.asarray(inputs, np.float64)
    point = given.astype(runtime.dtype)
    if not np.array_equal(point.astype(np.float64), given):
        return False
    try:
        return Statement(spec).holds(point, runtime(point))
    except SkipError:
        return False


def _certificate(row: Run, kind: str, instance: Instance, d: Draws, files: tuple[Path, Path, Path], to: Path) -> None:
    from zonoplug.certificates.check import check_certificate

    to.unlink(missing_ok=True)
    if not make_certificate(kind, d, *files, to):
        row.verdict = "none"
        return
    report = check_certificate(files[0], files[1], to, further_splits=FURTHER_SPLITS)
    row.verdict = "accepted" if report.valid else "rejected"
    if report.valid and instance.truth == "violated" and instance.real:
        row.false = "certificate"


def _components() -> Any:
    from zonoplug.verify.components import COMPONENTS

    return COMPONENTS


def _is_ours(error: Exception) -> bool:
    from zonoplug.errors import ZonoplugError

    return isinstance(error, ZonoplugError)


class OverdueError(BaseException):
    """A run that took far longer than it was given; no `except Exception` on the way may swallow it."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise OverdueError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except OverdueError:
        raise RuntimeError(f"did not end within {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
