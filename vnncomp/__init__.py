"""The competition's contract."""
