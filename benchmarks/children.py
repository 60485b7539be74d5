"""Measurements in processes of their own, because a host may crash on a model, or need more than there is."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Child(NamedTuple):
    """What a process left behind.

    Attributes:
        row: the last of the dictionaries that it printed, one JSON object a line; None if it printed none.
        remarks: the other lines, those of standard error last.
        ending: how it ended, in words.
    """

    row: dict[str, Any] | None
    remarks: list[str]
    ending: str


def run_child(
    script: str, arguments: list[str], host: str | None, seconds: float, limit: tuple[int, int], grace: float = 0.0
) -> Child:
    """Run `script --child ARGUMENTS` in this Python.

    Args:
        host: folder that contains auto_LiRPA; the installed one if None.
        seconds: the limit on time, and `grace` seconds more before it is enforced.
        limit: what is limited, of the `resource` module, and the bytes that are allowed.
    """
    resource_kind, size = limit
    try:
        done = subprocess.run(
            [sys.executable, str(Path(script).resolve()), "--child", *arguments],
            capture_output=True,
            timeout=seconds + grace,
            env=environment(host),
            preexec_fn=lambda: resource.setrlimit(resource_kind, (size, size)),
        )
        output, errors, ending = done.stdout, done.stderr, f"ended with status {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output, errors, ending = error.stdout or b"", b"", f"not done after {seconds:g} s"
    lines = output.decode().splitlines()
    rows = [line for line in lines if line.startswith("{")]
    remarks = [line for line in lines if not line.startswith("{")] + errors.decode().splitlines()
    return Child(json.loads(rows[-1]) if rows else None, remarks, ending)


def environment(host: str | None = None) -> dict[str, str]:
    """The environment of a process that finds this checkout, and a host."""
    found = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return found if host is None else found | {"ZONOPLUG_LIRPA": host}


def host_version(host: str | None) -> str:
    """The name and version of the host in a folder, or the last line of why it cannot be loaded."""
    code = "from zonoplug.lirpa.compat import HOST_VERSION; print(HOST_VERSION)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(host))
    return f"auto_LiRPA {done.stdout.strip()}" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
