"""What watches a search: its counts, the live line, and that neither changes the search."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import network_files as files

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.errors import UnknownNameError
from zonoplug.examples import digits_holds, digits_model
from zonoplug.verify import progress, verifier
from zonoplug.verify.observer import Observer
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.progress import ProgressLine, progress_text
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.stages import Stage
from zonoplug.verify.statistics import Statistics
from zonoplug.verify.verifier import Verification, verify_files

ROOT = Path(__file__).parents[2]


@pytest.fixture
def split_instance(tmp_path):
    """A random network and a property that only splits prove."""
    network, layers = files.random_network(tmp_path / "random.onnx", 0)
    highest = files.highest_first_output(layers, 50_000, 0, difference=True)
    rows = [f"(>= (- Y_0 Y_1) {highest + 0.02})"]
    return network, files.write_specification(tmp_path / "random.vnnlib", [-1] * 3, [1] * 3, 2, rows)


@pytest.mark.parametrize("splittable", [64, 0])
def test_statistics_of_a_proof(split_instance, monkeypatch, splittable):
    monkeypatch.setattr(verifier, "SPLITTABLE_INPUTS", splittable)
    outcome = verify_files(*split_instance, Settings(60, device="cpu"))
    seen = outcome.statistics
    assert outcome.verdict is Verdict.HOLDS
    assert seen.subdomains == outcome.subdomains > 1
    assert (seen.input_splits > 0) == (splittable > 0)
    assert (seen.activation_splits > 0) == (splittable == 0)
    assert 1 <= seen.depth <= 60
    assert seen.open == 0
    assert seen.volume_proved == 1.0
    assert seen.points_tried >= 256
    shown = json.loads(json.dumps(seen.as_json()))
    assert list(shown["seconds_by_stage"])[:2] == ["attack", "graph"]
    assert sum(shown["seconds_by_stage"].values()) <= outcome.seconds + 0.01
    assert outcome.method in shown["seconds_by_stage"]


def test_the_volume_is_that_of_the_boxes_that_were_proved():
    whole = Box(torch.zeros(2, 2), torch.tensor([[4.0, 2.0], [1.0, 0.0]]))  # the second has one input that is fixed
    observer = Observer()
    observer.search_starts(2, whole)
    lower = torch.tensor([[0.0, 0.0], [2.0, 1.0], [0.0, 0.0]])
    upper = torch.tensor([[2.0, 1.0], [4.0, 2.0], [0.5, 0.0]])
    closed = torch.tensor([True, False, True])
    worst = torch.tensor([0.1, -0.3, 0.2])
    observer.boxes(Box(lower, upper), torch.tensor([0, 0, 1]), ~closed, worst, 5)
    seen = observer.statistics
    assert seen.volume_proved == pytest.approx((0.25 + 0.5) / 2)
    assert (seen.depth, seen.open) == (2, 6)
    assert seen.worst_margin == pytest.approx(-0.3)


@pytest.mark.parametrize(("bisections", "depth"), [(3, 3), (200, 200), (5000, 997)])
def test_a_tree_may_be_deep(bisections, depth):
    observer = Observer()
    observer.search_starts(1)
    share = torch.tensor([0.5, 0.5**bisections], dtype=torch.float64)
    observer.pieces(share, torch.tensor([False, True]), torch.tensor([0.1, -0.1]), 0)
    assert (observer.statistics.depth, observer.statistics.volume_proved) == (depth, 0.5)


def test_volumes_of_a_search_add_up_to_one(split_instance):
    """Every part of the input box is proved exactly once, where nothing is cut off unproved."""
    observer = Observer()
    settings = Settings(60, device="cpu", without=("contraction",))
    problem = load_problem(*split_instance, settings)
    total = []
    genuine = observer.boxes

    def noted(box, group, open_, worst, waiting):
        share = ((box.upper - box.lower) / 2).prod(dim=1)
        total.append(float(share[~open_].sum()))
        genuine(box, group, open_, worst, waiting)

    observer.boxes = noted
    assert Verification(problem, settings, Deadline(60), observer).run().verdict is Verdict.HOLDS
    assert sum(total) == pytest.approx(1.0, abs=1e-6)


def test_the_line_says_what_is_open(monkeypatch):
    seen = Statistics(open=12, worst_margin=-0.123456, volume_proved=0.25)
    assert progress_text("a stage", seen, 3.04) == "3.0 s, 12 open, worst margin -0.123, 25.0% proved, a stage"
    assert progress_text("attack", Statistics(), 0.5) == "0.5 s, attack"
    stream, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    line = ProgressLine(stream)
    for clock[0] in (0.0, 0.05, 0.1, 0.3):
        line.show("a stage", seen)
    line.clear()
    shown = stream.getvalue().split("\r\x1b[K")
    assert [text[:3] for text in shown] == ["", "0.0", "0.3", ""]
    assert max(map(len, shown)) <= progress.WIDTH


def _on_a_terminal(*words, stderr_is_terminal=True):
    """Run the command line with a terminal as stderr; what it showed there, and its stdout."""
    leader, follower = pty.openpty()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        stderr=follower if stderr_is_terminal else subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    os.close(follower)
    output, error = process.communicate(timeout=120)
    shown = b""
    while stderr_is_terminal:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(leader)
    return (shown if stderr_is_terminal else error).decode(), output.decode()


def test_a_terminal_gets_a_line_that_is_taken_away_at_the_end():
    words = ("zonoplug", str(digits_model()), str(digits_holds()))
    shown, output = _on_a_terminal(*words)
    assert " s, " in shown
    assert shown.endswith("\r\x1b[K")
    assert output.startswith("unsat\n")
    shown, output = _on_a_terminal(*words, "--quiet")
    assert shown == ""
    assert output.startswith("unsat\n")


def test_harnesses_see_no_line(tmp_path):
    words = ("zonoplug", str(digits_model()), str(digits_holds()))
    assert _on_a_terminal(*words, stderr_is_terminal=False)[0] == ""
    results = tmp_path / "results.txt"
    shown, output = _on_a_terminal("vnncomp", "v1", "digits", *words[1:], str(results), "60")
    assert (shown, output) == ("", "")
    assert results.read_text() == "unsat\n"


def test_components_to_leave_out_are_known_by_name(split_instance):
    with pytest.raises(UnknownNameError, match="Did you mean 'crown'"):
        verify_files(*split_instance, Settings(5, device="cpu", without=("crwn",)))


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("crown", Stage("root", "zonotope+crown")),
        ("zonotope-root", Stage("root", "zonotope")),
        ("input-splits", Stage("input splits", "zonotope")),
        ("mixed-splits", Stage("mixed splits", "alpha-zonotope")),
        ("activation-splits", Stage("activation splits", "alpha-zonotope")),
        ("attack", Stage("attack", "attack")),
    ],
)
def test_an_component_that_is_left_out_has_no_stage(split_instance, name, gone):
    def stages(*without):
        settings = Settings(5, device="cpu", without=without)
        run = Verification(load_problem(*split_instance, settings), settings, Deadline(5))
        return {stage for splittable in (True, False) for stage in run._stages(splittable)}

    assert gone in stages()
    assert gone not in stages(name)
    assert stages(name) < stages()


def test_without_attack_no_point_is_climbed(split_instance):
    settings = Settings(5, device="cpu", without=("attack", "inner-attack"))
    problem = load_problem(*split_instance, settings)
    outcome = Verification(problem, settings, Deadline(5)).run()
    assert outcome.statistics.points_tried == 256
