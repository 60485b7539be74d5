"""What ONNX Runtime computes, at each of its optimisation levels: the referee of everything here."""

from __future__ import annotations

import contextlib
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from redteam.graph import SkipError, quiet

_LEVEL = onnxruntime.GraphOptimizationLevel
LEVELS = {
    "all": _LEVEL.ORT_ENABLE_ALL,
    "disable": _LEVEL.ORT_DISABLE_ALL,
    "basic": _LEVEL.ORT_ENABLE_BASIC,
    "extended": _LEVEL.ORT_ENABLE_EXTENDED,
}

Floats = NDArray[Any]


class Runtime:
    """A model in ONNX Runtime on the CPU.

    Args:
        model: ONNX.
    Raises:
        SkipError: ONNX Runtime refuses it.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._sessions: dict[str, Any] = {}
        try:
            self._session("all")
        except Exception as error:
            raise SkipError(str(error)) from error
        fed = self._sessions["all"].get_inputs()[0]
        self._name = fed.name
        self._shape = [size if isinstance(size, int) and size > 0 else 1 for size in fed.shape]
        self.dtype = np.dtype(np.float64 if "double" in fed.type else np.float32)

    @cached_property
    def levels(self) -> tuple[str, ...]:
        """The optimisation levels at which it can be loaded."""
        known = []
        for level in LEVELS:
            with contextlib.suppress(Exception):
                self._session(level)
                known.append(level)
        return tuple(known)

    def __call__(self, point: Floats, level: str = "all") -> Floats:
        """The outputs (outputs,) at a point (inputs,), in the model's own type.

        Raises SkipError if ONNX Runtime fails.
        """
        fed = np.ascontiguousarray(point, dtype=self.dtype).reshape(self._shape)
        try:
            return np.asarray(self._session(level).run(None, {self._name: fed})[0]).reshape(-1)
        except Exception as error:
            raise SkipError(str(error)) from error

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the input and of the output."""
        fed = np.zeros(self._shape, self.dtype)
        return tuple(self._shape), tuple(np.asarray(self._session("all").run(None, {self._name: fed})[0]).shape)

    def _session(self, level: str) -> Any:
        if level not in self._sessions:
            options = quiet(LEVELS[level])
            made = onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
            self._sessions[level] = made
        return self._sessions[level]
