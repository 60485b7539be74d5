"""Zonotope bounds and noise-symbol reduction for auto_LiRPA, and a verifier built on them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zonoplug.version import __version__

if TYPE_CHECKING:
    from zonoplug.domain.affine_image import AffineImage
    from zonoplug.domain.input_sets import Box, InputSet
    from zonoplug.domain.lp_ball import LpBall
    from zonoplug.domain.zonotope import Zonotope
    from zonoplug.errors import ZonoplugError
    from zonoplug.explain.influence import SymbolInfluence
    from zonoplug.io.onnx_model import load_model
    from zonoplug.io.vnnlib import read_specification
    from zonoplug.lirpa.module import ZonotopeModule, build, register, unregister
    from zonoplug.lirpa.operators.all import transforms
    from zonoplug.lirpa.perturbations import bounded_input
    from zonoplug.reduction import REDUCTIONS, AboveSymbols, BoxReduction, Girard, Never, Reduction
    from zonoplug.relaxations import RELAXATIONS, Relaxation
    from zonoplug.verify.outcome import Outcome, Verdict
    from zonoplug.verify.settings import Settings
    from zonoplug.verify.verifier import verify_files

# Imported at first use, so that a command line that fails early does not wait for torch.
_HOME = {
    "AffineImage": "zonoplug.domain.affine_image",
    "Box": "zonoplug.domain.input_sets",
    "InputSet": "zonoplug.domain.input_sets",
    "LpBall": "zonoplug.domain.lp_ball",
    "Zonotope": "zonoplug.domain.zonotope",
    "SymbolInfluence": "zonoplug.explain.influence",
    "ZonoplugError": "zonoplug.errors",
    "load_model": "zonoplug.io.onnx_model",
    "read_specification": "zonoplug.io.vnnlib",
    "ZonotopeModule": "zonoplug.lirpa.module",
    "build": "zonoplug.lirpa.module",
    "bounded_input": "zonoplug.lirpa.perturbations",
    "register": "zonoplug.lirpa.module",
    "unregister": "zonoplug.lirpa.module",
    "transforms": "zonoplug.lirpa.operators.all",
    "REDUCTIONS": "zonoplug.reduction",
    "AboveSymbols": "zonoplug.reduction",
    "BoxReduction": "zonoplug.reduction",
    "Girard": "zonoplug.reduction",
    "Never": "zonoplug.reduction",
    "Reduction": "zonoplug.reduction",
    "RELAXATIONS": "zonoplug.relaxations",
    "Relaxation": "zonoplug.relaxations",
    "Outcome": "zonoplug.verify.outcome",
    "Verdict": "zonoplug.verify.outcome",
    "Settings": "zonoplug.verify.settings",
    "verify_files": "zonoplug.verify.verifier",
}

__all__ = [
    "REDUCTIONS",
    "RELAXATIONS",
    "AboveSymbols",
    "AffineImage",
    "Box",
    "BoxReduction",
    "Girard",
    "InputSet",
    "LpBall",
    "Never",
    "Outcome",
    "Reduction",
    "Relaxation",
    "Settings",
    "SymbolInfluence",
    "Verdict",
    "ZonoplugError",
    "Zonotope",
    "ZonotopeModule",
    "__version__",
    "bounded_input",
    "build",
    "load_model",
    "read_specification",
    "register",
    "transforms",
    "unregister",
    "verify_files",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'zonoplug' has no attribute {name!r}")
