"""Thousands of orders, workers that are killed again and again, and an audit: python -m examples.orders"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import click
import psycopg

from ..database import database
from .display import Display
from .intake import taking_orders
from .orders_csv import ARTICLES, write_orders
from .processes import Workers, payment_service

HERE = Path(__file__).parent
# When no order ended for so many seconds, something is wrong.
PATIENCE = 60.0

Connection = psycopg.Connection[tuple[Any, ...]]


@click.command()
@click.option("--orders", default=5000, show_default=True, type=click.IntRange(1), help="How many orders.")
@click.option("--workers", default=3, show_default=True, type=click.IntRange(1), help="Worker processes.")
@click.option("--kill-every", default=1.0, show_default=True, type=click.FloatRange(0.1), help="Seconds, on average.")
@click.option("--seed", default=7, show_default=True, help="For the orders, and for who is killed when.")
def main(orders: int, workers: int, kill_every: float, seed: int) -> None:
    """Process orders with workers that are killed with SIGKILL all the while, then check that nothing happened twice.

    Works on the database of DURABLE_DSN, in the schemas demo_shop and demo_payments, which it makes anew; without
    DURABLE_DSN, on an embedded Postgres that is thrown away afterwards.
    """
    with contextlib.ExitStack() as stack:
        dsn, directory = stack.enter_context(database("orders"))
        conn = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        prepare(conn, orders)
        orders_csv = directory / "orders.csv"
        with orders_csv.open("w", newline="") as file:
            write_orders(file, orders, seed)

        os.environ["PAYMENTS_URL"] = stack.enter_context(payment_service())
        pool = stack.enter_context(contextlib.closing(Workers(workers, seed, directory / "workers.log")))
        intake = stack.enter_context(taking_orders(dsn, orders_csv))
        started = time.monotonic()
        problem = watch(conn, orders, pool, intake, kill_every)
        seconds = time.monotonic() - started
        pool.drain()
        print(f"\n{pool.kills} workers were killed in {seconds:.1f} seconds. The audit (examples/orders/audit.sql):")
        if not audit(conn, orders) or problem:
            print(f"The last lines of the workers:\n{pool.last_words()}", file=sys.stderr)
            sys.exit(problem or "The audit found something wrong.")


def prepare(conn: Connection, orders: int) -> None:
    conn.execute((HERE / "schema.sql").read_bytes())
    with conn.cursor() as cursor:
        # As if every customer wanted the same article, so that none is sold out.
        cursor.executemany(
            "insert into demo_shop.stock (sku, delivered, available) values (%s, %s, %s)",
            [(sku, 5 * orders, 5 * orders) for sku in ARTICLES],
        )


def watch(conn: Connection, orders: int, workers: Workers, intake: list[Future[None]], kill_every: float) -> str | None:
    """Kills a worker now and then until every order has ended. Returns what went wrong, if something did."""
    done = 0
    last_progress = time.monotonic()
    next_kill = None  # the first one falls when the first order is done
    with contextlib.closing(Display(orders)) as display:
        while done < orders:
            time.sleep(0.2)
            now = time.monotonic()
            before, (done, in_flight) = done, count(conn)
            display.show(done, in_flight, workers.kills)
            if done > before:
                last_progress = now
                next_kill = next_kill or now + workers.pause(kill_every)
            if next_kill is not None and now >= next_kill:
                workers.kill_one()
                next_kill = now + workers.pause(kill_every)
            for error in (part.exception() for part in intake if part.done()):
                if error is not None:
                    return f"The orders cannot be taken in: {error}"
            if (status := workers.find_ended()) is not None:
                return f"A worker ended by itself, with exit status {status}."
            if now > last_progress + PATIENCE:
                return f"No order ended in the last {PATIENCE:.0f} seconds."
    return None


def count(conn: Connection) -> tuple[int, int]:
    """How many orders have ended, and how many are with a worker."""
    row = conn.execute(
        "select count(*) filter (where w.completed_at is not null), count(*) filter (where w.status = 'running')"
        " from durable.workflows w where w.workflow_id in (select o.workflow_id from demo_shop.orders o)"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def audit(conn: Connection, orders: int) -> bool:
    """Prints what audit.sql finds; True when all of it is as promised."""
    findings = conn.execute((HERE / "audit.sql").read_bytes()).fetchall()
    (_, placed, _) = findings[0]
    width = max(len(finding) for finding, _, _ in findings)
    for finding, found, expected in findings:
        verdict = "" if expected is None else "  ok" if found == expected else f"  WRONG, expected {expected:,}"
        print(f"  {finding:<{width}}  {found:>7,}{verdict}")
    return placed == orders and all(expected is None or found == expected for _, found, expected in findings)


if __name__ == "__main__":
    main()
