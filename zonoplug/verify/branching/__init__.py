"""Which input, ReLU or point of an activation to split."""
