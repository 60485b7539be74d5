"""Errors that a person can act on: who, what was got, what was possible, what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZonoplugError(Exception):
    """Base of every error that zonoplug raises on purpose; its text is one clear message for a user."""


class UnknownNameError(ZonoplugError):
    """A name that no registry knows; the message lists the known ones and the nearest match."""

    def __init__(self, noun: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"No {noun} is called {name!r}. Known: {', '.join(names) or 'none'}.{hint}")


class SettingError(ZonoplugError):
    """An option or argument outside its range."""


class ModelError(ZonoplugError):
    """The ONNX file cannot be read, or cannot be turned into something the host can bound."""


class ModelMismatchError(ModelError):
    """The loaded model does not compute what ONNX Runtime computes: no bound of it can be believed."""


class SpecificationError(ZonoplugError):
    """The VNN-LIB file is malformed, contradictory, or does not fit the model."""


class UnsupportedSpecificationError(SpecificationError):
    """The VNN-LIB file is well formed, but says something zonoplug cannot handle yet."""


class UnsupportedOperatorError(ZonoplugError):
    """No transformer exists for an operator of the graph, and falling back to intervals was not allowed."""


class SymbolBudgetError(ZonoplugError):
    """A symbol budget that cannot be met: negative, or below the number of protected symbols."""


class ReductionRefusedError(ZonoplugError):
    """A reduction that would need too much memory or too many combinations here, or something it was not given."""


class HostError(ZonoplugError):
    """auto_LiRPA is missing, of an unknown version, or failed on this model."""
