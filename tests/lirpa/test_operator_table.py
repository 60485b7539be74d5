"""The README says what each operator gets, as the operator table has it."""

from __future__ import annotations

import operator_table as script

from zonoplug.lirpa.operators.all import TRANSFORMERS, Call, NotApplicableError, transforms


def test_the_readme_is_up_to_date():
    text = script.README.read_text(encoding="utf-8")
    assert script.with_table(text) == text, "run: python benchmarks/operator_table.py"


def test_every_operator_of_the_host_is_listed():
    assert script.unlisted() == []
    assert not {f"Bound{name}" for name in script.FALLBACK} & set(TRANSFORMERS)


def test_every_kind_of_entry_has_a_row():
    assert {script.kinds(entry) for entry in TRANSFORMERS.values()} <= set(script.MEANING)


def test_a_new_operator_makes_the_table_out_of_date(monkeypatch):
    def nothing(call: Call):
        raise NotApplicableError

    monkeypatch.setitem(TRANSFORMERS, "BoundMadeUp", TRANSFORMERS["BoundRelu"])  # taken back afterwards
    transforms("BoundMadeUp", kind="relaxation")(nothing)
    assert "MadeUp" not in script.table()  # somebody else's
    nothing.__module__ = "zonoplug.made_up"
    assert "MadeUp" in script.table()
    assert script.with_table(script.README.read_text(encoding="utf-8")) != script.README.read_text(encoding="utf-8")
