"""The competition's form of a call."""

from __future__ import annotations

from vnncomp import __main__ as form


def test_input_bounds_are_read_as_the_competition_does(tmp_path, monkeypatch):
    requests = []

    def run_job(request, limit):
        requests.append(request)
        return {"verdict": "unknown", "notes": []}

    monkeypatch.setattr(form, "run_job", run_job)
    results = tmp_path / "results.txt"
    assert form.main(["v1", "acasxu", "model.onnx", "spec.vnnlib", str(results), "60"]) == 0
    assert requests[0]["settings"]["input_bounds"] == "nearest" and results.read_text() == "unknown\n"
