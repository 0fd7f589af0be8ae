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
from clusters import Database


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


@pytest.fixture
def processes(db: Database, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    """Starts worker processes on the database of the test, which ``programs.app`` then uses, too."""
    monkeypatch.setenv("DURABLE_DSN", db.dsn)
    processes = Processes(db.dsn, tmp_path)
    yield processes
    processes.close()
    programs.app.close()


@pytest.fixture
def proxy(db: Database) -> Iterator[Proxy]:
    """A way to the server of the test that can be disturbed."""
    # The path of a socket is short.
    with (
        tempfile.TemporaryDirectory(prefix="proxy-") as directory,
        contextlib.closing(Proxy(db.cluster.sockets / ".s.PGSQL.5432", Path(directory))) as proxy,
    ):
        yield proxy
