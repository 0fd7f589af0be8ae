"""What the generators of the reference share: writing a page, or checking that it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent / "reference"


def publish(name: str, text: str) -> None:
    """Writes the page; with --check, exits with 1 when the one that is there differs."""
    page = DIRECTORY / name
    if "--check" not in sys.argv:
        page.write_text(text)
    elif not page.exists() or page.read_text() != text:
        sys.exit(f"docs/reference/{name} is out of date: run {Path(sys.argv[0]).name}, see CONTRIBUTING.md")


def cell(text: str | None) -> str:
    """Text for a cell of a table."""
    return (text or "").replace("|", "\\|").replace("\n", " ")
