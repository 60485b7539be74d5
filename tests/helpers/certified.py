"""Certificates that a search writes."""

from __future__ import annotations

from zonoplug.clock import Deadline
from zonoplug.verify.leaf_record import LeafRecord
from zonoplug.verify.observer import Observer
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.verifier import Verification


def prove(network, spec, path, **settings):
    """Verify, expect unsat, and write the certificate to `path`."""
    chosen = Settings(timeout_seconds=30, device="cpu", **settings)
    problem = load_problem(network, spec, chosen)
    record = LeafRecord(problem)
    outcome = Verification(problem, chosen, Deadline(30), Observer(record=record)).run()
    assert outcome.verdict is Verdict.HOLDS
    assert record.is_complete
    path.write_bytes(record.certificate(network, spec, "the tests").data(path.suffix == ".gz"))
    return path
