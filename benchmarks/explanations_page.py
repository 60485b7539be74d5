"""The page of explanations.py."""

from pathlib import Path


def write_page(folder: Path) -> None:
    return None
