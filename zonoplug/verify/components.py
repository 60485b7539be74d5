"""The parts of the search that can be left out, to measure what each is worth."""

from __future__ import annotations

from collections.abc import Iterable

from zonoplug.errors import UnknownNameError

INGREDIENTS = {
    "attack": "gradient descent before and between bounds; random points stay, as evidence against wrong bounds",
    "made-up-slopes": "slopes for signs and roundings, and outputs before a softmax, for descents to follow",
    "local-changes": "changes of parts of the lowest points that descents found",
    "inner-attack": "the middle and the zonotope's lowest corner of open subdomains, the minimisers of their bounds",
    "zonotope-root": "one zonotope bound of the whole input box, before stronger methods",
    "crown": "CROWN bounds over the zonotope's hulls, alone or with it",
    "input-splits": "the search that halves input boxes",
    "influence": "the choice of the coordinate to halve by its effect on the margin; else the widest",
    "contraction": "the cutting of subdomains by the unsafe set, as constraints on noise symbols",
    "activation-splits": "the search that fixes the signs of ReLUs",
    "mixed-splits": "the search that splits boxes and signs in one tree, where more inputs vary than halving can do",
    "refined-hulls": "the tightening of hulls layer by layer before signs are fixed",
    "tuned-planes": "the planes of products and softmax, chosen by gradient before signs are fixed",
    "open-network": "the writing of a network in its open ReLUs, over which signs are cheap to bound and to split",
    "neuron-search": "branch and bound on single neurons, which narrows the hulls of such a network",
    "linear-programs": "exact multipliers of a last few subdomains of such a network, which cannot be split any more",
    "clipping": "the tightening of hulls by fixed signs and by the negated specification, in the search of both splits",
}


def check_ingredients(names: Iterable[str]) -> None:
    """Raise UnknownNameError, which lists the known names, if one of the names is no ingredient."""
    for name in names:
        if name not in INGREDIENTS:
            raise UnknownNameError("ingredient of the search", name, INGREDIENTS)
