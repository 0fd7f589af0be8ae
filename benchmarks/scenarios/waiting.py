from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
from durable_client import Durable, Handle

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target, percentile
from benchmarks.processes import Marks, WorkerProcess
from benchmarks.workload import AWAIT_EVENT, EVENT, FAN_OUT, LONG, QUEUE, RECEIVE, TOPIC

WARM_UP = 5
GAP = (0.1, 1.1)  # seconds
SEED = 1
PARKED = 10_000
CHILDREN = 10_000
STEPS = 5_000
RESUMES = 5
PATIENCE = 60.0  # seconds


def run(bench: Bench) -> Iterator[Measurement]:
    """One worker process with default settings; what wakes the workflows comes from another process."""
    for system in bench.chosen("durable"):
        samples = 10 if bench.quick else 100
        dsn = bench.prepare(system)
        latencies = _wake_ups(dsn, samples)
        for metric, share, target in (("p50", 0.5, Target(8)), ("p99", 0.99, None)):
            yield Measurement.of(
                "waiting", "durable", f"idle: from sending a message to the line after receive, {metric}", "ms",
                "lower", latencies, value=percentile(latencies, share), target=target,
                settings={"samples": samples, "gap_s": list(GAP)},
            )  # fmt: skip
        yield Measurement.of(
            "waiting", "durable", f"{PARKED:,} parked, woken by one event: until all have ended", "s", "lower",
            [_broadcast(bench.prepare(system))], target=Target(3),
        )  # fmt: skip
        yield Measurement.of(
            "waiting", "durable", f"{CHILDREN:,} children: until their parent has ended", "s", "lower",
            [_fan_out(bench.prepare(system))], target=Target(3),
        )  # fmt: skip
        yield Measurement.of(
            "waiting", "durable", f"{STEPS:,} stored steps: from a message to the line after receive", "s", "lower",
            _resumes(bench.prepare(system)), target=Target(1),
        )  # fmt: skip


@contextmanager
def _working(dsn: str) -> Iterator[tuple[Durable, psycopg.Connection[Any], WorkerProcess, Marks]]:
    with (
        closing(Marks()) as marks,
        closing(Durable(dsn)) as app,
        psycopg.connect(dsn, autocommit=True) as conn,
        WorkerProcess("durable", "default", dsn, marks) as worker,
    ):
        yield app, conn, worker, marks


def _wake_ups(dsn: str, samples: int) -> list[float]:
    gaps = random.Random(SEED)
    found = []
    with _working(dsn) as (app, conn, worker, marks):
        handles = app.enqueue_many(RECEIVE, [None] * (WARM_UP + samples), queue=QUEUE)
        _until_parked(conn, worker, len(handles))
        for sample, handle in enumerate(handles):
            time.sleep(gaps.uniform(*GAP))
            seconds = _seconds_to_mark(handle, sample, worker, marks)
            if sample >= WARM_UP:
                found.append(1000 * seconds)
    return found


def _resumes(dsn: str) -> list[float]:
    with _working(dsn) as (app, conn, worker, marks):
        handle = app.enqueue(LONG, STEPS, queue=QUEUE)
        found = []
        for sample in range(RESUMES):
            _until_parked(conn, worker, 1)
            found.append(_seconds_to_mark(handle, sample, worker, marks))
    return found


def _broadcast(dsn: str) -> float:
    with _working(dsn) as (app, conn, worker, _):
        app.enqueue_many(AWAIT_EVENT, [None] * PARKED, queue=QUEUE)
        _until_parked(conn, worker, PARKED)
        started = time.monotonic()
        app.emit(EVENT)
        _until(lambda: _count(conn, "finished_workflows where status = 'completed'") == PARKED, worker)
        return time.monotonic() - started


def _fan_out(dsn: str) -> float:
    with _working(dsn) as (app, _, worker, _marks):
        # The worker is up and idle when this has ended.
        app.enqueue(FAN_OUT, 1, queue=QUEUE).result(timeout=PATIENCE)
        started = time.monotonic()
        handle: Handle[Any] = app.enqueue(FAN_OUT, CHILDREN, queue=QUEUE)
        if handle.result(timeout=PATIENCE) != CHILDREN:
            raise SystemExit(f"Not all of {CHILDREN} children came back:\n{worker.output()}")
        return time.monotonic() - started


def _seconds_to_mark(handle: Handle[Any], sample: int, worker: WorkerProcess, marks: Marks) -> float:
    sent_at = time.monotonic()
    handle.send(TOPIC, sample)
    while (mark := marks.next(PATIENCE)) is not None and mark.sample < sample:
        pass  # A replay reports once more what it had received before.
    if mark is None:
        raise SystemExit(f"Message {sample} was not received within {PATIENCE} s:\n{worker.output()}")
    return mark.at - sent_at


def _until_parked(conn: psycopg.Connection[Any], worker: WorkerProcess, count: int) -> None:
    _until(lambda: _count(conn, "live_workflows where status = 'waiting'") == count, worker)


def _count(conn: psycopg.Connection[Any], what: str) -> int:
    return int(conn.execute(f"select count(*) from durable.{what}".encode()).fetchall()[0][0])


def _until(true: Callable[[], bool], worker: WorkerProcess) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        worker.require_alive()
        if time.monotonic() > deadline:
            raise SystemExit(f"It took more than {PATIENCE} s:\n{worker.output()}")
        time.sleep(0.02)


SCENARIO = Scenario("waiting", "Workflows that wait: messages, events, children, and the replay of many steps", run)
