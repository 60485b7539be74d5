"""onnx2torch without torchvision, which it imports for two operators that no boundable model uses."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any


def _unavailable(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("RoiAlign and NonMaxSuppression need torchvision")


def import_onnx2torch() -> types.ModuleType:
    """Import onnx2torch; where torchvision is absent, an empty stand-in takes its place during the import only."""
    if "onnx2torch" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("onnx2torch")
    package = types.ModuleType("torchvision")
    operators = types.ModuleType("torchvision.ops")
    for name in ("roi_align", "nms", "box_convert"):
        setattr(operators, name, _unavailable)
    package.ops = operators  # type: ignore[attr-defined]
    stand_ins = {"torchvision": package, "torchvision.ops": operators}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("onnx2torch")
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)
