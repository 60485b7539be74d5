"""Which of the host's bounds are believed.

The host is somebody else's, and some of its bounds do not hold: a method is believed on a network only if each of the
network's operators kept the law of bounds for it, in random networks, on the host's version. Which did is data:
`trusted_operators.json`, written by `benchmarks/host_laws.py`. What is not on the list is not believed, nor is
anything of a version that the list does not know.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from zonoplug.lirpa.host import HOST_VERSION
from zonoplug.lirpa.methods import BoundMethod

LIST = Path(__file__).with_name("trusted_operators.json")
_LEAVES = frozenset({"BoundInput", "BoundParams", "BoundBuffers", "BoundConstant", "BoundPrimConstant"})


@cache
def _trusted(version: str) -> dict[str, frozenset[str]]:
    """Method of the host -> keys of the operators that are trusted for it; nothing for a version that is not known."""
    hosts = json.loads(LIST.read_text(encoding="utf-8"))["trusted"] if LIST.exists() else {}
    return {method: frozenset(keys) for method, keys in hosts.get(version, {}).items()}


def key_of(node: Any) -> str:
    """An operator's name in the list: the host's class, or "module.class" for a class of ours or of somebody else.

    Ours carry the host's names, so that the module is needed to tell them apart.
    """
    kind = type(node)
    if kind.__module__.startswith("auto_LiRPA."):
        return kind.__name__
    if kind.__module__.startswith("zonoplug.lirpa."):
        return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__name__}"


def is_trusted(node: Any, method: str) -> bool:
    """Whether one operator's bounds by a method of the host ("ibp", "crown", ...) are believed."""
    return key_of(node) in _trusted(HOST_VERSION).get(method, frozenset())


def is_ours(node: Any) -> bool:
    """Whether an operator is zonoplug's own, with bounds that its tests prove."""
    return type(node).__module__.startswith("zonoplug.lirpa.")


def host_method(method: str | BoundMethod) -> str | None:
    """The method of the host that a method rests on: "crown" for "zonotope+full-crown"; None if it is all ours."""
    parsed = BoundMethod.parse(method) if isinstance(method, str) else method
    return None if parsed.backward is None else parsed.backward.removeprefix("full-")


def untrusted(module: Any, method: str | BoundMethod) -> list[str]:
    """The operators of a built module for which a method of the host is not believed, sorted; [] if it is believed.

    Args:
        module: a BoundedModule.
        method: any spelling. Zonotopes with the host's backward bounds count as "crown" or "alpha-crown"; a method that
            is ours alone rests on nobody, whatever the network.
    """
    wanted = host_method(method)
    if wanted is None:
        return []
    return sorted(
        {type(node).__name__.removeprefix("Bound") for node in _varying(module) if not is_trusted(node, wanted)}
    )


def distrust(module: Any, method: str | BoundMethod) -> str:
    """One line on why a method is not believed on a network, such as for a note; "" if it is believed."""
    operators = untrusted(module, method)
    if not operators:
        return ""
    return (
        f"method {method} is not trusted on this network: auto_LiRPA {HOST_VERSION}'s"
        f" {host_method(method)} bounds of {', '.join(operators)} did not pass their tests"
    )


def _varying(module: Any) -> list[Any]:
    """The operators between the network's input and its output, which change with the input."""
    changes: dict[str, bool] = {}
    nodes: dict[str, Any] = {}
    stack = [(module[module.final_name], False)]
    while stack:
        node, inputs_done = stack.pop()
        name, kind = node.name, type(node).__name__
        if inputs_done:
            changes[name] = kind != "BoundShape" and any(changes[parent.name] for parent in node.inputs)
        elif name not in nodes:
            nodes[name] = node
            changes[name] = kind == "BoundInput"
            if node.inputs:
                stack.append((node, True))
                stack.extend((parent, False) for parent in node.inputs)
    return [node for name, node in nodes.items() if changes[name] and type(node).__name__ not in _LEAVES]
