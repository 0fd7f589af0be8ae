"""A PgBouncer before the throwaway cluster, in transaction mode."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks.cluster import free_port, unprivileged_user

SETTINGS = {
    "listen_addr": "127.0.0.1",
    "unix_socket_dir": "",
    "auth_type": "any",
    "pool_mode": "transaction",
    "max_client_conn": 1000,
    "default_pool_size": 20,
}


def find_pgbouncer() -> str | None:
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


@contextmanager
def pooled(dsn: str) -> Iterator[str]:
    """The way through a pooler to the same database."""
    program = find_pgbouncer()
    assert program is not None
    server = conninfo_to_dict(dsn)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="durable-bench-") as directory:
        Path(directory).chmod(0o755)
        settings = Path(directory) / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n{server['dbname']} = host={server['host']} port={server['port']} user={server['user']}"
            f" password={server['password']}\n[pgbouncer]\nlisten_port = {port}\n"
            + "".join(f"{name} = {value}\n" for name, value in SETTINGS.items())
        )
        user = unprivileged_user()
        process = subprocess.Popen(
            [program, "-q", settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user
        )
        try:
            through = make_conninfo(host="127.0.0.1", port=port, user=server["user"], dbname=server["dbname"])
            _wait_until_up(through, process)
            yield through
        finally:
            process.terminate()
            process.wait(30)


def _wait_until_up(dsn: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(dsn, connect_timeout=5).close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"PgBouncer did not start: {error}") from error
            time.sleep(0.05)
