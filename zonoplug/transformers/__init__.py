"""Zonotope in, zonotope out: one transformer for each shape of operator."""
