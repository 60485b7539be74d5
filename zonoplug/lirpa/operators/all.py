"""The operator table: host operator -> transformer. Importing this module fills it.

`exact` holds what a zonotope passes exactly, `elementwise` the functions of one variable,
`bilinear` products, quotients, maxima and softmax.
"""

from __future__ import annotations

from zonoplug.lirpa.operators import bilinear, elementwise, exact  # noqa: F401 - they file their entries
from zonoplug.lirpa.operators.table import (
    TRANSFORMERS,
    Call,
    Entry,
    Kind,
    NotApplicableError,
    entry_for,
    refuse,
    transforms,
)

__all__ = ["TRANSFORMERS", "Call", "Entry", "Kind", "NotApplicableError", "entry_for", "refuse", "transforms"]
