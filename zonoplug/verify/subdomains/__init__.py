"""Parts of an input set: boxes, phases of ReLUs, and both."""
