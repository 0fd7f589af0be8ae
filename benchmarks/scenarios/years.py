from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target, percentile
from benchmarks.scenarios import _batches
from benchmarks.scenarios._history import fill_day
from benchmarks.systems import System
from benchmarks.workload import ONE_STEP, ORDER, QUEUE

DAYS = 400
WORKFLOWS_EACH = 100
BATCH = 100
ROUNDS = 80
KEYS = 40_000


def run(bench: Bench) -> Iterator[Measurement]:
    """The calls of a worker beside 400 days of history and in an empty database, in turns on one connection each."""
    rounds, batches, keys = (10, 10, 4_000) if bench.quick else (ROUNDS, 10, KEYS)
    for system in bench.chosen("durable"):
        old, empty = bench.prepare(system), _empty(bench, system)
        settings = {"days": DAYS, "workflows each": WORKFLOWS_EACH, "batch": BATCH, "batches": batches}
        with psycopg.connect(old, autocommit=True) as conn:
            for days_ago in range(1, DAYS + 1):
                fill_day(conn, days_ago, WORKFLOWS_EACH, 1, keyed=False)
            conn.execute("select durable.configure('retention', '100 years')")
            conn.execute("vacuum analyze")
            conn.execute("checkpoint")
        with psycopg.connect(old, autocommit=True) as beside, psycopg.connect(empty, autocommit=True) as alone:
            for conn in (beside, alone):
                _seconds(conn, batches)
            turns = []
            for n in range(rounds):
                # Each is the first of the two as often as the other.
                first, second = (beside, alone) if n % 2 else (alone, beside)
                seconds = {first: _seconds(first, batches), second: _seconds(second, batches)}
                turns.append((seconds[beside], seconds[alone]))
            for call in turns[0][0]:
                yield Measurement.of(
                    "years", "durable", f"{call}: rate, of that in an empty database", "", "higher",
                    [of_empty[call] / of_old[call] for of_old, of_empty in turns],
                    settings=settings, target=Target(0.95),
                )  # fmt: skip
            ticks = [_tick(conn, rounds) for conn in (beside, alone)]
            for where, samples in zip(("beside them", "in an empty database"), ticks, strict=True):
                yield Measurement.of(
                    "years", "durable", f"a tick {where}, median", "ms", "lower", samples,
                    value=percentile(samples, 0.5), settings=settings,
                )  # fmt: skip
            locks = _locks(beside)
            yield Measurement.of(
                "years", "durable", "relation locks of an open transactional step", "", "lower",
                [locks], settings=settings,
            )  # fmt: skip
            new, again = _keys(beside, keys)
            yield Measurement.of(
                "years", "durable", f"enqueue_many of {keys} keys that exist: time, of that of the first time",
                "", "lower", [again / new], settings=settings, target=Target(1.0),
            )  # fmt: skip


def _empty(bench: Bench, system: System) -> str:
    dsn = bench.cluster.create_database("bench_empty")
    system.install(dsn)
    return dsn


def _seconds(conn: psycopg.Connection[Any], batches: int) -> dict[str, float]:
    """The time that each call takes: batches of one-step workflows, of which a tenth is given back and replayed."""
    spent = {"enqueue_many": 0.0, "claim": 0.0, "claim of replays": 0.0, "checkpoint_many": 0.0, "complete_many": 0.0}

    def timed(call: str, work: Any) -> Any:
        started = time.perf_counter()
        done = work()
        spent[call] += time.perf_counter() - started
        return done

    for n in range(batches):
        timed("enqueue_many", lambda: _batches.enqueue(conn, BATCH))
        claimed = timed("claim", lambda: _batches.claim(conn, BATCH))
        timed("checkpoint_many", lambda c=claimed: _batches.checkpoint(conn, c))
        if n % 10 == 0:
            ids, leases = claimed
            conn.execute(
                "select durable.release_many(%s::uuid[], %s::bigint[])", [_batches.array(ids), _batches.array(leases)]
            )
            claimed = timed("claim of replays", lambda: _batches.claim(conn, BATCH))
        timed("complete_many", lambda c=claimed: _batches.complete(conn, c))
    return spent


def _tick(conn: psycopg.Connection[Any], count: int) -> list[float]:
    samples = []
    for _ in range(count):
        started = time.perf_counter()
        conn.execute("select durable.tick()", prepare=True).fetchall()
        samples.append((time.perf_counter() - started) * 1000)
    return samples


def _locks(conn: psycopg.Connection[Any]) -> float:
    conn.execute("select durable.enqueue(%s, %s::jsonb, queue => %s)", [ONE_STEP, json.dumps(ORDER), QUEUE])
    (workflow_id,), (lease,) = _batches.claim(conn, 1)
    with conn.transaction():
        conn.execute("select durable.begin_step(%s, %s, 'book')", [workflow_id, lease])
        conn.execute("select durable.checkpoint(%s, %s, 'book', '{}')", [workflow_id, lease])
        query = "select count(*) from pg_locks where locktype = 'relation' and pid = pg_backend_pid()"
        return float(conn.execute(query).fetchall()[0][0])


def _keys(conn: psycopg.Connection[Any], count: int) -> tuple[float, float]:
    """Seconds for new keys, and for the same keys again."""
    query = """
      select count(*) from durable.enqueue_many('keyed', array_fill('1'::jsonb, array[%(count)s]), keys => array(
        select 'k' || n from generate_series(1, %(count)s) n))"""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        conn.execute(query, {"count": count})
        seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[1]


SCENARIO = Scenario("years", "Calls beside 400 days of history", run)
