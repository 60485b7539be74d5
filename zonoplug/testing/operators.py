"""Laws of operators in the host's graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval
from zonoplug.testing.requirements import require, tolerance
from zonoplug.testing.zonotopes import check_contains_samples


def check_operator(module: nn.Module, center: Tensor, radius: float) -> set[str]:
    """The laws of operators, on a module that has them, through the host's graph.

    - The image of sampled points lies within the bounds, and so it does on a graph that forks and joins again, where
      branches must be aligned.
    - Elements of a batch do not leak into one another: each is bounded as if it were alone, and the bounds of one do
      not change with the others.
    - The type stays.

    Args:
        module: maps (batch, *shape) to (batch, *out_shape), in the type of `center`.
        center: (1, *shape), the middle of a box inside the module's domain.
        radius: of that box, for each coordinate.
    Returns:
        The classes of the host's nodes that the propagation met, patterns included.
    """
    from zonoplug.domain.input_sets import Box
    from zonoplug.lirpa import compat
    from zonoplug.lirpa.fusion.plan import plan_for
    from zonoplug.lirpa.methods import BoundMethod
    from zonoplug.lirpa.module import ZonotopeModule, bound_set

    def bounds_of(part: nn.Module, box: Box) -> Interval:
        host = compat.build(part, center, module_class=ZonotopeModule)
        with torch.no_grad():
            return bound_set(host, box, BoundMethod(zonotope=True))[0]

    generator = torch.Generator().manual_seed(0)
    moves = (torch.rand(3, *center.shape[1:], generator=generator, dtype=torch.float64) - 0.5).to(center)
    boxes = Box.ball(center + radius * moves, radius / 2)
    points = boxes.sample(200, generator)
    for part in (module, Forked(module, center)):
        bounds = bounds_of(part, boxes)
        with torch.no_grad():
            images = part(points.flatten(0, 1)).unflatten(0, points.shape[:2])
        require(bounds.lower.dtype == center.dtype, "the type changed")
        check_contains_samples(bounds, images)
    together = bounds_of(module, boxes)
    allowed = 1e3 * tolerance(together.lower, together.upper)
    others = Box(torch.cat([boxes.lower[:1], boxes.upper[1:]]), boxes.upper)
    for box in (Box(boxes.lower[:1], boxes.upper[:1]), others):
        alone = bounds_of(module, box)
        for one, other in zip(alone, together, strict=True):
            difference = (one[0] - other[0]).abs()
            require(bool((difference <= allowed).all()), f"batch elements differ by {float(difference.max()):.3g}")
    host = compat.build(module, center, module_class=ZonotopeModule)
    return {type(node).__name__ for node in plan_for(host, host.final_name, patterns=True).order if node.from_input}


class Function(nn.Module):
    """A module from a function of the input and of named parts, which are layers or constant tensors.

    Function(lambda x, layer, c: layer(x) + c, layer=nn.Linear(8, 8), c=torch.ones(8))
    """

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        self._names = tuple(parts)
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **{name: getattr(self, name) for name in self._names})


class Forked(nn.Module):
    """f(x) - f(0.9 x + 0.1 c) / 2:  two branches with shared symbols, which meet again."""

    center: Tensor

    def __init__(self, module: nn.Module, center: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("center", center.clone())

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.module(x) - 0.5 * self.module(0.9 * x + 0.1 * self.center)
        return image


def check_gradient_reaches_slopes(module: nn.Module, center: Tensor, radius: float) -> None:
    """Bounds behind a ReLU have finite gradients with respect to its slopes, through the operators of a module.

    Args:
        module: maps (batch, *shape) to (batch, *out_shape); ReLUs are put in front of it.
        center: (1, *shape), positive entries, about which a box lies inside the module's domain.
        radius: of that box.
    """
    from zonoplug.domain.input_sets import Box
    from zonoplug.lirpa import compat
    from zonoplug.lirpa.forward.options import PropagationOptions
    from zonoplug.lirpa.forward.propagation import propagate
    from zonoplug.lirpa.module import ZonotopeModule

    whole = nn.Sequential(_Kinked(center), module)
    host = compat.build(whole, center, module_class=ZonotopeModule)
    source, box = SymbolSource(), Box.ball(center, radius)
    name = next(node.name for node in host._modules.values() if type(node).__name__ == "BoundRelu")
    slope = torch.full_like(center, 0.4).requires_grad_()
    inputs = {host.input_name[0]: box.to_zonotope(source, "input")}
    bounds = propagate(host, inputs, source, PropagationOptions(), slopes={name: slope}).bounds
    (gradient,) = torch.autograd.grad((bounds.upper - bounds.lower).sum(), slope, allow_unused=True)
    require(gradient is not None and bool(gradient.isfinite().all()), "no finite gradient reaches a slope in front")


class _Kinked(nn.Module):
    """x + relu(x - c) / 2: a function around c with a kink there."""

    center: Tensor

    def __init__(self, center: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", center.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * torch.relu(x - self.center)
