"""What an entry of the operator table is, and how third parties add one.

Each entry gets a `Call`: the host's node, the values of its inputs (zonotopes, or tensors where nothing is perturbed),
and the propagation under way. Third parties add entries with `@transforms(HostClass)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from torch import Tensor

from zonoplug.domain.rounding import Accuracy
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.transformers.affine import Operand
from zonoplug.transformers.bilinear import Form
from zonoplug.transformers.enclosure import Enclosure

Kind = Literal["exact", "relaxation", "composition"]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One operator during one propagation.

    Attributes:
        node: the host's node, with its attributes.
        operands: values of its inputs; at least one is a zonotope.
        source: gives ids to fresh symbols.
        preactivations: bounds of the operands' coordinates, None for constants; filled for non-exact operators only.
        slope: a slope for the relaxation, (batch, *shape), to be used instead of its own choice; None for its own.
        form: how products of two perturbed operands are bounded, "precise" or "fast"; None for what the work allows.
        sum_to_one: whether a softmax uses that its outputs sum to one.
        inner: takes bounds of values inside the operator, by name, that backward bounds can use.
    """

    node: Any
    operands: Sequence[Operand]
    source: SymbolSource
    preactivations: Sequence[Interval | None] = ()
    slope: Tensor | None = None
    form: Form | None = None
    sum_to_one: bool = False
    inner: dict[str, Interval] = field(default_factory=dict)

    @property
    def zonotope(self) -> Zonotope:
        """The first operand, which must be the only perturbed one."""
        first, *rest = self.operands
        if not isinstance(first, Zonotope) or any(isinstance(other, Zonotope) for other in rest):
            raise NotApplicableError
        return first

    @property
    def constants(self) -> list[Tensor]:
        """All operands but the first, which must be the only perturbed one."""
        if any(isinstance(operand, Zonotope) for operand in self.operands[1:]):
            raise NotApplicableError
        return [operand for operand in self.operands[1:] if isinstance(operand, Tensor)]


class NotApplicableError(Exception):
    """Raised by a transformer that does not cover this use of its operator: the next one or the fallback does."""


Transformer = Callable[[Call], Zonotope | Enclosure]
F = TypeVar("F", bound=Transformer)


@dataclass(frozen=True, slots=True)
class Entry:
    """A transformer and what it gives: an exact image, a linear relaxation, or a composition of others.

    Attributes:
        otherwise: what to try where the transformer does not apply: a product with a constant is exact, of two
            perturbed operands it is a composition.
        accuracy: how well a network's evaluation computes the operator, where `runtime_errors` does not say; None for
            not known: then nothing is proved through it, unless it is exact.
    """

    transformer: Transformer
    kind: Kind
    otherwise: Entry | None = None
    accuracy: Accuracy | None = None


TRANSFORMERS: dict[str, Entry] = {}


def transforms(
    *host_classes: str | type, kind: Kind = "exact", after: bool = False, accuracy: Accuracy | None = None
) -> Callable[[F], F]:
    """Decorator that files a transformer under host operator classes (or their names).

    A third party's subclass of a listed class uses the same transformer unless it has its own.

    Args:
        kind: what the transformer gives.
        after: whether it serves the uses that the transformer filed before does not apply to, and does not replace it.
        accuracy: how well a network's evaluation computes the operator, see `Entry`.
    """

    def file(transformer: F) -> F:
        for host_class in host_classes:
            name = host_class if isinstance(host_class, str) else host_class.__name__
            entry, before = Entry(transformer, kind, accuracy=accuracy), TRANSFORMERS.get(name)
            TRANSFORMERS[name] = replace(before, otherwise=entry) if after and before is not None else entry
        return transformer

    return file


def entry_for(node: Any) -> Entry | None:
    """The table's entry for a host node, or None.

    A class from outside the host may inherit its parent's entry; the host's own classes may not, since the host
    derives operators from one another that compute something else (its tan is a subclass of its tanh).
    """
    for host_class in type(node).__mro__:
        if host_class.__name__ in TRANSFORMERS:
            return TRANSFORMERS[host_class.__name__]
        if host_class.__module__.startswith("auto_LiRPA."):
            return None
    return None


def inner_name(node: str, value: str) -> str:
    """Under which name the pre-activation bounds of a propagation hold the bounds of a value inside a node's
    operator.
    """
    return f"{value} inside {node}"


def reduced(attributes: Any, x: Tensor, *axes: Tensor) -> tuple[list[int], bool]:
    """The axes of an ONNX reduction, all by default, and whether they stay with length 1."""
    given = axes[0].reshape(-1).tolist() if axes else (attributes or {}).get("axes")
    given = range(x.dim()) if given is None else [given] if isinstance(given, int) else given
    return [int(axis) for axis in given], bool((attributes or {}).get("keepdims", 1))


def refuse(node: Any, operands: Sequence[Operand]) -> UnsupportedOperatorError:
    """The error for a node that nothing covers."""
    inputs = ", ".join(
        f"Zonotope {tuple(o.center.shape)} with {o.num_symbols} symbols"
        if isinstance(o, Zonotope)
        else f"Tensor {tuple(o.shape)}"
        for o in operands
    )
    kind = type(node).__name__
    return UnsupportedOperatorError(
        f"No transformer for {kind} (node {node.name!r}, inputs: {inputs})."
        f' Register one with @transforms({kind}), or allow fallback="interval".'
    )
