"""The README's Python examples run, and print what they say."""

from __future__ import annotations

import doctest
from pathlib import Path

from zonoplug.lirpa.operators.all import TRANSFORMERS
from zonoplug.verify.branching.activations import ACTIVATION_RULES

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_examples_run_as_printed():
    result = doctest.testfile(str(README), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    TRANSFORMERS.pop("BoundHalve", None)
    ACTIVATION_RULES._members.pop("balanced", None)
    assert result.attempted >= 10
    assert result.failed == 0


def test_every_script_that_the_readme_names_exists():
    text = README.read_text()
    for word in (
        "benchmarks/model_support.py",
        "benchmarks/start_up.py",
        "benchmarks/vnnlib_reading.py",
        "benchmarks/train_digits.py",
        "vnncomp/install_tool.sh",
        "vnncomp/prepare_instance.sh",
        "vnncomp/constraints.txt",
        "benchmarks/results/model_support.md",
    ):
        assert word in text
        assert (README.parent / word).exists(), word
