"""Linear bounds, propagated backward through the host's graph."""
