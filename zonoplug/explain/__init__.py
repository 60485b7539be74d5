"""What the noise symbols say about a network: influence, groups, sufficient sets, and comparison with other methods."""
