"""What `zonoplug explain` is asked: its settings, and a network and an input that fit each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.errors import SettingError
from zonoplug.explain.decision import Decision, network_outputs
from zonoplug.explain.layout import ImageLayout
from zonoplug.explain.region import Region, single_features
from zonoplug.io.agreement import check_agreement
from zonoplug.io.input_file import InputFile, read_input
from zonoplug.io.onnx_model import OnnxModel, load_model


@dataclass(frozen=True, slots=True)
class ExplainSettings:
    """What `zonoplug explain` may be told.

    Attributes:
        eps: radius of the box, in the units of a picture's values in [0, 1], or of the file's numbers.
        target: the class to explain; None for the file's label, else the network's own decision.
        method: a zonotope bound method.
        smallest: the decision is the smallest output.
        delta: for a network with one output: the change of it that matters; None for a tenth of its size.
        mean, std: what is taken off each channel, and what it is divided by then.
        low, high: the valid range before that; None for 0 to 1 in pictures, no limits in tables.
        divide: what the numbers of a .npy or .csv file are divided by.
        row: of a .csv file.
        transpose: the network counts pixels column by column; files count them row by row.
        interleaved: a .csv file holds the channels of a pixel side by side, not one channel after the other.
        names: of the columns of a table.
        timeout_seconds: after it, sections that are still to come are left out.
        compare: whether other attribution methods are run.
    """

    eps: float = 0.03
    target: int | None = None
    method: str = "zonotope"
    smallest: bool = False
    delta: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    low: float | None = None
    high: float | None = None
    divide: float = 1.0
    row: int = 0
    transpose: bool = False
    interleaved: bool = False
    names: tuple[str, ...] | None = None
    timeout_seconds: float = 120.0
    compare: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.eps < float("inf"):
            raise SettingError(f"The radius is {self.eps:g}, and must be above 0. Type: --eps 0.03")
        if not self.divide > 0 or not all(value > 0 for value in self.std):
            raise SettingError("What inputs are divided by (--divide, --std) must be above 0.")
        if not self.timeout_seconds > 0:
            raise SettingError(
                f"The time limit is {self.timeout_seconds:g} seconds, and must be above 0. Type: --timeout 120"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One input, ready to be explained.

    Attributes:
        image: (channels, height, width) in [0, 1] to show; None for tables.
        names: of the input's columns.
        words: what the decision is, for people.
    """

    model: OnnxModel
    region: Region
    decision: Decision
    baseline: Tensor
    layout: ImageLayout | None
    image: Tensor | None
    names: tuple[str, ...]
    words: str
    rivals: tuple[str, ...]


def load_case(model_path: str, input_path: str, settings: ExplainSettings) -> Case:
    """Read a network and an input, and put them together.

    Raises:
        ZonoplugError: what does not fit, in one line.
    """
    model = load_model(model_path)
    found = read_input(input_path, model.num_inputs, settings.divide, settings.row)
    layout = ImageLayout.guess(model.input_shape, settings.transpose)
    if layout is None and found.is_picture:
        raise SettingError(
            f"{input_path} is a picture, and the network's input of shape {list(model.input_shape)} is none that"
            " is known: a square one with 1 or 3 channels, or (channels, height, width)."
        )
    raw = _arranged(found, layout, model, input_path, settings.interleaved)
    scale = _per_channel(settings.std, layout, model, "--std")
    shift = _per_channel(settings.mean, layout, model, "--mean")
    low = settings.low if settings.low is not None else (-np.inf if layout is None else 0.0)
    high = settings.high if settings.high is not None else (np.inf if layout is None else 1.0)
    if not bool(((raw >= low) & (raw <= high)).all()):
        raise SettingError(
            f"{input_path}: values lie between {float(raw.min()):g} and {float(raw.max()):g}, outside the valid range"
            f" {low:g} to {high:g}. Type --divide 255, or --range LOW,HIGH."
        )

    def normal(values: Tensor) -> Tensor:
        return ((values - shift) / scale).to(model.dtype)[None]

    point = normal(raw)
    box = Box(
        torch.minimum(normal((raw - settings.eps).clamp(min=low)), point),
        torch.maximum(normal((raw + settings.eps).clamp(max=high)), point),
    )
    features = single_features(model.input_shape) if layout is None else layout.pixels()
    check_agreement(model, point.flatten(1).numpy())
    outputs = network_outputs(model.module, point)
    decision, words, rivals = _decision(outputs, found, settings)
    if not bool((decision.margins(outputs) > 0).all()):
        raise SettingError(f"The network does not say {words.split(' (')[0]} here: give another --target, or none.")
    baseline = normal(torch.full_like(raw, max(low, 0.0) if np.isfinite(low) else 0.0))
    names = settings.names or found.names or tuple(f"input {i}" for i in range(model.num_inputs))
    if len(names) != model.num_inputs:
        raise SettingError(f"Got {len(names)} names for {model.num_inputs} inputs.")
    image = None if layout is None else layout.to_image(raw).float()
    return Case(model, Region(point, box, features), decision, baseline, layout, image, names, words, rivals)


