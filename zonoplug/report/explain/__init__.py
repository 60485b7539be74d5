"""`zonoplug explain`: its options, page and pictures."""
