"""Groups of inputs: where they come from, and what a group does together.

Every grouping is a label for each pixel, (height, width) int64, numbered 0 to n - 1 without gaps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zonoplug.domain.affine_image import AffineImage
from zonoplug.domain.input_sets import Box
from zonoplug.errors import SettingError
from zonoplug.explain.decision import Decision, network_outputs
from zonoplug.explain.influence import Influence, SymbolInfluence
from zonoplug.explain.region import Region, single_features

INSTALL = 'pip install "zonoplug[explain]"'
JOINT_BATCH = 64


def grid(height: int, width: int, rows: int, columns: int) -> Tensor:
    """Rectangles: `rows` x `columns` of them, as equal as whole pixels allow."""
    if not (1 <= rows <= height and 1 <= columns <= width):
        raise SettingError(f"A grid of {rows} x {columns} does not fit an image of {height} x {width} pixels.")
    down = torch.arange(height) * rows // height
    across = torch.arange(width) * columns // width
    return down[:, None] * columns + across[None, :]


def superpixels(image: Tensor, count: int, compactness: float | None = None) -> Tensor:
    """About `count` connected regions of like colour: SLIC.

    Args:
        image: (channels, height, width) in [0, 1].
        compactness: how much nearness counts against colour; larger gives squarer regions. By default 10 for colours,
            which are compared in Lab units of 0 to 100, and 0.1 for greys of 0 to 1.
    Raises:
        SettingError: scikit-image is not installed.

    Source: Achanta, Shaji, Smith, Lucchi, Fua, Suesstrunk, IEEE TPAMI 2012.
    """
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise SettingError(f"Superpixels need scikit-image. Type: {INSTALL}") from error
    pixels = image.permute(1, 2, 0).double().cpu().numpy()
    if compactness is None:
        compactness = 10.0 if image.shape[0] == 3 else 0.1
    labels = slic(pixels, n_segments=count, compactness=compactness, start_label=0, channel_axis=2)
    return without_gaps(torch.as_tensor(labels))


def from_masks(masks: Tensor | Sequence[Tensor]) -> Tensor:
    """Groups from masks (n, height, width); the first mask that holds a pixel has it, the rest make up one more."""
    stacked = torch.stack(list(masks)).bool()
    nowhere = ~stacked.any(dim=0)
    labels = stacked.to(torch.int64).argmax(dim=0)
    return without_gaps(torch.where(nowhere, torch.full_like(labels, stacked.shape[0]), labels))


def clusters(effects: Tensor, count: int, connected: bool = True) -> Tensor:
    """Pixels whose symbols do the same to the outputs, by Ward's agglomeration.

    Args:
        effects: (rivals, height, width): each pixel's coefficients a_i.
        count: how many groups, 1 to the number of pixels.
        connected: only neighbours join.
    Raises:
        SettingError: scikit-learn is not installed, or `count` is out of range.
    """
    rivals, height, width = effects.shape
    if not 1 <= count <= height * width:
        raise SettingError(f"{count} groups of {height * width} pixels are not possible.")
    try:
        from sklearn.cluster import AgglomerativeClustering
        from sklearn.feature_extraction.image import grid_to_graph
    except ImportError as error:
        raise SettingError(f"Clusters need scikit-learn. Type: {INSTALL}") from error
    points = effects.reshape(rivals, -1).T.double().cpu().numpy()
    graph = grid_to_graph(height, width) if connected else None
    labels = AgglomerativeClustering(count, connectivity=graph, linkage="ward").fit_predict(points)
    return without_gaps(torch.as_tensor(labels).reshape(height, width))


def without_gaps(labels: Tensor) -> Tensor:
    """The same groups numbered 0 to n - 1, in the order of their labels."""
    numbered: Tensor = torch.unique(labels.to(torch.int64), return_inverse=True)[1]
    return numbered


def neighbours(labels: Tensor) -> Tensor:
    """Which groups of pixels (height, width) touch: (n, n) bool."""
    count = int(labels.max()) + 1
    touch = torch.zeros(count, count, dtype=torch.bool)
    for first, second in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        touch[first.flatten(), second.flatten()] = True
    touch |= touch.T.clone()
    apart: Tensor = ~torch.eye(count, dtype=torch.bool)
    return touch & apart


def joint_influence(explainer: SymbolInfluence, region: Region, decision: Decision) -> Tensor:
    """How far each feature alone, all its coordinates free, can push each margin down: a certified upper bound.

        J(g) = m(x) - lower bound of the margin while only g moves

    Unlike sum_{i in g} |a_i| of one pass over everything, it holds what the relaxation adds for this group only.

    Returns:
        (features, rivals), at least 0 up to rounding.
    """
    at_point = decision.margins(network_outputs(explainer.network, region.point))
    alone = torch.eye(region.num_features, dtype=torch.bool)
    lowest = []
    for part in alone.split(JOINT_BATCH if explainer.takes_batches(region.point) else 1):
        points = region.point.expand(part.shape[0], *region.point.shape[1:])
        lowest.append(explainer.influence(points, decision, region.freed(part)).lower)
    return at_point - torch.cat(lowest)


def interactions(explainer: SymbolInfluence, region: Region, decision: Decision) -> tuple[Tensor, Tensor]:
    """The joint influence of each feature, and what it does that its coordinates alone do not.

        I(g) = J(g) - sum_{i in g} J(i)

    It is 0 for a linear network; below 0 where coordinates work against one another.

    Returns:
        J and I, each (features, rivals).
    """
    joint = joint_influence(explainer, region, decision)
    single = Region(region.point, region.box, single_features(region.point.shape[1:]))
    members = joint_influence(explainer, single, decision)
    total = torch.zeros_like(joint).index_add(0, region.features.flatten().to(members.device), members)
    return joint, joint - total


def together(explainer: SymbolInfluence, region: Region, decision: Decision) -> Influence:
    """Influence of merged symbols: one for each feature, which moves all its coordinates up or down as one.

    A merged symbol shows what a common shift of a group does, such as a brighter patch: for a linear network the sum
    of its members' a_i. The set is part of the box (its middle and those shifts), so it certifies nothing for the rest.
    """
    box: Box = region.box
    middle = box.lower + (box.upper - box.lower) / 2
    marks = torch.eye(region.num_features, dtype=torch.bool)
    generators = ((box.upper - box.lower) / 2).unsqueeze(1) * region.mask(marks)[None]
    return explainer.influence(region.point, decision, AffineImage(middle, generators))
