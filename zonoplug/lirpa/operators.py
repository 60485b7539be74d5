"""The operator table: host operator -> transformer. Importing this module fills it.

`operators_exact` holds what a zonotope passes exactly, `operators_elementwise` the functions of one variable,
`operators_bilinear` products, quotients, maxima and softmax.
"""

from __future__ import annotations

from zonoplug.lirpa import (  # noqa: F401 - they file their entries
    operators_bilinear,
    operators_elementwise,
    operators_exact,
)
from zonoplug.lirpa.table import TRANSFORMERS, Call, Entry, Kind, NotApplicableError, entry_for, refuse, transforms

__all__ = ["TRANSFORMERS", "Call", "Entry", "Kind", "NotApplicableError", "entry_for", "refuse", "transforms"]
