"""The operator table: how a zonotope passes each operator of the host's graph."""
