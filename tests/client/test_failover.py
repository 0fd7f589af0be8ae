"""The primary is gone, and its standby has its address: first as a standby, a while later as the primary."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from client.programs import app
from client.proxy import Proxy
from client.test_endurance import GIVE_UP, check, enqueue, unfinished
from client.workers import Processes
from clusters import Cluster, Clusters, Database
from engine import value, wait_until

pytestmark = pytest.mark.pg(15, 18)


@pytest.fixture
def standby(clusters: Clusters, own_cluster: Cluster) -> Iterator[Cluster]:
    with clusters.standby(own_cluster) as standby:
        yield standby


@pytest.fixture
def address(own_cluster: Cluster) -> Iterator[Proxy]:
    """What programs know the primary by, whichever server it is."""
    with (
        tempfile.TemporaryDirectory(prefix="proxy-") as directory,
        contextlib.closing(Proxy(own_cluster.sockets / ".s.PGSQL.5432", Path(directory))) as proxy,
    ):
        yield proxy


def has(standby: Cluster, database: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError), standby.connect(database) as conn:
        return bool(value(conn, "select to_regclass('bookings') is not null"))
    return False


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_workers_outlast_a_failover_whose_new_primary_is_a_standby_at_first(
    own_cluster: Cluster, standby: Cluster, address: Proxy, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = own_cluster.create_database()
    copy = Database(standby, origin.name)
    if how == "immediate":
        # What is acknowledged is on the standby. A server that shuts down fast sends all of it before it ends.
        with origin.connect() as conn:
            conn.execute("alter system set synchronous_standby_names = '*'")
            conn.execute("select pg_reload_conf()")
            wait_until(conn, "select count(*) = 1 from pg_stat_replication where sync_state = 'sync'")
    count = 600
    monkeypatch.setenv("DURABLE_DSN", origin.dsn)
    enqueue(origin, count)
    give_up = time.monotonic() + GIVE_UP
    while not has(standby, origin.name):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    processes = Processes(address.dsn(origin.dsn), tmp_path)
    try:
        workers = [processes.start(concurrency=10) for _ in range(3)]
        while unfinished(origin) > count * 3 / 4:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        own_cluster.stop({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[how])
        address.lead_to(standby.sockets / ".s.PGSQL.5432")
        left = unfinished(copy)
        assert left > 0
        # Several of their sessions come to the standby, and are refused, again and again.
        time.sleep(3)
        assert unfinished(copy) == left
        assert all(worker.running() for worker in workers), [worker.log() for worker in workers]
        standby.promote()
        while (left := unfinished(copy)) != 0:
            assert time.monotonic() < give_up, (
                f"{left} workflows have not ended: {[worker.log() for worker in workers]}"
            )
            time.sleep(0.05)
        for worker in workers:
            assert worker.running(), worker.log()
        check(copy, count)
    finally:
        processes.close()
        app.close()
        copy.disconnect()
        origin.disconnect()
        # Its fixture stops it once more.
        own_cluster.start()
