from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.processes import WorkerProcess
from benchmarks.systems import System
from benchmarks.workload import POISON, QUEUE, STEADY

WORKERS = 3
IN_FLIGHT = 10  # in each, so that there is work for the time of all the kills
MOMENTS = [0.1] * 5  # seconds of the steps of each workflow
GAP = (0.2, 0.6)  # seconds between two kills
SEED = 1
PATIENCE = 300.0


def run(bench: Bench) -> Iterator[Measurement]:
    """Worker processes die, and are replaced at once, while there is work; it must all be completed."""
    count, kills = (200, 10) if bench.quick else (1_000, 50)
    settings = {
        "workflows": count, "workers": WORKERS, "in flight": IN_FLIGHT, "seconds of the steps": MOMENTS,
        "gap_s": list(GAP),
    }  # fmt: skip
    for system in bench.chosen("durable"):
        for metric, poison, killed in (
            ("nobody is killed: until all are completed", False, 0),
            (f"{kills} kills: until all are completed", False, kills),
            ("one that kills its worker: until it is given up and all others are completed", True, 0),
        ):
            seconds, deaths, blamed = _work_off(bench, system, count, killed, poison)
            yield Measurement.of(
                "suspects", "durable", metric, "s", "lower", [seconds],
                settings={**settings, "deaths": deaths, "crashes counted of one that kills nobody": blamed},
            )  # fmt: skip
            if poison:
                yield Measurement.of(
                    "suspects", "durable", "one that kills its worker: workers that it kills", "", "lower", [deaths],
                    settings=settings,
                )  # fmt: skip
                yield Measurement.of(
                    "suspects", "durable", "one that kills its worker: crashes counted of any other", "", "lower",
                    [blamed], settings=settings, target=Target(0),
                )  # fmt: skip


def _work_off(bench: Bench, system: System, count: int, kills: int, poison: bool) -> tuple[float, int, int]:
    """Seconds, how many workers died, and the most crashes that any workflow has that kills nobody."""
    dsn = bench.prepare(system)
    chance = random.Random(SEED)
    with psycopg.connect(dsn, autocommit=True) as conn:
        crew = _Crew(dsn)
        try:
            # From when all of them are up.
            _wait(conn, crew, f"select count(*) = {WORKERS} from durable.workers where died_at is null")
            started = time.monotonic()
            _enqueue(conn, STEADY, json.dumps(MOMENTS), count // 2)
            if poison:
                _enqueue(conn, POISON, "null", 1)
            _enqueue(conn, STEADY, json.dumps(MOMENTS), count - count // 2)
            for _ in range(kills):
                time.sleep(chance.uniform(*GAP))
                if not system.unfinished(conn):
                    raise SystemExit(f"suspects: all had ended after {crew.deaths} kills of {kills}.")
                crew.kill(chance)
            _wait(conn, crew, "select not exists(select from durable.live_workflows)")
            seconds = time.monotonic() - started
        finally:
            crew.close()
        query = "select name || ' ' || status, count(*) from durable.finished_workflows group by 1"
        statuses: dict[str, int] = dict(conn.execute(query).fetchall())
        if statuses != {f"{STEADY} completed": count, **({f"{POISON} failed": 1} if poison else {})}:
            raise SystemExit(f"suspects: ended as {statuses}.")
        query = "select max(crashes) from durable.finished_workflows where name = %s"
        return seconds, crew.deaths, int(conn.execute(query, [STEADY]).fetchall()[0][0])


class _Crew:
    """Some workers, of which those that die are replaced at once."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.deaths = 0
        self._workers = [self._start() for _ in range(WORKERS)]

    def _start(self) -> WorkerProcess:
        return WorkerProcess("durable", "throughput", self._dsn, in_flight=IN_FLIGHT)

    def kill(self, chance: random.Random) -> None:
        chance.choice(self._workers).kill()
        self.replace()

    def replace(self) -> None:
        for n, worker in enumerate(self._workers):
            if not worker.is_alive():
                self.deaths += 1
                self._workers[n] = self._start()

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()


def _enqueue(conn: psycopg.Connection[Any], workflow: str, value: str, count: int) -> None:
    conn.execute(
        "select durable.enqueue_many(%s, array_fill(%s::jsonb, array[%s]), queue => %s)",
        [workflow, value, count, QUEUE],
    )


def _wait(conn: psycopg.Connection[Any], crew: _Crew, true: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not conn.execute(true.encode()).fetchall()[0][0]:
        if time.monotonic() > deadline:
            raise SystemExit(f"suspects: not within {PATIENCE} s, after {crew.deaths} deaths: {true}")
        crew.replace()
        time.sleep(0.02)


SCENARIO = Scenario("suspects", "Workers are killed while they work, and one workflow kills its workers", run)
