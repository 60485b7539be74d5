"""Everything that differs between the supported auto_LiRPA and torch versions, and nothing else."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zonoplug.errors import HostError
from zonoplug.lirpa import adaptations
from zonoplug.lirpa.host import HOST_VERSION, IS_0_3, BoundedModule, BoundedTensor, PerturbationLpNorm, quietly
from zonoplug.lirpa.host_operators.custom import custom_operators
from zonoplug.lirpa.plain_torch import plain_torch

__all__ = [
    "HOST_VERSION",
    "IS_0_3",
    "BoundedModule",
    "BoundedTensor",
    "PerturbationLpNorm",
    "build",
    "check_graph",
    "intermediate_bounds_argument",
    "quietly",
    "set_input",
    "takes_batches",
    "working_in",
]


class _Unsupported(logging.Handler):
    """Collects the operators that the host says it cannot convert; it names them in its log only."""

    def __init__(self) -> None:
        super().__init__(level=logging.ERROR)
        self.operators: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        nodes: Any = record.args or ()
        for node in nodes:
            operator = getattr(node, "op", None)
            if operator is not None:
                name = f"aten::{node.attr['operator']}" if operator == "aten::ATen" else operator
                self.operators.append(str(name))


@contextlib.contextmanager
def _unsupported_operators() -> Iterator[list[str]]:
    handler = _Unsupported()
    logger = logging.getLogger("auto_LiRPA.utils")
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler.operators
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


_PATCHES_0_3 = frozenset(
    "BoundInput BoundParams BoundBuffers BoundConstant BoundConv BoundBatchNormalization BoundRelu BoundAdd BoundSub"
    " BoundAveragePool BoundFlatten BoundReshape BoundLinear".split()
)


def build(
    module: torch.nn.Module,
    example: Tensor,
    conv_mode: str = "patches",
    device: str | torch.device | None = None,
    module_class: Any = None,
    bound_options: dict[str, Any] | None = None,
) -> Any:
    """The host's graph of `module`, built without printing anything, and found to compute what the module computes.

    Args:
        module: maps (batch, *input_shape) to (batch, *output_shape); put into eval mode and moved to `device`.
        example: (1, *input_shape), of the module's dtype; a point of the input set, if there is one.
        conv_mode: "patches" or "matrix", how the host stores coefficients of convolutions. 0.3 uses matrices anyway
            where patches fail.
        device: where to compute; the example's device if None.
        module_class: BoundedModule or a subclass of it; BoundedModule if None.
        bound_options: further options of the host.
    Raises:
        HostError: the host cannot build the graph, and the message names the operators it lacks; or the graph does not
            compute what the module does, for instance because the module's structure depends on its input.
    """
    target = torch.device(example.device if device is None else device)
    example = example.detach().to(target)
    options = {"conv_mode": conv_mode, **(bound_options or {})}
    module.eval()
    build_with = functools.partial(_build, module, example, device=target, module_class=module_class or BoundedModule)
    if IS_0_3 and options["conv_mode"] == "patches":
        graph = build_with({**options, "conv_mode": "matrix"})
        if _patches_fit_0_3(graph):
            graph = build_with(options)
    else:
        graph = build_with(options)
    check_graph(graph, module, example)
    return graph


def _patches_fit_0_3(graph: Any) -> bool:
    """Whether 0.3 bounds this graph in patches mode; around other operators its patches get shapes that do not fit."""
    nodes = list(graph._modules.values())
    classes = {type(node).__name__ for node in nodes}
    into_images = [node for node in nodes if type(node).__name__ == "BoundReshape" and len(node.output_shape) == 4]
    from_host = all(type(node).__module__.startswith("auto_LiRPA.") for node in nodes)
    behind_linear = all(type(node.inputs[0]).__name__ == "BoundLinear" for node in into_images)
    return from_host and classes <= _PATCHES_0_3 and "BoundConv" in classes and behind_linear


def _build(
    module: torch.nn.Module, example: Tensor, options: dict[str, Any], device: torch.device, module_class: Any
) -> Any:
    with quietly(), adaptations.exporter_settings(), plain_torch(), _unsupported_operators() as missing:
        try:
            graph = module_class(
                module, example, bound_opts=dict(options), device=device, custom_ops=custom_operators()
            )
            graph.eval()
            module.eval()  # the host traces in training mode, and leaves it so
            return graph
        except Exception as error:
            if missing:
                text = f"auto_LiRPA {HOST_VERSION} has no class for {', '.join(sorted(set(missing)))}"
            else:
                cause = error.__context__ if error.__context__ and "trace" in str(error) else error
                reason = (str(cause).strip() or "no reason given").splitlines()[0]
                text = f"auto_LiRPA {HOST_VERSION} cannot build this model: {type(cause).__name__}: {reason}"
            raise HostError(text) from error


def check_graph(graph: Any, module: torch.nn.Module, points: Tensor) -> None:
    """Compare the host's graph with the module on points (N, *input_shape), and on the same points somewhat moved.

    Raises:
        HostError: they differ by more than rounding.
    """
    moves = torch.linspace(-0.7, 0.9, points[0].numel(), dtype=points.dtype, device=points.device)
    moves = moves.reshape(points[:1].shape)
    for point in torch.cat([points, points * 0.75 + moves, moves - points]).split(1):
        difference = _difference(graph, module, point)
        if not difference <= 1e-4:
            raise HostError(
                f"auto_LiRPA {HOST_VERSION} builds a graph that does not compute what the model computes "
                f"(difference {difference:.3g} of the output's scale)"
            )


def takes_batches(graph: Any, module: torch.nn.Module, points: Tensor) -> bool:
    """Whether the host's graph computes what the module does on points (N, *input_shape) given as one batch."""
    try:
        return _difference(graph, module, points) <= 1e-4
    except Exception:
        return False


def _difference(graph: Any, module: torch.nn.Module, points: Tensor) -> float:
    """The largest difference relative to max(1, largest output); infinite if only one is NaN, or shapes differ."""
    with torch.no_grad(), quietly():
        expected, got = module(points), graph(points)
    if expected.shape != got.shape:
        return float("inf")
    same = (expected == got) | (expected.isnan() & got.isnan())
    difference = torch.where(same, torch.zeros_like(expected), (expected - got).abs()).nan_to_num(nan=torch.inf)
    scale = expected[expected.isfinite()].abs().max() if expected.isfinite().any() else torch.ones(())
    return float(difference.max() / max(1.0, float(scale))) if difference.numel() else 0.0


def set_input(module: Any, x: Any) -> None:
    """Give `module` a new (possibly bounded) input, clear what was computed for the last, mark perturbed nodes."""
    (module._set_input if IS_0_3 else module.set_input)(x)


def intermediate_bounds_argument() -> str:
    """Name of the argument of compute_bounds that takes known bounds of intermediate nodes."""
    return "intermediate_layer_bounds" if IS_0_3 else "interm_bounds"


@contextlib.contextmanager
def working_in(dtype: torch.dtype) -> Iterator[None]:
    """Tensors that the host makes without saying a type get `dtype` inside: 0.3 forgets to in alpha-CROWN."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
