"""The parts of the search that can be left out, to measure what each is worth."""

from __future__ import annotations

from collections.abc import Iterable

from zonoplug.errors import UnknownNameError

COMPONENTS = {
    "attack": "gradient descent before and between bounds; random points stay, as evidence against wrong bounds",
    "surrogate-gradients": "slopes for Sign, Round and the like, and outputs before a softmax, for descents to follow",
    "local-changes": "changes of parts of the lowest points that descents found",
    "inner-attack": "the middle and the zonotope's lowest corner of open subdomains, the minimisers of their bounds",
    "zonotope-root": "one zonotope bound of the whole input box, before stronger methods",
    "crown": "CROWN bounds over the zonotope's pre-activation bounds, alone or with it",
    "input-splits": "the search that bisects input boxes",
    "influence": "the choice of the coordinate to bisect by its effect on the margin; else the widest",
    "contraction": "the cutting of subdomains by the unsafe set, as constraints on noise symbols",
    "activation-splits": "the search that splits ReLUs",
    "mixed-splits": "the search that splits boxes and ReLUs in one tree, where more inputs vary than bisecting can do",
    "refined-bounds": "the tightening of pre-activation bounds layer by layer before ReLUs are split",
    "tuned-linear-bounds": "the linear bounds of products and softmax, chosen by gradient before ReLUs are split",
    "affine-form": "the affine form of a network over its unstable neurons, over which splits of them are cheap",
    "neuron-search": "branch and bound on single neurons, which narrows the pre-activation bounds of such a network",
    "linear-programs": "LP duals of a last few subdomains of such a network, which cannot be split any more",
    "clipping": "tighter pre-activation bounds by split constraints and the negated specification, in the mixed search",
}


def check_components(names: Iterable[str]) -> None:
    """Raise UnknownNameError, which lists the known names, if one of the names is no component."""
    for name in names:
        if name not in COMPONENTS:
            raise UnknownNameError("component of the search", name, COMPONENTS)
