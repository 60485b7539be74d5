"""How to verify, and what: settings, and the problem that files make with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from zonoplug.errors import SettingError, UnknownNameError
from zonoplug.verify.branching.by_name import Branching
from zonoplug.verify.components import check_components
from zonoplug.verify.problem.input_numbers import INPUT_BOUNDS
from zonoplug.verify.problem.problem import Problem


@dataclass(frozen=True, slots=True)
class Settings:
    """How to verify.

    Attributes:
        timeout_seconds: the limit on wall time, > 0.
        method: "auto", or the bound method to use at the root and in the search.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        seed: of all random choices.
        without: names of COMPONENTS to leave out of the search, to see what they are worth.
        branching: "auto", or a rule by which every search splits that has one of this name.
        input_bounds: "written", or "nearest": where no number of the model's type satisfies the bounds of an input,
            both are read as the numbers nearest to them, as the competition's checker does.
    """

    timeout_seconds: float = 60.0
    method: str = "auto"
    device: str = "auto"
    seed: int = 0
    without: tuple[str, ...] = ()
    branching: str = "auto"
    input_bounds: str = "written"

    def check(self) -> None:
        """Raise UnknownNameError or SettingError, which say what is possible, where a name is unknown."""
        if self.method != "auto":
            from zonoplug.lirpa.methods import BoundMethod

            BoundMethod.parse(self.method)
        check_components(self.without)
        Branching.named(self.branching)
        if self.input_bounds not in INPUT_BOUNDS:
            raise UnknownNameError("reading of input bounds", self.input_bounds, INPUT_BOUNDS)

    def torch_device(self) -> torch.device:
        """The device. Raises SettingError if it is unknown or absent."""
        if self.device not in ("auto", "cpu", "cuda"):
            raise SettingError(f"Device {self.device!r} is unknown. Known: auto, cpu, cuda.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SettingError("Device 'cuda' was asked for, but torch sees no GPU. Use --device cpu.")
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")


def load_problem(model_path: str | Path, specification_path: str | Path, settings: Settings) -> Problem:
    """Read a model and a specification, and put them together on the settings' device.

    Args:
        model_path, specification_path: an ONNX and a VNN-LIB file, plain or gzipped.
    Raises:
        ZonoplugError: a file that cannot be read, files that do not fit each other, a bad setting.
    """
    from zonoplug.io.onnx_model import load_model
    from zonoplug.io.vnnlib import read_specification

    device = settings.torch_device()
    specification = read_specification(specification_path)
    model = load_model(model_path)
    model.module.to(device)
    return Problem(specification, model, device, settings.input_bounds)
