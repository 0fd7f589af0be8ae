from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial

import psycopg

from benchmarks.bench import RUN_LIMIT, Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.processes import Marks, WorkerProcess
from benchmarks.scenarios._turns import in_turns, medians, rates
from benchmarks.systems import Drain, System
from benchmarks.workload import NAP, ONE_STEP, ORDER, QUEUE

NAMES = 200
FILL = 1000
SLEEPERS = 30
# What the others take, each another time, so that slots do not become free in waves. All slots of the worker are in
# use, but neither it nor the machine is: 200 slots make 1,000 a second. What a machine without time to spare adds to a
# wake-up has nothing to do with who is first in line.
BUSY = (0.1, 0.3)  # seconds
SETTLE = 2.0  # seconds from the first report in a turn: by then what was due while there was no worker has run
PATIENCE = 60.0

SLEEP = "select durable.enqueue_many(%s, array_fill('{}'::jsonb, array[%s]), queue => %s)"
FILL_UP = """
select durable.enqueue_many(%s, array(
  select jsonb_build_object('seconds', %s + random() * %s) from generate_series(1, %s)), queue => %s)"""
# One name after the other, so that every claim finds work in every line.
ENQUEUE = f"select durable.enqueue('{ONE_STEP}_' || n %% %s, %s, queue => %s) from generate_series(1, %s) n"


def run(bench: Bench) -> Iterator[Measurement]:
    for system in bench.chosen("durable"):
        yield from _many_names(bench, system)
        yield from _woken(bench, system)


def _many_names(bench: Bench, system: System) -> Iterator[Measurement]:
    """A worker process with default settings that declares 200 workflows, and one that declares one."""
    count, turns = (6_000, 3) if bench.quick else (20_000, 9)
    found = in_turns(turns, partial(_seconds, bench, system, NAMES, count), partial(_seconds, bench, system, 1, count))
    per_second = [[round(count / seconds) for seconds in side] for side in zip(*found, strict=True)]
    yield Measurement.of(
        "line-workers", "durable", f"one-step workflows of {NAMES} names, of the rate with one name", "×", "higher",
        rates(found), target=Target(0.7),
        settings={"backlog": count, f"1/s with {NAMES}": per_second[0], "1/s with one": per_second[1]},
    )  # fmt: skip


def _seconds(bench: Bench, system: System, names: int, count: int) -> float:
    """From the start of the first workflow to the end of the last."""
    dsn = bench.prepare(system)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(ENQUEUE, [names, json.dumps(ORDER), QUEUE, count])
        conn.execute("analyze")
        deadline = time.monotonic() + RUN_LIMIT
        with WorkerProcess(system.name, "default", dsn, names=names) as worker:
            while system.unfinished(conn):
                worker.require_alive()
                if time.monotonic() > deadline:
                    raise SystemExit(f"{count} of {names} names did not end within {RUN_LIMIT} s:\n{worker.output()}")
                time.sleep(0.1)
        drain = system.drained(conn)
    if drain != Drain(count, count, count, drain.seconds):
        raise SystemExit(f"Of {count} workflows of {names} names there is only {drain}.")
    return drain.seconds


def _woken(bench: Bench, system: System) -> Iterator[Measurement]:
    """Some workflows sleep a second or two, again and again, and say when they should have woken.

    They began before all the others, which are of the same name, were enqueued. In each turn a worker with default
    settings works for some seconds, and there is none in the other database.
    """
    backlog, turns, seconds = (100_000, 2, 8.0) if bench.quick else (1_000_000, 5, 10.0)
    with ExitStack() as opened:
        sides = []
        for purpose, count in (("busy", backlog), ("quiet", 0)):
            dsn = bench.prepare(system, purpose)
            sleepers = opened.enter_context(closing(_Sleepers(dsn)))
            # They are asleep before there is anything else.
            sleepers.work(SETTLE)
            sleepers.fill(count)
            sides.append(sleepers)
        busy, quiet = sides
        found = in_turns(turns, partial(busy.work, seconds), partial(quiet.work, seconds))
    milliseconds = [(1000 * statistics.median(a), 1000 * statistics.median(b)) for a, b in found]
    yield Measurement.of(
        "line-workers", "durable",
        f"from due to the line after a sleep, beside {backlog:,} ready ones of its name, of that with none",
        "×", "lower", [a / b for a, b in milliseconds], target=Target(1.5),
        settings={
            "sleepers": SLEEPERS, "others take": list(BUSY), "running at once": busy.running[1:],
            "ms": medians(milliseconds),
            "samples": [sum(len(side) for side in turn) for turn in zip(*found, strict=True)],
            "p90, ms": [round(1000 * _p90([s for turn in side for s in turn]), 1) for side in zip(*found, strict=True)],
        },
    )  # fmt: skip


def _p90(samples: list[float]) -> float:
    return statistics.quantiles(samples, n=10)[-1]


class _Sleepers:
    """A database with workflows that sleep, most of the time without a worker."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._marks = Marks()
        self._seen: set[int] = set()
        self._conn = psycopg.connect(dsn, autocommit=True)
        self.running: list[int] = []  # how many workflows the worker had in each turn
        self._conn.execute(SLEEP, [NAP, SLEEPERS, QUEUE])

    def fill(self, count: int) -> None:
        for _ in range(count // FILL):
            shortest, longest = BUSY
            self._conn.execute(FILL_UP, [NAP, shortest, longest - shortest, FILL, QUEUE], prepare=True)
        self._conn.execute("vacuum analyze")
        self._conn.execute("checkpoint")

    def work(self, seconds: float) -> list[float]:
        """Has a worker at work; how late each sleeper woke that was due in this time."""
        late = []
        with WorkerProcess("durable", "default", self._dsn, self._marks) as worker:
            self._next(worker)
            began = time.monotonic() + SETTLE
            while time.monotonic() < began + seconds:
                due, at = self._next(worker)
                if due >= began:
                    late.append(at - due)
            query = "select count(*) from durable.live_workflows where status = 'running'"
            self.running.append(self._conn.execute(query).fetchall()[0][0])
        return late

    def _next(self, worker: WorkerProcess) -> tuple[float, float]:
        """When the next sleeper was due, and when it woke. What a replay reports once more is left out."""
        while (mark := self._marks.next(PATIENCE)) is not None:
            if mark.sample not in self._seen:
                self._seen.add(mark.sample)
                return mark.sample / 1_000_000 - time.time() + time.monotonic(), mark.at
        raise SystemExit(f"No sleeper woke within {PATIENCE} s:\n{worker.output()}")

    def close(self) -> None:
        self._conn.close()
        self._marks.close()


SCENARIO = Scenario("line-workers", "One worker process with many names, and sleepers that wake in a busy queue", run)
