"""A PgBouncer before a throwaway cluster, on a free port of the loopback interface."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psycopg

from clusters import Cluster, account


class PgBouncer:
    """Debian's PgBouncer, which knows nothing of prepared statements, with the given pool mode."""

    def __init__(self, cluster: Cluster, directory: Path, pool_mode: str, **settings: object) -> None:
        program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if program is None:
            raise RuntimeError("PgBouncer is missing: run `make test`, or see tests/prepare")
        self._program = program
        self._port = _free_port()
        # Where the account that runs it can read: the directories of pytest are for the user of the tests alone.
        self._settings = cluster.sockets / f"pgbouncer-{self._port}.ini"
        self._log = directory / f"pgbouncer-{self._port}.log"
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": self._port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": pool_mode,
            "max_client_conn": 500,
            "default_pool_size": 10,
            # A server that was away is tried again at once.
            "server_login_retry": 1,
            **settings,
        }
        self._settings.write_text(
            f"[databases]\n* = host={cluster.sockets} port=5432 user=postgres\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in lines.items())
        )
        self.start()

    def start(self) -> None:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [self._program, str(self._settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **account(),
            )
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PgBouncer does not start:\n{self._log.read_text()}")
            time.sleep(0.02)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()
        self._settings.unlink()

    def dsn(self, direct: str) -> str:
        """The way to the same database through the pooler."""
        database = psycopg.conninfo.conninfo_to_dict(direct)["dbname"]
        return f"host=127.0.0.1 port={self._port} user=postgres dbname={database}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
