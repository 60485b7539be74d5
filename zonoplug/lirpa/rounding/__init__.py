"""What rounding may add to each operator's exact value."""
