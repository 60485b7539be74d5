"""Noise-symbol reduction: how to enclose a zonotope in one with fewer symbols, and when."""

from zonoplug.reduction.age import Newest, Oldest
from zonoplug.reduction.althoff import AlthoffA, AlthoffB, AlthoffC
from zonoplug.reduction.at_random import Random
from zonoplug.reduction.base import REDUCTIONS, BoxReduction, Reduction
from zonoplug.reduction.box import Box
from zonoplug.reduction.budget import ErrorBudget
from zonoplug.reduction.cluster import Cluster
from zonoplug.reduction.collinear import Collinear
from zonoplug.reduction.combastel import Combastel
from zonoplug.reduction.context import Influence, LiveValue, ReductionContext
from zonoplug.reduction.exact import Exact
from zonoplug.reduction.gap import Gap
from zonoplug.reduction.girard import Girard
from zonoplug.reduction.l1 import L1
from zonoplug.reduction.lazy import Lazy
from zonoplug.reduction.lowrank import LowRank
from zonoplug.reduction.margin import Margin
from zonoplug.reduction.merging import MergeReduction
from zonoplug.reduction.pairwise import Pairwise
from zonoplug.reduction.pca import PCA
from zonoplug.reduction.promote import Promote
from zonoplug.reduction.report import ReductionReport, reduce_with_report
from zonoplug.reduction.schedule import (
    AboveBytes,
    AboveSymbols,
    Backoff,
    EveryLayer,
    Never,
    PerLayer,
    Proportional,
    Schedule,
)
from zonoplug.reduction.scott import Scott
from zonoplug.reduction.sensitivity import Sensitivity
from zonoplug.reduction.spatial import Spatial
from zonoplug.reduction.valero import Valero

__all__ = [
    "L1",
    "PCA",
    "REDUCTIONS",
    "AboveBytes",
    "AboveSymbols",
    "AlthoffA",
    "AlthoffB",
    "AlthoffC",
    "Backoff",
    "Box",
    "BoxReduction",
    "Cluster",
    "Collinear",
    "Combastel",
    "ErrorBudget",
    "EveryLayer",
    "Exact",
    "Gap",
    "Girard",
    "Influence",
    "Lazy",
    "LiveValue",
    "LowRank",
    "Margin",
    "MergeReduction",
    "Never",
    "Newest",
    "Oldest",
    "Pairwise",
    "PerLayer",
    "Promote",
    "Proportional",
    "Random",
    "Reduction",
    "ReductionContext",
    "ReductionReport",
    "Schedule",
    "Scott",
    "Sensitivity",
    "Spatial",
    "Valero",
    "reduce_with_report",
]
