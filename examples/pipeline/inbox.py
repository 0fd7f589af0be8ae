"""Makes the files: what the tills of some shops have sold. The same seed, the same files. One of them is damaged."""

from __future__ import annotations

import csv
import random
from pathlib import Path

ARTICLES = ["apples", "bread", "cheese", "dates", "eggs", "flour", "grapes", "honey"]


def write_files(directory: Path, files: int, lines: int, seed: int) -> Path:
    """Writes the files and returns the damaged one."""
    chance = random.Random(seed)
    damaged = chance.randrange(files)
    for number in range(files):
        with (directory / f"shop-{number:02}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["article", "quantity", "cents"])
            for line in range(lines):
                quantity = chance.randint(1, 9)
                cents = "n/a" if (number, line) == (damaged, lines // 2) else quantity * chance.randint(50, 999)
                writer.writerow([chance.choice(ARTICLES), quantity, cents])
    return directory / f"shop-{damaged:02}.csv"
