"""Groups, what they do together, and the tree of merges."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zonoplug.errors import SettingError
from zonoplug.explain.groups import (
    clusters,
    from_masks,
    grid,
    interactions,
    joint_influence,
    neighbours,
    superpixels,
    together,
)
from zonoplug.explain.influence import SymbolInfluence
from zonoplug.explain.layout import ImageLayout
from zonoplug.explain.merging import cut, merge_tree
from zonoplug.explain.region import Region

SEEDS = st.integers(0, 10**6)


def test_a_grid_has_rectangles_of_nearly_equal_size():
    labels = grid(7, 10, 2, 5)
    assert torch.equal(torch.unique(labels), torch.arange(10))
    assert set(torch.bincount(labels.flatten()).tolist()) == {6, 8}
    with pytest.raises(SettingError, match="does not fit"):
        grid(3, 3, 4, 1)


def test_masks_share_no_pixel_and_the_rest_is_a_group():
    masks = torch.zeros(2, 3, 3, dtype=torch.bool)
    masks[0, 0], masks[1, :2] = True, True
    assert from_masks(masks).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert from_masks([masks[0], ~masks[0]]).max() == 1


def test_superpixels_follow_the_image():
    pytest.importorskip("skimage")
    image = torch.zeros(1, 12, 12)
    image[:, :, 6:] = 1
    labels = superpixels(image, 4)
    assert not set(labels[:, :6].flatten().tolist()) & set(labels[:, 6:].flatten().tolist())


def test_clusters_join_pixels_that_do_the_same():
    pytest.importorskip("sklearn")
    effects = torch.zeros(2, 6, 6)
    effects[0, :3], effects[1, 3:] = 1.0, -2.0
    labels = clusters(effects, 2)
    assert len(labels[:3].unique()) == len(labels[3:].unique()) == 1
    assert labels[0, 0] != labels[5, 5]
    with pytest.raises(SettingError, match="not possible"):
        clusters(effects, 37)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(SettingError, match=r"zonoplug\[explain\]"):
        superpixels(torch.zeros(1, 8, 8), 4)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(SettingError, match=r"zonoplug\[explain\]"):
        clusters(torch.zeros(1, 8, 8), 4)


@settings(max_examples=15)
@given(seed=SEEDS)
def test_joint_influence_bounds_what_a_group_can_do(make_region, extremes, seed):
    network, single, decision = make_region(seed=seed)
    region = Region(single.point, single.box, torch.tensor([0, 1, 1, 0]))
    joint = joint_influence(SymbolInfluence(network), region, decision)
    here = decision.margins(network(region.point))
    for group in range(2):
        free = torch.arange(2) == group
        lowest = decision.margins(network(extremes(region.freed(free), 100))).amin(dim=0)
        assert bool((here - joint[group] <= lowest + 1e-9).all())


@settings(max_examples=15)
@given(seed=SEEDS)
def test_a_linear_network_has_no_interaction_and_groups_move_as_the_sum_of_members(make_region, seed):
    network, single, decision = make_region(seed=seed, hidden=())
    region = Region(single.point, single.box, torch.tensor([0, 1, 1, 1]))
    explainer = SymbolInfluence(network)
    _, extra = interactions(explainer, region, decision)
    torch.testing.assert_close(extra, torch.zeros_like(extra), atol=1e-12, rtol=0)
    merged = together(explainer, region, decision)
    each = explainer.influence(single.point, decision, single.box)
    torch.testing.assert_close(merged.symbols[0].T, region.per_feature(each.signed()[0]).T, atol=1e-12, rtol=1e-9)


def test_an_interaction_is_found_where_inputs_work_only_together():
    """relu(x0 + x1 - 1.5) moves for neither input alone, and does for both."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.ReLU(), torch.nn.Linear(1, 2)).double()
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[0].bias.fill_(-1.5)
        network[2].weight.copy_(torch.tensor([[0.0], [1.0]]))
        network[2].bias.copy_(torch.tensor([1.0, 0.0]))
    point = torch.zeros(1, 2, dtype=torch.float64)
    region = Region.ball(point, 1.0, 0.0, 1.0, torch.tensor([0, 0]))
    outputs = network(point)
    from zonoplug.explain.decision import Decision

    joint, extra = interactions(
        SymbolInfluence(network), region, Decision.between_classes(torch.tensor([0]), 2, outputs)
    )
    assert float(joint[0, 0]) >= 0.5
    torch.testing.assert_close(extra, joint)


@given(seed=SEEDS)
@settings(max_examples=40)
def test_a_shared_symbol_and_the_lost_mass_enclose_both(seed):
    """a e1 + b e2 lies in (a + s b) t +/- loss for t from the two noise values, as merge_tree says."""
    random = torch.Generator().manual_seed(seed)
    effects = torch.randn(2, 3, generator=random, dtype=torch.float64)
    (merge,) = merge_tree(effects)
    a, b = effects
    alpha, beta = a.abs().sum(), b.abs().sum()
    candidates = []
    for sign in (1.0, -1.0):
        box = 2 * alpha * beta / (alpha + beta) * (a / alpha - sign * b / beta).abs()
        candidates.append(float(box.mean()))
        for e1, e2 in 2 * torch.rand(50, 2, generator=random, dtype=torch.float64) - 1:
            shared = (alpha * e1 + sign * beta * e2) / (alpha + beta)
            assert bool(((a * e1 + b * e2 - (a + sign * b) * shared).abs() <= box + 1e-12).all())
    assert merge.loss == pytest.approx(min(candidates), rel=1e-6, abs=1e-7)


def test_proportional_groups_merge_first_and_heights_grow():
    effects = torch.tensor([[1.0, 2.0], [-3.0, -6.0], [2.0, -1.0], [0.5, 1.0]])
    merges = merge_tree(effects)
    assert set(merges[1].members) == {0, 1, 3}
    assert merges[1].height < 1e-6 < merges[2].height
    heights = [merge.height for merge in merges]
    assert heights == sorted(heights)
    assert cut(merges, 2).tolist() == [1, 1, 0, 1]
    assert cut(merges, 1).max() == 0
    assert cut(merges, 9).tolist() == [0, 1, 2, 3]


def test_only_neighbours_merge_as_long_as_there_are_any():
    labels = torch.tensor([[0, 1, 2, 3]])
    touching = neighbours(labels)
    assert touching.sum() == 6
    merges = merge_tree(torch.tensor([[1.0], [2.0], [1.0], [3.0]]), touching)
    for merge in merges:
        members = sorted(merge.members)
        assert members == list(range(members[0], members[-1] + 1))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 5), (75,), (75, 1), (1, 9, 9)])
def test_images_go_to_the_network_and_back(shape, transposed):
    layout = ImageLayout.guess(shape, transposed) or ImageLayout(shape, 3, 5, 5, transposed)
    values = torch.rand(shape)
    assert torch.equal(layout.from_image(layout.to_image(values)), values)
    features = layout.pixels()
    assert features.shape == shape
    assert torch.equal(
        layout.to_image(features)[0], torch.arange(layout.height * layout.width).reshape(layout.height, -1)
    )


def test_tables_are_no_images():
    assert ImageLayout.guess((5,)) is None
    assert ImageLayout.guess((1, 20, 20)) == ImageLayout((1, 20, 20), 1, 20, 20)
    assert ImageLayout.guess((784, 1)) == ImageLayout((784, 1), 1, 28, 28)
    assert ImageLayout.guess((3072,)).channels == 3
    with pytest.raises(SettingError, match="does not fit"):
        ImageLayout((10,), 1, 3, 3)
