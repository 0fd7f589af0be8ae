"""Makes the CSV of orders: the same seed, the same orders.

python -m examples.orders.orders_csv 5000 > orders.csv
"""

from __future__ import annotations

import csv
import random
import sys
from typing import TextIO

ARTICLES = [f"SKU-{number:03}" for number in range(1, 101)]
CUSTOMERS = ["Ada", "Alan", "Barbara", "Edsger", "Frances", "Grace", "Jim", "Leslie", "Margaret", "Michael"]


def write_orders(file: TextIO, count: int, seed: int) -> None:
    chance = random.Random(seed)
    writer = csv.writer(file)
    writer.writerow(["order_id", "customer", "sku", "quantity", "cents"])
    for number in range(1, count + 1):
        quantity = chance.randint(1, 5)
        cents = quantity * chance.randint(99, 9_999)
        writer.writerow([f"A-{number:05}", chance.choice(CUSTOMERS), chance.choice(ARTICLES), quantity, cents])


if __name__ == "__main__":
    write_orders(sys.stdout, int(sys.argv[1]), seed=7)
