"""What a few nodes of the host's graph compute together, as a formula in the value of one of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from zonoplug.lirpa.fusion import formulas
from zonoplug.lirpa.fusion.formulas import Formula
from zonoplug.lirpa.host_operators.bases import constant

LARGEST = 32  # nodes of one formula, constants included

# Formulas of the host's operators, given those of their inputs. Constants come as formulas without x.
_FUNCTIONS = {
    f"Bound{name.capitalize()}": name for name in ("erf", "exp", "log", "reciprocal", "sigmoid", "softplus", "tanh")
}


def _formula(node: Any, inputs: Sequence[Formula]) -> Formula | None:
    """The formula of a node whose inputs have these formulas; None where it is not known."""
    name, attributes, numbers = type(node).__name__, node.attr or {}, [formulas.constant_of(one) for one in inputs[1:]]
    if name in _FUNCTIONS:
        return formulas.of(_FUNCTIONS[name], inputs[0])
    if name in ("BoundIdentity", "BoundDropout"):
        return inputs[0]
    if name == "BoundNeg":
        return formulas.scaled(-1.0, inputs[0])
    if name in ("BoundAdd", "BoundSub"):
        return formulas.plus(inputs[0], formulas.scaled(1.0 if name == "BoundAdd" else -1.0, inputs[1]))
    if name == "BoundMul":
        return formulas.times(*inputs)
    if name == "BoundDiv":
        return formulas.times(inputs[0], _inverse(inputs[1]))
    if name == "BoundSqr" or (name == "BoundPow" and numbers == [2.0]):
        return formulas.times(inputs[0], inputs[0])
    if name == "BoundPow" and numbers == [3.0]:
        return formulas.times(inputs[0], inputs[0], inputs[0])
    if name == "BoundHardSigmoid":
        line = formulas.plus(
            formulas.scaled(float(attributes.get("alpha", 0.2)), inputs[0]),
            formulas.number(float(attributes.get("beta", 0.5))),
        )
        return formulas.of("clip", line, 0.0, 1.0)
    if name == "BoundRelu":
        return formulas.of("clip", inputs[0], 0.0, math.inf)
    if name in ("BoundClip", "BoundHardTanh"):
        low, high = numbers if len(numbers) == 2 else (attributes.get("min"), attributes.get("max"))
        if low is not None and high is not None:
            return formulas.of("clip", inputs[0], float(low), float(high))
    return None


def _inverse(formula: Formula) -> Formula:
    value = formulas.constant_of(formula)
    return formulas.number(1 / value) if value else formulas.of("reciprocal", formula)


def as_number(node: Any) -> Formula | None:
    """The number that a constant node holds, in every entry."""
    values = constant(node).flatten()
    if not values.numel() or not bool((values == values[0]).all()):
        return None
    return formulas.number(float(values[0]))


def in_terms_of(source: Any, node: Any, inside: list[Any], varying: Collection[str]) -> Formula | None:
    """The formula of a node, with `source` as x; `inside` gets the nodes on the way, each after its inputs."""
    known: dict[str, Formula | None] = {source.name: formulas.X}

    def formula(node: Any) -> Formula | None:
        if node.name in known:
            return known[node.name]
        result = None
        if node.name not in varying:
            result = as_number(node)
        elif len(known) < LARGEST:
            inputs = [formula(parent) for parent in node.inputs]
            given = [one for one in inputs if one is not None]
            result = _formula(node, given) if given and len(given) == len(inputs) else None
            inside.append(node)
        known[node.name] = result
        return result

    return formula(node)
