"""The shop's front door: orders come in from a CSV file."""

from __future__ import annotations

import contextlib
import csv
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psycopg

from .shop import Order, app, fulfil

# As many as a small web shop has request handlers.
HANDLERS = 4


@contextlib.contextmanager
def taking_orders(dsn: str, orders_csv: Path) -> Iterator[list[Future[None]]]:
    """Takes the orders in, in threads; the futures tell how that ended."""
    with orders_csv.open(newline="") as file:
        orders = [
            Order(row["order_id"], row["customer"], row["sku"], int(row["quantity"]), int(row["cents"]))
            for row in csv.DictReader(file)
        ]
    stopping = threading.Event()
    with ThreadPoolExecutor(HANDLERS) as pool:
        try:
            yield [pool.submit(_take_all, dsn, orders[number::HANDLERS], stopping) for number in range(HANDLERS)]
        finally:
            stopping.set()


def _take_all(dsn: str, orders: list[Order], stopping: threading.Event) -> None:
    with psycopg.connect(dsn) as conn:
        for order in orders:
            if stopping.is_set():
                return
            take(order, conn)


def take(order: Order, conn: psycopg.Connection[tuple[object, ...]]) -> None:
    """Insert and enqueue in one transaction: there is never one without the other."""
    with conn.transaction():
        handle = app.enqueue(fulfil, order, conn=conn)
        conn.execute(
            "insert into demo_shop.orders (order_id, customer, sku, quantity, cents, workflow_id)"
            " values (%s, %s, %s, %s, %s, %s)",
            [order.order_id, order.customer, order.sku, order.quantity, order.cents, handle.workflow_id],
        )
