"""Work in batches by SQL alone, on one connection: four prepared statements a batch, each its own commit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from psycopg import Connection

from benchmarks.workload import ONE_STEP, ORDER, QUEUE, charge

INPUT, OUTPUT = json.dumps(ORDER), json.dumps(charge(ORDER))
CLAIM_OF = "select workflow_id::text, lease from durable.claim(%s, array[%s], %s, workflows => %s::text[])"
COMPLETE = "select * from durable.complete_many(%s::uuid[], %s::bigint[], %s::jsonb[])"
Claimed = tuple[list[str], list[int]]  # ids and leases


def array(items: Iterable[object]) -> str:
    """An array of ids or numbers as Postgres reads it: the SQL is measured, and not how a driver adapts lists."""
    return f"{{{','.join(map(str, items))}}}"


@lru_cache
def texts(text: str, size: int) -> str:
    """An array of so many times the same text."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return array([f'"{quoted}"'] * size)


def enqueue(conn: Connection[Any], size: int, *, workflow: str = ONE_STEP, priority: int = 0) -> None:
    conn.execute(
        "select durable.enqueue_many(%s, %s::jsonb[], queue => %s, priority => %s)",
        [workflow, texts(INPUT, size), QUEUE, priority],
        prepare=True,
    )


def claim(conn: Connection[Any], size: int, *, names: Iterable[str] | None = None) -> Claimed:
    """Of all workflows, or, as a client does, of those that there is code for."""
    if names is None:
        query, values = "select workflow_id::text, lease from durable.claim('worker', array[%s], %s)", [QUEUE, size]
    else:
        query, values = CLAIM_OF, ["worker", QUEUE, size, array(names)]
    rows = conn.execute(query, values, prepare=True).fetchall()
    if len(rows) != size:
        raise SystemExit(f"A claim of {size} got {len(rows)}.")
    return [row[0] for row in rows], [row[1] for row in rows]


def checkpoint(conn: Connection[Any], claimed: Claimed) -> None:
    ids, leases = claimed
    conn.execute(
        "select * from durable.checkpoint_many(%s::uuid[], %s::bigint[], %s::text[], %s::jsonb[])",
        [array(ids), array(leases), texts("charge", len(ids)), texts(OUTPUT, len(ids))],
        prepare=True,
    )


def complete(conn: Connection[Any], claimed: Claimed) -> None:
    ids, leases = claimed
    conn.execute(COMPLETE, [array(ids), array(leases), texts(OUTPUT, len(ids))], prepare=True)


def one_step_batch(conn: Connection[Any], size: int) -> None:
    enqueue(conn, size)
    claimed = claim(conn, size)
    checkpoint(conn, claimed)
    complete(conn, claimed)


def completed(conn: Connection[Any]) -> int:
    sql = "select count(*) from durable.finished_workflows where status = 'completed'"
    return int(conn.execute(sql).fetchall()[0][0])
