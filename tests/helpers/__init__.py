"""What tests share; pytest puts the folder `tests` on the path (pyproject.toml)."""