def _arranged(found: InputFile, layout: ImageLayout | None, model: OnnxModel, path: str, interleaved: bool) -> Tensor:
    """The file's values in the network's shape, before normalisation, float64."""
    values = torch.as_tensor(found.values)
    if layout is None:
        return values.reshape(model.input_shape)
    if not found.is_picture:
        size = (layout.height, layout.width)
        if interleaved:
            return layout.from_image(values.reshape(*size, layout.channels).permute(2, 0, 1).contiguous())
        return layout.from_image(values.reshape(layout.channels, *size))
    wanted = (layout.channels, layout.height, layout.width)
    if values.shape[0] == 3 and layout.channels == 1:
        values = values.mean(dim=0, keepdim=True)
    elif values.shape[0] == 1 and layout.channels == 3:
        values = values.expand(3, *values.shape[1:])
    if tuple(values.shape) != wanted:
        raise SettingError(
            f"{path}: the picture has {values.shape[2]} x {values.shape[1]} pixels, the network takes"
            f" {layout.width} x {layout.height}. Resize it first."
        )
    return layout.from_image(values)


def _per_channel(numbers: tuple[float, ...], layout: ImageLayout | None, model: OnnxModel, option: str) -> Tensor:
    """One number, or one for each channel, as a tensor that fits the input."""
    if len(numbers) == 1:
        return torch.full(model.input_shape, numbers[0], dtype=torch.float64)
    if layout is None or len(numbers) != layout.channels:
        wanted = 1 if layout is None else layout.channels
        raise SettingError(f"{option} has {len(numbers)} numbers, and must have 1 or {wanted}.")
    values = torch.tensor(numbers, dtype=torch.float64)[:, None, None]
    return layout.from_image(values.expand(layout.channels, layout.height, layout.width).contiguous())


def _decision(outputs: Tensor, found: InputFile, settings: ExplainSettings) -> tuple[Decision, str, tuple[str, ...]]:
    count = outputs.shape[1]
    if count == 1:
        value = float(outputs[0, 0])
        delta = settings.delta if settings.delta is not None else max(0.1 * abs(value), 1e-6)
        decision = Decision.within(outputs, delta)
        return decision, f"an output within {delta:.4g} of {value:.4g}", ("not below", "not above")
    own = int((-outputs if settings.smallest else outputs).argmax())
    target = settings.target if settings.target is not None else found.label if found.label is not None else own
    decision = Decision.between_classes(torch.tensor([target]), count, outputs, settings.smallest)
    words = f"class {target}" + (" (the smallest output)" if settings.smallest else "")
    return decision, words, tuple(f"class {rival}" for rival in decision.rivals[0].tolist())
