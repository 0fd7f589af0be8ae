"""Workers that meet a standby: they wait until there is a primary."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from durable_client import AsyncContext, Context, Durable

from client.test_starting import WAITING, started
from client.workers import Processes, working
from clusters import TEMPLATE, Cluster, Clusters, Database
from engine import call, enqueue, rows, value, wait_until
from pgbouncer import PgBouncer

pytestmark = pytest.mark.pg(15, 18)


def become_standby(cluster: Cluster) -> None:
    """Restarts a server as a standby that follows nobody, until it is promoted."""
    cluster.stop()
    (cluster.data / "standby.signal").touch()
    cluster.start()


def declare(app: Durable) -> None:
    @app.step
    def one() -> int:
        return 1

    async def book(conn: psycopg.AsyncConnection[Any]) -> int:
        await conn.execute("insert into bookings values (1)")
        return 2

    def book_plain(conn: psycopg.Connection[Any]) -> int:
        conn.execute("insert into bookings values (2)")
        return 3

    @app.workflow
    async def run(ctx: AsyncContext) -> int:
        first = await ctx.step(one) + await ctx.transaction(book)
        await ctx.sleep(0.5)
        return first + await ctx.transaction(book)

    @app.workflow
    def plain_run(ctx: Context) -> int:
        first = ctx.step(one) + ctx.transaction(book_plain)
        ctx.sleep(0.5)
        return first + ctx.transaction(book_plain)


@pytest.fixture(params=["directly", "through a pooler"])
def way(own_cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Database, str]]:
    """A database, and a DSN that leads to it."""
    database = own_cluster.create_database()
    if request.param == "directly":
        yield database, database.dsn
        return
    # Its clients stay connected while the server behind it becomes another one.
    pooler = PgBouncer(own_cluster, tmp_path, "transaction")
    yield database, pooler.dsn(database.dsn)
    pooler.close()


def test_a_worker_whose_server_becomes_a_standby_waits_for_its_promotion(
    own_cluster: Cluster, way: tuple[Database, str], caplog: pytest.LogCaptureFixture
) -> None:
    database, dsn = way
    conn = database.connect()
    conn.execute("create table bookings (n int)")
    app = Durable(dsn)
    declare(app)
    caplog.set_level(logging.INFO, logger="durable")
    with working(app):
        # They sleep, and have yet to write, when the server is gone.
        handles = [app.enqueue("run"), app.enqueue("plain_run")]
        while value(conn, "select count(*) from bookings") < 2:
            time.sleep(0.01)
        become_standby(own_cluster)
        give_up = time.monotonic() + 60
        while not all(f"{name}: Postgres cannot be reached" in caplog.text for name in ("control", "writer")):
            assert time.monotonic() < give_up, caplog.text
            time.sleep(0.02)
        time.sleep(1)
        own_cluster.promote()
        assert [handle.result(timeout=60) for handle in handles] == [5, 7]
        # Its session listens again.
        assert app.enqueue("run").result(timeout=60) == 5
    app.close()
    found = rows(database.connect(), "select max(crashes) as crashes, sum(failures) as failures from durable.workflows")
    assert found == [(0, 0)]


def test_a_worker_that_finds_a_standby_when_it_starts_waits_for_its_promotion(
    own_cluster: Cluster, tmp_path: Path
) -> None:
    database = own_cluster.create_database()
    become_standby(own_cluster)
    serializable = " options='-c default_transaction_isolation=serializable'"
    for n, more in enumerate(("", " target_session_attrs=read-write", " target_session_attrs=primary", serializable)):
        with started(database.dsn + more, tmp_path / f"stopped-{n}") as worker:
            worker.wait_for(WAITING)
            assert worker.terminate() == 0
    with (
        started(database.dsn, tmp_path / "log") as worker,
        started(f"{database.dsn} target_session_attrs=read-write", tmp_path / "log-2") as other,
        started(database.dsn + serializable, tmp_path / "log-4") as strict,
        started(database.dsn, tmp_path / "log-3", "--processes", "2") as several,
    ):
        for each in (worker, other, strict, several):
            each.wait_for(WAITING)
        own_cluster.promote()
        for each in (worker, other, strict, several):
            each.wait_for("ready")
            assert each.terminate() == 0


@pytest.mark.parametrize("target", ["", " target_session_attrs=read-write"], ids=["any", "read-write"])
def test_of_several_hosts_a_worker_finds_the_primary(
    own_cluster: Cluster, clusters: Clusters, pg_version: int, target: str, tmp_path: Path
) -> None:
    primary = own_cluster
    with clusters.running(pg_version) as standby:
        become_standby(standby)
        dsn = f"host={standby.sockets},{primary.sockets} user=postgres dbname={TEMPLATE}{target}"
        app = Durable(dsn)

        @app.workflow
        def run(ctx: Context, n: int) -> int:
            return n + 1

        with working(app):
            assert app.enqueue(run, 1).result(timeout=30) == 2
            # The roles change.
            primary.stop()
            standby.promote()
            while True:
                with standby.connect(TEMPLATE) as conn:
                    if not value(conn, "select pg_is_in_recovery()"):
                        workflow_id = value(conn, "select durable.enqueue('run', '2')")
                        break
            (primary.data / "standby.signal").touch()
            primary.start()
            assert app.handle(workflow_id).result(timeout=60) == 3
        app.close()


def test_a_worker_says_that_postgres_does_not_answer_while_commits_wait_for_a_standby(
    own_db: Database, own_processes: Processes
) -> None:
    conn = own_db.connect()
    conn.execute("set synchronous_commit = local")
    worker = own_processes.start()
    wait_until(conn, "select count(*) = 1 from durable.workers")
    conn.execute("alter system set synchronous_standby_names = 'berlin'")
    conn.execute("select pg_reload_conf()")
    workflow_id = enqueue(conn, "leaf", input=json.dumps(["one", 1]))
    give_up = time.monotonic() + 60
    while "Postgres has not answered for 10 s; see `durable doctor`" not in worker.log():
        assert time.monotonic() < give_up, worker.log()
        time.sleep(0.1)
    assert worker.log().count("has not answered") <= 3
    # The remedy that the doctor names.
    remedies = [row.remedy for row in call(conn, "health") if row.check == "commits"]
    statements = [part for part in remedies[0].partition("as a superuser: ")[2].split(";") if part.strip()]
    assert len(statements) == 2
    for statement in statements:
        conn.execute(statement.encode())
    wait_until(conn, "select durable.status(%s) = 'completed'", workflow_id)
    assert worker.running()
