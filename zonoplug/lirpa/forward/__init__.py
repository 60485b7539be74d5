"""Forward propagation of zonotopes through the host's graph."""
