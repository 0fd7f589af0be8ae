"""A workflow that kills its workers is found among those that ran beside it, and they are not blamed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from durable_client import AsyncContext, Context, Durable

from client.workers import forks
from clusters import Database
from engine import Connection, call, rows, value, wait_until, workflow

pytestmark = pytest.mark.pg(15, 18)

GIVE_UP = 90
app = Durable()


@app.workflow
async def poison(ctx: AsyncContext) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.step
async def count(n: int) -> int:
    await asyncio.sleep(0.05)
    return n


@app.step(name="count")
def count_plain(n: int) -> int:
    time.sleep(0.05)
    return n


@app.workflow
async def counting(ctx: AsyncContext, steps: int) -> int:
    return sum([await ctx.step(count, n) for n in range(steps)])


@app.workflow
def plain_counting(ctx: Context, steps: int) -> int:
    return sum([ctx.step(count_plain, n) for n in range(steps)])


def work(dsn: str, log: str, concurrency: int) -> None:
    """What a worker process does."""
    os.environ["DURABLE_DSN"] = dsn
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    app.run_worker(concurrency=concurrency)


class Crew:
    """Some workers, of which those that die are replaced."""

    def __init__(self, dsn: str, log: Path, size: int) -> None:
        self._dsn, self._log = dsn, log
        self.deaths = 0
        self.workers = [self._start() for _ in range(size)]

    def _start(self) -> ForkServerProcess:
        process = forks().Process(target=work, args=(self._dsn, str(self._log), 40))
        process.start()
        return process

    def replace(self) -> None:
        for n, worker in enumerate(self.workers):
            if not worker.is_alive():
                assert worker.exitcode == -signal.SIGKILL, self._log.read_text()
                self.deaths += 1
                self.workers[n] = self._start()

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.join(30)


@pytest.fixture
def conn(db: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setenv("DURABLE_DSN", db.dsn)
    conn = db.connect()
    call(conn, "configure", "restart_grace", "0")
    call(conn, "configure", "session_grace", "0")
    yield conn
    app.close()


def left(conn: Connection) -> int:
    return int(value(conn, "select count(*) from durable.live_workflows"))


def test_one_that_kills_its_workers_is_given_up_and_no_other_is_blamed(
    db: Database, conn: Connection, tmp_path: Path
) -> None:
    call(conn, "configure", "max_crashes", "2")
    app.enqueue_many(counting, [3] * 100)
    bad = app.enqueue(poison).workflow_id
    app.enqueue_many(plain_counting, [3] * 100)
    crew = Crew(db.dsn, tmp_path / "log", 2)
    give_up = time.monotonic() + GIVE_UP
    try:
        while left(conn) > 0:
            assert time.monotonic() < give_up, rows(conn, "select * from durable.live_workflows limit 10")
            crew.replace()
            time.sleep(0.02)
    finally:
        crew.close()
    row = workflow(conn, bad)  # type: ignore[arg-type]
    assert (row.status, row.crashes, row.error["code"]) == ("failed", 3, "WF009")
    assert rows(
        conn,
        "select status, crashes, output::int, count(*) from durable.workflows where workflow_id <> %s group by 1, 2, 3",
        bad,
    ) == [("completed", 0, 3, 200)]
    # Two before anybody was a suspect, and then one for each crash that counted. A worker that is being replaced may be seen
    # late.
    assert 4 <= crew.deaths <= 5


def test_workers_that_are_killed_at_random_fail_no_workflow(db: Database, conn: Connection, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed: {seed}")
    chance = random.Random(seed)
    crew = Crew(db.dsn, tmp_path / "log", 3)
    give_up = time.monotonic() + GIVE_UP
    kills = total = 0
    try:
        while kills < 30 or left(conn) > 0:
            assert time.monotonic() < give_up, rows(conn, "select * from durable.live_workflows limit 10")
            if kills < 30:
                app.enqueue_many(counting, [5] * 15)
                app.enqueue_many(plain_counting, [5] * 5)
                total += 20
                wait_until(conn, "select exists (select from durable.live_workflows where status = 'running')")
                time.sleep(chance.uniform(0, 0.3))
                victim = chance.choice(crew.workers)
                victim.kill()
                victim.join(30)
                kills += 1
            crew.replace()
            time.sleep(0.01)
    finally:
        crew.close()
    assert crew.deaths == kills
    assert rows(conn, "select status, output::int, failures, count(*) from durable.workflows group by 1, 2, 3") == [
        ("completed", 10, 0, total)
    ]
    # So the kills met work.
    assert value(conn, "select count(*) > 0 from durable.workflows where attempt > 1")
