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


@contextlib.contextmanager
def taking_orders(dsn: str, orders_csv: Path) -> Iterator[Future[None]]:
    """Takes the orders in, in a thread; the future tells how that ended."""
    stopping = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(_take_all, dsn, orders_csv, stopping)
        finally:
            stopping.set()


def _take_all(dsn: str, orders_csv: Path, stopping: threading.Event) -> None:
    with psycopg.connect(dsn) as conn, orders_csv.open(newline="") as file:
        for row in csv.DictReader(file):
            if stopping.is_set():
                return
            take(Order(row["order_id"], row["customer"], row["sku"], int(row["quantity"]), int(row["cents"])), conn)


def take(order: Order, conn: psycopg.Connection[tuple[object, ...]]) -> None:
    """Insert and enqueue in one transaction: there is never one without the other."""
    with conn.transaction():
        handle = app.enqueue(fulfil, order, conn=conn)
        conn.execute(
            "insert into demo_shop.orders (order_id, customer, sku, quantity, cents, workflow_id)"
            " values (%s, %s, %s, %s, %s, %s)",
            [order.order_id, order.customer, order.sku, order.quantity, order.cents, handle.workflow_id],
        )
