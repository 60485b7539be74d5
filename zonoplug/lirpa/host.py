"""Finds auto_LiRPA, imports it adapted so that it works with the installed torch and numpy, and prints nothing."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zonoplug.errors import HostError
from zonoplug.lirpa import adaptations

INSTALL_HINT = (
    "Type: pip install --no-deps auto_LiRPA==0.3 && pip install appdirs packaging tqdm pyyaml   "
    "(or set ZONOPLUG_LIRPA to a folder that contains auto_LiRPA)"
)
SUPPORTED = ("0.3", "0.7")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Whatever the host prints or warns about inside goes nowhere, and its logging set-up is undone."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        with warnings.catch_warnings(record=True):
            try:
                yield
            finally:
                root.handlers[:] = handlers
                root.setLevel(level)


def _chosen_folder() -> str | None:
    """The folder named by ZONOPLUG_LIRPA, or None. Raises HostError if it names neither a folder nor a version."""
    wanted = os.environ.get("ZONOPLUG_LIRPA", "").strip()
    if not wanted or re.fullmatch(r"\d+(\.\d+)*", wanted):
        return None
    if not (Path(wanted) / "auto_LiRPA").is_dir():
        raise HostError(f"ZONOPLUG_LIRPA={wanted!r} holds no folder auto_LiRPA. {INSTALL_HINT}")
    return wanted


def _import_host() -> types.ModuleType:
    folder = _chosen_folder()
    if folder is not None and sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    logging.getLogger("auto_LiRPA").addHandler(logging.NullHandler())
    try:
        with quietly(), adaptations.importable_for_0_3():
            host = importlib.import_module("auto_LiRPA")
    except ModuleNotFoundError as error:
        if error.name == "auto_LiRPA":
            raise HostError(f"auto_LiRPA is not installed. {INSTALL_HINT}") from error
        raise HostError(f"auto_LiRPA needs the package {error.name}. Type: pip install {error.name}") from error
    except Exception as error:
        raise HostError(f"auto_LiRPA cannot be imported ({type(error).__name__}: {error}). {INSTALL_HINT}") from error
    version = str(getattr(host, "__version__", "unknown"))
    if not version.startswith(SUPPORTED):
        raise HostError(f"auto_LiRPA {version} is not supported; supported: 0.3, 0.7. {INSTALL_HINT}")
    wanted = os.environ.get("ZONOPLUG_LIRPA", "").strip()
    if folder is None and wanted and not version.startswith(wanted):
        raise HostError(f"ZONOPLUG_LIRPA asks for auto_LiRPA {wanted}, installed is {version}. {INSTALL_HINT}")
    return host


_host = _import_host()
HOST_VERSION: str = str(_host.__version__)
IS_0_3: bool = HOST_VERSION.startswith("0.3")
BoundedModule: Any = _host.BoundedModule
BoundedTensor: Any = _host.BoundedTensor
PerturbationLpNorm: Any = _host.PerturbationLpNorm


adaptations.adapt_get_bias()
adaptations.adapt_patches_to_matrix()
if IS_0_3:
    adaptations.adapt_0_3(BoundedModule)
else:
    adaptations.adapt_0_7()
