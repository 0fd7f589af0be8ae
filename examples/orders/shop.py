"""The shop: one workflow that takes an order from stock to receipt.

Run it with `durable worker examples.orders.shop:app`.
"""

from __future__ import annotations

import json
import os
import random
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

import psycopg
from durable_client import Context, Durable, Retry, current_step

app = Durable()


@dataclass(frozen=True)
class Order:
    order_id: str
    customer: str
    sku: str
    quantity: int
    cents: int


@dataclass(frozen=True)
class Receipt:
    order_id: str
    charge_id: str
    tracking_number: str


def reserve(conn: psycopg.Connection[Any], sku: str, quantity: int) -> None:
    conn.execute("update demo_shop.stock set available = available - %s where sku = %s", [quantity, sku])


@app.step(retry=Retry(max_attempts=10, initial="100ms", max_delay="5s"), timeout="30s")
def charge(order_id: str, cents: int) -> str:
    """Charge the card. The same idempotency key goes out however often a crash makes this step run."""
    request = urllib.request.Request(
        os.environ["PAYMENTS_URL"],
        data=json.dumps({"reference": order_id, "cents": cents}).encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": current_step().idempotency_key},
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        charge_id: str = json.load(response)["charge_id"]
        return charge_id


@app.step()
def ship(order_id: str) -> str:
    """Book the parcel."""
    time.sleep(random.uniform(0.002, 0.01))
    return f"TN-{order_id}"


def write_receipt(conn: psycopg.Connection[Any], receipt: Receipt) -> None:
    conn.execute(
        "insert into demo_shop.receipts (order_id, charge_id, tracking_number) values (%s, %s, %s)",
        [receipt.order_id, receipt.charge_id, receipt.tracking_number],
    )


@app.workflow(queue="orders")
def fulfil(ctx: Context, order: Order) -> Receipt:
    ctx.transaction(reserve, order.sku, order.quantity)
    charge_id = ctx.step(charge, order.order_id, order.cents)
    tracking_number = ctx.step(ship, order.order_id)
    receipt = Receipt(order.order_id, charge_id, tracking_number)
    ctx.transaction(write_receipt, receipt)
    return receipt
