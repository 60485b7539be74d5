"""The operator table: host operator -> transformer. Importing this module fills it.

`operators_exact` holds what a zonotope passes exactly, `operators_elementwise` the functions of one variable.
"""

from __future__ import annotations

from zonoplug.lirpa import operators_elementwise, operators_exact  # noqa: F401 - they file their entries
from zonoplug.lirpa.table import TRANSFORMERS, Call, Entry, Kind, NotApplicableError, entry_for, refuse, transforms

__all__ = ["TRANSFORMERS", "Call", "Entry", "Kind", "NotApplicableError", "entry_for", "refuse", "transforms"]
