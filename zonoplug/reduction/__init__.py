"""Noise-symbol reduction: how to enclose a zonotope in one with fewer symbols, and when."""

from zonoplug.reduction.base import REDUCTIONS, BoxReduction, Reduction
from zonoplug.reduction.box import Box
from zonoplug.reduction.combastel import Combastel
from zonoplug.reduction.girard import Girard
from zonoplug.reduction.l1 import L1
from zonoplug.reduction.schedule import AboveSymbols, Never, Schedule

__all__ = [
    "L1",
    "REDUCTIONS",
    "AboveSymbols",
    "Box",
    "BoxReduction",
    "Combastel",
    "Girard",
    "Never",
    "Reduction",
    "Schedule",
]
