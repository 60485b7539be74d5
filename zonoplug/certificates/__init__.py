"""Proofs of `unsat` as files, and a checker of them that shares no bounding code with the search."""
