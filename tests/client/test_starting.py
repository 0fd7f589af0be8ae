"""A worker that is started before its database, or with the wrong one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from client.journal import PATIENCE
from client.workers import TESTS
from clusters import Cluster
from engine import enqueue, value

pytestmark = pytest.mark.pg(18)

WAITING = "Postgres is not ready yet"


class Command:
    """`durable worker` on one database, with its output."""

    def __init__(self, dsn: str, log: Path, *options: str) -> None:
        self._log = log
        (log.parent / "journal").touch()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).with_name("durable")), "worker", "client.programs:app", *options],
                cwd=TESTS,
                env=os.environ | {"DURABLE_DSN": dsn, "JOURNAL": str(log.parent / "journal")},
                stdout=output,
                stderr=output,
            )

    def close(self) -> None:
        self._process.kill()
        self._process.wait(60)

    def wait_for(self, text: str) -> None:
        give_up = time.monotonic() + PATIENCE
        while text not in self.log():
            if time.monotonic() > give_up or self._process.poll() is not None:
                raise AssertionError(f"{text!r} was not logged:\n{self.log()}")
            time.sleep(0.02)

    def log(self) -> str:
        return self._log.read_text()

    def terminate(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def wait(self) -> int:
        return self._process.wait(60)


@contextlib.contextmanager
def started(dsn: str, log: Path, *options: str) -> Iterator[Command]:
    command = Command(dsn, log, *options)
    try:
        yield command
    finally:
        command.close()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_worker_waits_for_a_server_that_comes_up_later(own_cluster: Cluster, tmp_path: Path, processes: str) -> None:
    database = own_cluster.create_database()
    own_cluster.stop()
    with started(database.dsn, tmp_path / "log", "--processes", processes) as worker:
        worker.wait_for(WAITING)
        own_cluster.start()
        conn = database.connect()
        workflow_id = enqueue(conn, "mixed")
        # Without its input it fails, and so it was run.
        while value(conn, "select durable.status(%s)::text", workflow_id) != "failed":
            conn.execute("select pg_sleep(0.05)")
        assert worker.terminate() == 0


def test_a_worker_waits_for_a_server_that_is_still_recovering(own_cluster: Cluster, tmp_path: Path) -> None:
    database = own_cluster.create_database()
    own_cluster.stop()
    # A standby that may not be asked refuses with 57P03, as a server does that replays its log after a crash.
    (own_cluster.data / "standby.signal").touch()
    with (own_cluster.data / "postgresql.conf").open("a") as file:
        file.write("hot_standby = off\n")
    starting = threading.Thread(target=own_cluster.start)
    starting.start()
    refusal = ""
    while "not accepting connections" not in refusal:
        with pytest.raises(psycopg.OperationalError) as info:
            own_cluster.connect()
        refusal = str(info.value)
    with started(database.dsn, tmp_path / "log") as worker:
        worker.wait_for("not accepting connections")
        own_cluster.promote()
        worker.wait_for("ready")
        assert worker.terminate() == 0
    starting.join(60)


def test_a_worker_that_waits_for_its_server_can_be_stopped(tmp_path: Path) -> None:
    with started(f"host={tmp_path} dbname=nothing", tmp_path / "log") as worker:
        worker.wait_for(WAITING)
        assert worker.terminate() == 0


@pytest.mark.parametrize("processes", ["1", "2"])
def test_what_waiting_would_not_mend_ends_a_worker_at_once(cluster: Cluster, tmp_path: Path, processes: str) -> None:
    good = cluster.dsn("postgres")
    for dsn, complaint in [
        (cluster.dsn("nothing"), 'database "nothing" does not exist'),
        (cluster.dsn("postgres", user="nobody"), 'role "nobody" does not exist'),
        (f"{good} host=nowhere.invalid", "nowhere.invalid"),
        ("my database", "missing"),
    ]:
        with started(dsn, tmp_path / "log", "--processes", processes) as worker:
            assert worker.wait() == 1
            assert complaint in worker.log()
            assert WAITING not in worker.log()
            assert "Traceback" not in worker.log()
