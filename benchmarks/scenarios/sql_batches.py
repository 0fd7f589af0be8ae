from __future__ import annotations

import json
import time
from collections.abc import Iterator

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.workload import ORDER, QUEUE, charge

BATCH = 100
REPEATS = 3


def run(bench: Bench) -> Iterator[Measurement]:
    """What a client in any language can reach: four prepared statements a batch, each its own commit."""
    for system in bench.chosen("durable"):
        batches = 100 if bench.quick else 400
        rates = []
        for _ in range(1 if bench.quick else REPEATS):
            dsn = bench.prepare(system)
            with psycopg.connect(dsn, autocommit=True) as conn:
                _work(conn, 5)
                started = time.perf_counter()
                _work(conn, batches)
                rates.append(batches * BATCH / (time.perf_counter() - started))
                done = conn.execute("select count(*) from durable.finished_workflows").fetchall()[0][0]
                assert done == (batches + 5) * BATCH
        yield Measurement.of(
            "sql-batches", "durable", "workflows", "1/s", "higher", rates,
            settings={"batch": BATCH, "batches": batches}, target=Target(10_000),
        )  # fmt: skip


def _work(conn: psycopg.Connection[tuple[str, int]], batches: int) -> None:
    inputs = [json.dumps(ORDER)] * BATCH
    outputs = [json.dumps(charge(ORDER))] * BATCH
    names = ["charge"] * BATCH
    for _ in range(batches):
        conn.execute("select durable.enqueue_many('one_step', %s::jsonb[], queue => %s)", [inputs, QUEUE], prepare=True)
        claimed = conn.execute(
            "select workflow_id::text, lease from durable.claim('worker', array[%s], %s)", [QUEUE, BATCH], prepare=True
        ).fetchall()
        ids, leases = [row[0] for row in claimed], [row[1] for row in claimed]
        conn.execute(
            "select * from durable.checkpoint_many(%s::uuid[], %s::bigint[], %s::text[], %s::jsonb[])",
            [ids, leases, names, outputs],
            prepare=True,
        )
        conn.execute(
            "select * from durable.complete_many(%s::uuid[], %s::bigint[], %s::jsonb[])",
            [ids, leases, outputs],
            prepare=True,
        )


SCENARIO = Scenario(
    "sql-batches", "SQL alone, one connection, batches of 100: enqueue, claim, checkpoint, complete", run
)
