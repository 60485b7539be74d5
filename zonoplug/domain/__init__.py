"""Zonotopes: center, generator blocks, box, and the identity of their noise symbols."""
