from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.cluster import Cluster
from benchmarks.measurement import Measurement, Target
from benchmarks.pooler import find_pgbouncer, pooled
from benchmarks.workload import ONE_STEP, ORDER, QUEUE, charge

REGISTERED = 1000
FEW, MANY = 4, 200
BATCH = 10
WARM_UP = 2  # workflows of each connection
REPEATS = 3

CLAIM = "select workflow_id::text, lease from durable.claim(%s, array[%s], %s)"
COMPLETE = "select * from durable.complete_many(%s::uuid[], %s::bigint[], %s::jsonb[])"
TICK = "select extract(epoch from clock_timestamp()), durable.tick(worker => %s), extract(epoch from clock_timestamp())"


@dataclass(frozen=True, slots=True)
class Drained:
    rate: float  # workflows per second
    cpu: float  # µs of the server per workflow


def run(bench: Bench) -> Iterator[Measurement]:
    """Statements of workers, as a client in any language sends them, while a thousand workers are registered."""
    for system in bench.chosen("durable"):
        count = 20_000 if bench.quick else 40_000
        settings = {"registered": REGISTERED, "batch": BATCH, "backlog": count}
        ways = ["direct", "PgBouncer"] if find_pgbouncer() is not None else ["direct"]
        if len(ways) == 1:
            bench.log("in part left out: there is no PgBouncer here")
        drains: dict[tuple[str, int], list[Drained]] = {(way, n): [] for way in ways for n in (FEW, MANY)}
        for _ in range(1 if bench.quick else REPEATS):
            for (way, connections), done in drains.items():
                dsn = _prepare(bench, count)
                with pooled(dsn) if way == "PgBouncer" else nullcontext(dsn) as through:
                    done.append(asyncio.run(_drain(bench.cluster, through, connections, count, way == "direct")))
        for (way, connections), done in drains.items():
            metric = f"{way}, {connections} connections"
            yield Measurement.of(
                "many-workers", system.name, metric, "1/s", "higher", [each.rate for each in done], settings=settings
            )
            yield Measurement.of(
                "many-workers", system.name, f"{metric}: server CPU per workflow", "µs", "lower",
                [each.cpu for each in done], settings=settings,
            )  # fmt: skip
        for way in ways:
            pairs = zip(drains[way, MANY], drains[way, FEW], strict=True)
            yield Measurement.of(
                "many-workers", system.name, f"{way}, {MANY} over {FEW} connections", "", "higher",
                [many.rate / few.rate for many, few in pairs], settings=settings, target=Target(0.8),
            )  # fmt: skip
        yield Measurement.of(
            "many-workers", system.name, "a tick", "ms", "lower", _ticks(_prepare(bench, 0)), settings=settings,
            target=Target(5),
        )  # fmt: skip


def _prepare(bench: Bench, count: int) -> str:
    """A database with a backlog, and with workers that need not be heard of."""
    (system,) = bench.chosen("durable")
    dsn = bench.prepare(system)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("select durable.configure('lease', '1 hour')")
        conn.execute("select durable.idle('w' || n, array[%s]) from generate_series(1, %s) n", [QUEUE, REGISTERED])
    if count > 0:
        system.enqueue_backlog(dsn, ONE_STEP, count)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("analyze")
    return dsn


async def _drain(cluster: Cluster, dsn: str, connections: int, count: int, prepare: bool) -> Drained:
    """So many connections claim and complete what there is, each statement its own commit."""
    output = json.dumps(charge(ORDER))
    opened = [
        await psycopg.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=0 if prepare else None)
        for _ in range(connections)
    ]

    async def work(n: int, batch: int) -> int:
        conn = opened[n]
        claimed = await (await conn.execute(CLAIM, [f"w{n + 1}", QUEUE, batch])).fetchall()
        ids, leases = [row[0] for row in claimed], [row[1] for row in claimed]
        await conn.execute(COMPLETE, [ids, leases, [output] * len(ids)])
        return len(ids)

    async def work_off(n: int) -> int:
        done = 0
        while batch := await work(n, BATCH):
            done += batch
        return done

    try:
        # What each backend plans once is not what is measured.
        for _ in range(WARM_UP):
            await asyncio.gather(*(work(n, 1) for n in range(connections)))
        started, cpu_before = time.perf_counter(), cluster.cpu_seconds()
        done = sum(await asyncio.gather(*(work_off(n) for n in range(connections))))
        seconds, cpu = time.perf_counter() - started, cluster.cpu_seconds() - cpu_before
    finally:
        for conn in opened:
            await conn.close()
    if done != count - WARM_UP * connections:
        raise SystemExit(f"many-workers: {connections} connections completed {done} workflows of {count}.")
    return Drained(done / seconds, cpu / done * 1e6)


def _ticks(dsn: str) -> list[float]:
    """Milliseconds in the server, while every worker is alive and holds its session lock."""
    with psycopg.connect(dsn, autocommit=True) as sessions, psycopg.connect(dsn, autocommit=True) as conn:
        # All in one session: a tick asks for the locks, not for who has them.
        sessions.execute("select durable.attach(w.name, w.queues) from durable.workers w")
        ticks = [conn.execute(TICK, [f"w{n}"]).fetchall()[0] for n in range(1, 61)]
    return [float(ended - began) * 1000 for began, _, ended in ticks[10:]]


SCENARIO = Scenario(
    "many-workers", "1,000 registered workers; claims and completions in batches of 10 on 4 and on 200 connections", run
)
