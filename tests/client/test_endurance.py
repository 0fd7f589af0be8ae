"""Runs in which much is killed, again and again: every workflow ends once, with the right result."""

from __future__ import annotations

import random
import threading
import time

import psycopg
import pytest
from durable_client import AsyncContext, Durable

from client import programs
from client.programs import app
from client.workers import Processes, working
from clusters import Cluster, Database
from engine import call, value, wait_until

GIVE_UP = 120


def unfinished(db: Database) -> int:
    """How many workflows have not ended; -1 while the server is away."""
    try:
        with psycopg.connect(db.dsn) as conn:
            return int(value(conn, "select count(*) from durable.live_workflows"))
    except psycopg.OperationalError:
        return -1


def check(db: Database, count: int) -> None:
    conn = db.connect()
    assert value(
        conn,
        "select count(*) from durable.workflows where status = 'completed'"
        # n + 1, and then either (n + 1) + n and n + 2.
        " and output::int = 3 * input::int + 3",
    ) == count  # fmt: skip
    assert value(conn, "select count(*) from durable.workflows") == count
    # Twice each: once for each kind of workflow.
    assert value(conn, "select count(*) from bookings") == count
    assert value(conn, "select count(distinct n) * 2 from bookings") == count
    assert value(conn, "select count(*) from durable.workflow_steps") == 4 * count
    assert value(conn, "select sum(failures) from durable.workflows") == 0


def restart(cluster: Cluster) -> None:
    """Kills the server with SIGKILL and starts it again."""
    cluster.kill()
    for _ in range(20):
        try:
            cluster.start()
            return
        except RuntimeError:
            # A session that began while the processes were listed still has the shared memory.
            cluster.kill()
    raise AssertionError("the server does not start")


def enqueue(db: Database, count: int) -> None:
    conn = db.connect()
    conn.execute("create table bookings (n int)")
    for program in (programs.mixed, programs.plain_mixed):
        app.enqueue_many(program, range(count // 2), conn=conn)


@pytest.mark.pg(15, 18)
def test_thousands_of_workflows_end_once_while_workers_are_killed_at_random(db: Database, processes: Processes) -> None:
    count = 3000
    enqueue(db, count)
    chance = random.Random(3)
    workers = [processes.start(concurrency=50) for _ in range(3)]
    give_up = time.monotonic() + GIVE_UP
    kills = 0
    while (left := unfinished(db)) > 0:
        assert time.monotonic() < give_up, f"{left} workflows have not ended"
        time.sleep(chance.uniform(0.1, 0.5))
        if kills < 8:
            victim = chance.randrange(len(workers))
            workers[victim].kill()
            kills += 1
            workers[victim] = processes.start(concurrency=50)
    check(db, count)


@pytest.mark.pg(15, 18)
def test_34_postgres_killed_many_times_every_workflow_ends_once_with_the_right_result(
    own_cluster: Cluster, own_db: Database, own_processes: Processes
) -> None:
    count = 3000
    enqueue(own_db, count)
    workers = [own_processes.start(concurrency=50) for _ in range(2)]
    # A worker that cannot connect when it starts says so and ends.
    with own_db.connect() as conn:
        while value(conn, "select count(*) from durable.workers where session_lock") < len(workers):
            time.sleep(0.01)
    chance = random.Random(4)
    give_up = time.monotonic() + GIVE_UP
    kills = 0
    while (left := unfinished(own_db)) != 0:
        assert time.monotonic() < give_up, f"{left} workflows have not ended"
        time.sleep(chance.uniform(0.2, 0.6))
        if kills < 4:
            restart(own_cluster)
            kills += 1
    for worker in workers:
        assert worker.running(), worker.log()
    check(own_db, count)


@pytest.mark.pg(18)
def test_22_sigterm_ends_a_worker_while_postgres_is_away(
    own_cluster: Cluster, own_db: Database, own_processes: Processes
) -> None:
    worker = own_processes.start()
    with own_db.connect() as conn:
        # It has claimed, so all its connections are there. One that is still to be made waits for a server without a word of
        # having lost it.
        wait_until(conn, "select count(*) > 0 from durable.idle_workers")
    own_cluster.stop()
    give_up = time.monotonic() + GIVE_UP
    while "its session is lost" not in worker.log() or "cannot be reached" not in worker.log():
        assert time.monotonic() < give_up, worker.log()
        time.sleep(0.05)
    time.sleep(1)
    worker.terminate()
    assert worker.wait() == 0, worker.log()
    # Once, and not for each attempt to connect again.
    assert worker.log().count("its session is lost") == 1
    own_cluster.start()


@pytest.mark.pg(18)
def test_34_whoever_waits_for_a_result_outlasts_a_restart_of_postgres(own_cluster: Cluster, own_db: Database) -> None:
    waiting_app = Durable(own_db.dsn)
    gate = threading.Event()

    @waiting_app.step
    def wait() -> int:
        gate.wait(60)
        return 1

    @waiting_app.workflow
    async def run(ctx: AsyncContext) -> int:
        return await ctx.step(wait)

    with working(waiting_app):
        handle = waiting_app.enqueue(run)
        results: list[object] = []

        def ask() -> None:
            try:
                results.append(handle.result(timeout=60))
            except Exception as error:  # noqa: BLE001 - whatever it is belongs into the comparison
                results.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        for _ in range(2):
            restart(own_cluster)
        gate.set()
        asking.join(60)
        assert results == [1]
    waiting_app.close()


@pytest.mark.pg(18)
def test_a_server_that_is_read_only_for_a_while_fails_no_workflow(db: Database, processes: Processes) -> None:
    conn = db.connect()
    count = 2000
    enqueue(db, count)
    worker = processes.start(concurrency=10)
    while unfinished(db) > count - 50:
        time.sleep(0.01)
    # What a worker meets when it reaches a standby during a failover.
    conn.execute(f"alter database {db.name} set default_transaction_read_only = on".encode())
    kill = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    conn.execute(kill.encode())
    time.sleep(1)
    assert unfinished(db) > 0
    conn.execute(f"alter database {db.name} reset default_transaction_read_only".encode())
    conn.execute(kill.encode())
    if not worker.running():
        processes.start()
    give_up = time.monotonic() + GIVE_UP
    while (left := unfinished(db)) > 0:
        assert time.monotonic() < give_up, f"{left} workflows have not ended"
        time.sleep(0.05)
    check(db, count)


@pytest.mark.pg(18)
def test_connections_that_are_terminated_at_random_cost_nothing(db: Database, processes: Processes) -> None:
    conn = db.connect()
    call(conn, "configure", "session_grace", "2 seconds")
    count = 1000
    enqueue(db, count)
    worker = processes.start(concurrency=50)
    give_up = time.monotonic() + GIVE_UP
    while (left := unfinished(db)) > 0:
        assert time.monotonic() < give_up, f"{left} workflows have not ended"
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
            " and pid <> pg_backend_pid() order by random() limit 2"
        )
        time.sleep(0.1)
    assert worker.running(), worker.log()
    check(db, count)
