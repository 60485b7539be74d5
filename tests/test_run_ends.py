"""Runs that do not come to their end: out of memory, out of time, stopped, killed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from zonoplug.examples import digits_holds, digits_model

ROOT = Path(__file__).resolve().parent.parent


def test_running_out_of_memory_is_unknown(tmp_path):
    """A specification with an output matrix far larger than the memory allowed."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (1 << 29, 1 << 29));"
        "from zonoplug.cli import main; import zonoplug.worker;"
        "sys.exit(main(sys.argv[1:]))"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    model, spec = _wide_instance(tmp_path, 20_000)
    process = subprocess.run(
        [sys.executable, "-c", code, str(model), str(spec)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout.splitlines()[0] == "unknown", process
    assert "memory" in process.stdout
    assert process.returncode == 0


def _wide_instance(folder, outputs):
    """One input, and so many outputs with a row each that their matrix alone takes outputs ** 2 * 4 bytes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((1, outputs), np.float32), "W")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["X", "W"], ["Y"])],
        "wide",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, outputs])],
        [weight],
    )
    model = folder / "wide.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), model)
    lines = [
        "(declare-const X_0 Real)",
        *(f"(declare-const Y_{j} Real)" for j in range(outputs)),
        "(assert (>= X_0 0.0))",
        "(assert (<= X_0 1.0))",
        "(assert (or " + " ".join(f"(and (>= Y_{j} 2.0))" for j in range(outputs)) + "))",
    ]
    spec = folder / "wide.vnnlib"
    spec.write_text("\n".join(lines))
    return model, spec


def test_a_run_that_is_stuck_is_ended_at_the_time_limit(tmp_path):
    """The worker hangs in a call that never returns: the watchdog answers all the same."""
    stuck = tmp_path / "sitecustomize.py"
    stuck.write_text(
        "import sys\nif sys.argv[:1] == ['-m'] and 'zonoplug.worker' in sys.orig_argv:\n"
        "    import ctypes\n    ctypes.PyDLL(None).sleep(1000)\n"
    )
    results = tmp_path / "results.txt"
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [sys.executable, "-m", "vnncomp", "v1", "c", str(digits_model()), str(digits_holds()), str(results), "2"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert results.read_text() == "timeout\n"
    assert process.stdout == ""
    assert process.returncode == 0


def test_a_run_that_is_stopped_leaves_a_whole_results_file_and_no_worker(tmp_path):
    results = tmp_path / "results.txt"
    process, children = _running(tmp_path, results)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert results.read_text() == "unknown\n"
    _wait_for(lambda: not any(_alive(child) for child in children))


def test_a_run_that_is_killed_leaves_nothing_behind(tmp_path):
    results = tmp_path / "results.txt"
    results.write_text("unsat\n")
    process, children = _running(tmp_path, results)
    process.kill()
    process.wait(60)
    assert not results.exists(), "an old verdict must not pass for the answer of a killed run"
    _wait_for(lambda: not any(_alive(child) for child in children))


def _running(folder, results):
    """A competition run in the middle of a hard instance, and its worker's process id."""
    model, spec = _hard_instance(folder)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "vnncomp", "v1", "c", str(model), str(spec), str(results), "60"],
        env={**os.environ, "PYTHONPATH": path},
    )
    _wait_for(lambda: any(b"worker" in _command(child) for child in _children(process.pid)))
    return process, _children(process.pid)


def _wait_for(condition):
    """Look until it is so; the limit is only there to end a test that hangs."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("nothing happened")


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def _hard_instance(folder):
    """Random and deep enough that no method decides it within seconds, with a threshold no sample reaches."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    sizes, nodes, constants, name = [20, 80, 80, 80, 1], [], [], "X"
    for layer, (a, b) in enumerate(itertools.pairwise(sizes)):
        constants.append(
            numpy_helper.from_array((random.normal(size=(a, b)) / a**0.5 * 1.5).astype(np.float32), f"W{layer}")
        )
        out = "Y" if layer == len(sizes) - 2 else f"z{layer}"
        nodes.append(helper.make_node("MatMul", [name, f"W{layer}"], [out]))
        if out != "Y":
            nodes.append(helper.make_node("Relu", [out], [f"a{layer}"]))
            name = f"a{layer}"
    graph = helper.make_graph(
        nodes,
        "hard",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 20])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, 1])],
        constants,
    )
    model, spec = folder / "hard.onnx", folder / "hard.vnnlib"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), model)
    lines = [*(f"(declare-const X_{i} Real)" for i in range(20)), "(declare-const Y_0 Real)"]
    lines += [f"(assert (>= X_{i} -3.0))\n(assert (<= X_{i} 3.0))" for i in range(20)]
    spec.write_text("\n".join([*lines, "(assert (>= Y_0 60.0))"]))
    return model, spec
