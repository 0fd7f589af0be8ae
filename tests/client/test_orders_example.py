"""The example of examples/orders, with fewer orders: workers are killed, and nothing happens twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from clusters import ROOT, Database
from engine import rows, value

ORDERS = 400


def run_example(dsn: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.orders", *options],
        cwd=ROOT,
        env=os.environ | {"DURABLE_DSN": dsn},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.pg(15, 18)
def test_orders_are_charged_exactly_once_while_workers_are_killed(db: Database) -> None:
    done = run_example(db.dsn, f"--orders={ORDERS}", "--kill-every=0.7")
    assert done.returncode == 0, done.stdout + done.stderr
    kills = re.search(r"(\d+) workers were killed", done.stdout)
    assert kills is not None
    assert int(kills[1]) >= 1

    conn = db.connect()
    assert value(conn, "select count(*) from demo_shop.orders") == ORDERS
    assert (
        value(conn, "select count(*) from durable.workflows where name = 'fulfil' and status = 'completed'") == ORDERS
    )
    for table, column in (("demo_payments.charges", "reference"), ("demo_shop.receipts", "order_id")):
        per_order = rows(conn, f"select {column}, count(*) from {table} group by 1")
        assert len(per_order) == ORDERS
        assert {row.count for row in per_order} == {1}
    assert value(conn, "select sum(delivered - available) from demo_shop.stock") == value(
        conn, "select sum(quantity) from demo_shop.orders"
    )


@pytest.mark.pg(18)
def test_the_audit_of_the_example_notices_what_should_not_be(db: Database) -> None:
    assert run_example(db.dsn, "--orders=20", "--workers=1", "--kill-every=60").returncode == 0
    conn = db.connect()
    audit = (ROOT / "examples/orders/audit.sql").read_text()

    def complaints() -> set[str]:
        return {row.finding for row in rows(conn, audit) if row.expected not in (None, row.found)}

    assert complaints() == set()
    conn.execute(
        "insert into demo_payments.charges (idempotency_key, reference, cents)"
        " select 'another', reference, cents from demo_payments.charges limit 1"
    )
    assert complaints() == {"orders charged exactly once", "orders charged twice or more"}
    conn.execute("update demo_shop.stock set available = available + 1 where sku = 'SKU-001'")
    assert {"units taken from stock", "articles whose stock does not match the orders"} < complaints()
