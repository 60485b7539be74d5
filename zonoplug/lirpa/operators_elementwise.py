"""Host operators of one variable, through linear relaxations."""

from __future__ import annotations

from functools import partial

from zonoplug.domain.zonotope import Zonotope
from zonoplug.lirpa.table import TRANSFORMERS, Call, Entry, transforms
from zonoplug.relaxations import absolute, leaky_relu, relu, sigmoid, tanh
from zonoplug.relaxations.base import RelaxationRule
from zonoplug.transformers.elementwise import relax


def _elementwise(rule: RelaxationRule, call: Call) -> Zonotope:
    (hull, *_) = call.hulls
    assert hull is not None
    return relax(call.zonotope, rule, hull, call.source, call.node.name)


for _name, _rule in {"BoundRelu": relu, "BoundSigmoid": sigmoid, "BoundTanh": tanh, "BoundAbs": absolute}.items():
    TRANSFORMERS[_name] = Entry(partial(_elementwise, _rule), "relaxation")


@transforms("BoundLeakyRelu", kind="relaxation")
def _leaky_relu(call: Call) -> Zonotope:
    negative_slope = float((call.node.attr or {}).get("alpha", 0.01))
    return _elementwise(partial(leaky_relu, negative_slope=negative_slope), call)
