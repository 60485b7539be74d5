"""Runs a job in a process of its own and ends it at the time limit, whatever it is stuck in.

This module and what it imports stay free of torch, so that the watching process starts in a few hundredths of a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

STARTED_VARIABLE = "ZONOPLUG_STARTED"
REPORTING_SECONDS = 0.2
REPORTING_SHARE = 0.01
MOST_REPORTING_SECONDS = 0.75


class Interrupted(Exception):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def seconds_since_start() -> float:
    """Seconds since the command was typed, as far as known: since this process started.

    run_instance.sh becomes this process, and says when it began as "process id:seconds since 1970"; what it said to
    another process does not count.
    """
    process, _, began = os.environ.get(STARTED_VARIABLE, "").partition(":")
    with contextlib.suppress(ValueError):
        if process == str(os.getpid()):
            return max(0.0, time.time() - float(began))
    try:
        with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
            ticks = int(stat.read().rpartition(")")[2].split()[19])  # field 22: start after boot, in clock ticks
            return max(0.0, float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0


def reporting_seconds(limit_seconds: float) -> float:
    """How long before the limit the work must end, so that the answer is out in time: more on long, busy runs."""
    return min(REPORTING_SECONDS + REPORTING_SHARE * limit_seconds, MOST_REPORTING_SECONDS)


def run_job(request: dict[str, Any], limit_seconds: float) -> dict[str, Any]:
    """Run `zonoplug.worker` on a request and return its answer.

    Args:
        request: what the worker is to do, as JSON values.
        limit_seconds: when the worker is ended.
    Returns:
        The worker's answer; {"verdict": "timeout"} if it did not answer in time, {"verdict": "unknown"} if the
        system ended it for memory, {"verdict": "error"} if it crashed; each with "notes".
    Raises:
        Interrupted: this process was asked to end (SIGTERM, SIGINT, SIGHUP); the worker is gone.
    """
    limit = time.monotonic() + limit_seconds
    with _worker() as process:
        try:
            answer, _ = process.communicate(json.dumps(request).encode(), timeout=max(limit - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            return {"verdict": "timeout", "notes": ["stopped at the time limit"], "seconds": limit_seconds}
    try:
        result: dict[str, Any] = json.loads(answer)
        return result
    except ValueError:
        return _crashed(process.returncode)


def _crashed(status: int) -> dict[str, Any]:
    if status == -signal.SIGKILL:
        return {"verdict": "unknown", "notes": ["the system ended the run, most likely for lack of memory"]}
    reason = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return {"verdict": "error", "notes": [f"the worker process crashed ({reason})"]}


@contextlib.contextmanager
def _worker() -> Iterator[subprocess.Popen[bytes]]:
    """A worker process that does not outlive the block, nor this process."""

    def interrupt(number: int, _frame: object) -> None:
        raise Interrupted(number)

    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in watched}
    process = subprocess.Popen(
        [sys.executable, "-m", "zonoplug.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.poll()  # not wait(): a large process takes a while to be torn down, and the answer must not wait for it
        for number, handler in before.items():
            signal.signal(number, handler)


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, even if the parent is killed outright."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
