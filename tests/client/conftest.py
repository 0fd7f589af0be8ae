from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from durable_client import Durable

from client import programs
from client.journal import Journal
from client.proxy import Proxy
from client.workers import Processes
from clusters import Cluster, Database


@pytest.fixture
def app(db: Database) -> Iterator[Durable]:
    """An empty app on a fresh database."""
    app = Durable(db.dsn)
    yield app
    app.close()


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    monkeypatch.setenv("JOURNAL", str(tmp_path / "journal"))
    return Journal(tmp_path / "journal")


@contextlib.contextmanager
def _working(database: Database, directory: Path) -> Iterator[Processes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DURABLE_DSN", database.dsn)
        processes = Processes(database.dsn, directory)
        yield processes
        processes.close()
        programs.app.close()


@pytest.fixture
def processes(db: Database, journal: Journal, tmp_path: Path) -> Iterator[Processes]:
    """Starts worker processes on the database of the test, which ``programs.app`` then uses, too."""
    with _working(db, tmp_path) as processes:
        yield processes


@pytest.fixture
def own_db(own_cluster: Cluster) -> Database:
    """A fresh database on the server that the test has to itself; it goes with that."""
    return own_cluster.create_database()


@pytest.fixture
def own_processes(own_db: Database, journal: Journal, tmp_path: Path) -> Iterator[Processes]:
    """The same as ``processes`` on that database."""
    with _working(own_db, tmp_path) as processes:
        yield processes


@pytest.fixture
def proxy(db: Database) -> Iterator[Proxy]:
    """A way to the server of the test that can be disturbed."""
    # The path of a socket is short.
    with (
        tempfile.TemporaryDirectory(prefix="proxy-") as directory,
        contextlib.closing(Proxy(db.cluster.sockets / ".s.PGSQL.5432", Path(directory))) as proxy,
    ):
        yield proxy
