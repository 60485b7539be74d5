"""Several nodes of the host's graph, recognised and bounded as the one function that they are."""
