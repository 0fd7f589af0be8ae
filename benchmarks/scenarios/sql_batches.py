from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.scenarios import _batches
from benchmarks.systems import System
from benchmarks.workload import QUEUE

BATCH = 100
WARM_UP = 5
REPEATS = 3

# The rows that a one-step workflow writes, in the same tables and indexes without their checks, by statements that know
# what they touch: the least that Postgres would have to do.
FLOOR_TABLES = """
create schema floor;
create table floor.live (like durable.live_workflows including all excluding constraints)
  with (fillfactor = 80, toast_tuple_target = 256);
create table floor.finished (like durable.finished_workflows_shape including all excluding constraints);
create table floor.checkpoints (like durable.checkpoints_shape including all excluding constraints);
create sequence floor.ready_seq;
"""
FLOOR = (
    """
    insert into floor.live (workflow_id, ready_seq, created_at, status, name, queue, input)
    select i.id, nextval('floor.ready_seq'), now(), 'pending', 'one_step', %(queue)s, i.input
    from unnest(%(ids)s::uuid[], %(inputs)s::jsonb[]) as i(id, input)""",
    """
    update floor.live set status = 'running', lease = ready_seq, ready_seq = null, worker_id = 1, started_at = now()
    where workflow_id = any(%(ids)s::uuid[])
    returning workflow_id::text, lease, input""",
    """
    insert into floor.checkpoints (workflow_id, started_at, completed_at, attempt, status, step_name, output)
    select i.id, now(), now(), 1, 'completed', i.name, i.output
    from unnest(%(ids)s::uuid[], %(names)s::text[], %(outputs)s::jsonb[]) as i(id, name, output)""",
    """
    with gone as (
      delete from floor.live l using unnest(%(ids)s::uuid[], %(outputs)s::jsonb[]) as i(id, output)
      where l.workflow_id = i.id returning l.*, i.output)
    insert into floor.finished (workflow_id, lease, created_at, started_at, completed_at, worker_id, attempt, failures,
      crashes, max_attempts, priority, status, name, queue, tags, input, output)
    select workflow_id, lease, created_at, started_at, now(), worker_id, attempt, failures, crashes, max_attempts,
      priority, 'completed', name, queue, tags, input, output
    from gone""",
)


def run(bench: Bench) -> Iterator[Measurement]:
    """What a client in any language can reach, and what the same rows cost without an engine."""
    for system in bench.chosen("durable"):
        batches = 100 if bench.quick else 400
        rates: list[float] = []
        floors: list[float] = []
        # In turn, so that both meet the same weather.
        for _ in range(1 if bench.quick else REPEATS):
            rates.append(_engine(bench, system, batches))
            floors.append(_floor(bench, system, batches))
        settings = {"batch": BATCH, "batches": batches}
        yield Measurement.of(
            "sql-batches", "durable", "workflows", "1/s", "higher", rates, settings=settings, target=Target(10_000)
        )
        yield Measurement.of(
            "sql-batches", "durable", "bare floor: the same rows by hand-written SQL", "1/s", "higher", floors,
            settings=settings,
        )  # fmt: skip
        yield Measurement.of(
            "sql-batches", "durable", "share of the bare floor", "%", "higher",
            [100 * rate / floor for rate, floor in zip(rates, floors, strict=True)],
            settings=settings, target=Target(60),
        )  # fmt: skip


def _engine(bench: Bench, system: System, batches: int) -> float:
    with psycopg.connect(bench.prepare(system), autocommit=True) as conn:
        for _ in range(WARM_UP):
            _batches.one_step_batch(conn, BATCH)
        started = time.perf_counter()
        for _ in range(batches):
            _batches.one_step_batch(conn, BATCH)
        rate = batches * BATCH / (time.perf_counter() - started)
        assert _batches.completed(conn) == (batches + WARM_UP) * BATCH
        return rate


def _floor(bench: Bench, system: System, batches: int) -> float:
    with psycopg.connect(bench.prepare(system), autocommit=True) as conn:
        conn.execute(FLOOR_TABLES)
        # The tables have no statistics yet.
        conn.execute("set enable_seqscan = off")
        ids = [[_uuid7() for _ in range(BATCH)] for _ in range(WARM_UP + batches)]
        started = 0.0
        for n, batch in enumerate(ids):
            if n == WARM_UP:
                started = time.perf_counter()
            values = {
                "ids": _batches.array(batch),
                "queue": QUEUE,
                "names": _batches.texts("charge", BATCH),
                "inputs": _batches.texts(_batches.INPUT, BATCH),
                "outputs": _batches.texts(_batches.OUTPUT, BATCH),
            }
            for sql in FLOOR:
                conn.execute(sql, values, prepare=True)
        return batches * BATCH / (time.perf_counter() - started)


def _uuid7() -> str:
    """In the order of time, as the ids of workflows are: random ones would touch more pages of the indexes."""
    return str(uuid.UUID(int=time.time_ns() // 1_000_000 << 80 | uuid.uuid4().int & ((1 << 80) - 1)))


SCENARIO = Scenario(
    "sql-batches", "SQL alone, one connection, batches of 100: enqueue, claim, checkpoint, complete", run
)
