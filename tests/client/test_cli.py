"""The command `durable`: real processes, as a shell would run them."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from client import programs
from client.journal import PATIENCE, Journal
from client.programs import app
from client.workers import TESTS
from clusters import Cluster, Database
from engine import call, claim_one, enqueue, kill_worker, rows, value, workflow

# What a command prints does not depend on the server; what it asks of the server is asked of the oldest and the newest.
pytestmark = pytest.mark.pg(18)
EACH_END = pytest.mark.pg(15, 18)

DURABLE = str(Path(sys.executable).with_name("durable"))
COMMANDS = [
    *("install", "worker", "dev", "enqueue", "list", "show", "cancel", "pause", "resume", "retry", "fork"),
    *("send", "emit", "approvals", "decide", "doctor"),
]
SCHEDULE_COMMANDS = ["list", "show", "apply", "pause", "resume", "trigger", "remove", "backfill"]
WORKFLOW_FIELDS = {
    *("workflow_id", "name", "status", "queue", "key", "priority", "tags", "attempt", "failures", "crashes"),
    *("suspicions", "max_attempts", "error_message", "created_at", "started_at", "completed_at", "wake_at", "deadline"),
    *("timeout_seconds", "worker", "paused_at", "pause_reason", "warning", "forked_from", "forked_at_step"),
    *("continued_from", "continued_as"),
}
APPROVAL_FIELDS = {
    *("approval_id", "workflow_id", "workflow", "step_name", "subject", "assignee", "form", "requested_at"),
    *("expires_at", "state", "decision", "data", "decided_by", "comment", "decided_at"),
}
STEP_FIELDS = {
    *("step_name", "status", "attempt", "output", "error", "error_message", "started_at", "completed_at"),
    *("retry_at", "at_most_once", "waits_for", "wait_until"),
}


class Cli:
    """Runs `durable` on one database."""

    def __init__(self, dsn: str | None) -> None:
        self.env = {name: text for name, text in os.environ.items() if name != "DURABLE_DSN"}
        if dsn is not None:
            self.env["DURABLE_DSN"] = dsn

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [DURABLE, *arguments], env=self.env, cwd=TESTS, input=stdin, capture_output=True, text=True, check=False
        )

    def read(self, *arguments: str, stdin: str = "") -> str:
        """What a call that succeeds prints."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def read_json(self, *arguments: str, stdin: str = "") -> Any:
        return json.loads(self.read(*arguments, "-o", "json", stdin=stdin), parse_float=Decimal)

    def fail(self, *arguments: str, status: int = 1) -> str:
        """The report of a call that fails as it should: no traceback, nothing on standard output."""
        done = self.run(*arguments)
        assert done.returncode == status, (done.stdout, done.stderr)
        assert done.stdout == ""
        assert "Error: " in done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def read_terminal(self, columns: int, *arguments: str) -> list[str]:
        """The lines that a terminal of this width gets, without colours."""
        main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        env = {name: text for name, text in self.env.items() if name not in ("COLUMNS", "LINES")}
        with subprocess.Popen([DURABLE, *arguments], env=env | {"TERM": "xterm"}, stdout=side) as process:
            os.close(side)
            output = b""
            # The end of a terminal is an error to whoever reads on.
            with contextlib.suppress(OSError):
                while data := os.read(main, 65536):
                    output += data
        os.close(main)
        assert process.returncode == 0
        return re.sub(r"\x1b\[[0-9;]*m", "", output.decode()).splitlines()


@pytest.fixture
def cli(db: Database) -> Cli:
    return Cli(db.dsn)


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[Database]:
    """A database without the schema."""
    database = cluster.create_database(template="template1")
    yield database
    database.drop()


def run_one(conn: psycopg.Connection[Any], *, name: str = "report") -> Any:
    """A workflow that completed, with one step."""
    workflow_id = enqueue(conn, name, input={"month": 12}, queue="runs")
    claimed = claim_one(conn, queues=["runs"])
    call(conn, "checkpoint", workflow_id, claimed.lease, "count", {"orders": 3})
    call(conn, "complete", workflow_id, claimed.lease, {"total": 7})
    return workflow_id


def fail_one(conn: psycopg.Connection[Any], message: str = "the printer is on fire") -> Any:
    workflow_id = enqueue(conn, "report", queue="failures")
    claimed = claim_one(conn, queues=["failures"])
    call(conn, "fail", workflow_id, claimed.lease, {"type": "PrinterError", "message": message})
    return workflow_id


# Help.


@functools.cache
def help_of(*command: str) -> str:
    return Cli(None).read(*command, "--help")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_listed_and_explained_with_an_example(command: str) -> None:
    assert re.search(rf"^  {command}  ", help_of(), re.MULTILINE)
    text = help_of(command)
    assert re.search(rf"Examples?:\n +durable {command}\b", text)
    options = set(re.findall(r"^  (?:-., )?(--[a-z-]+)", text, re.MULTILINE))
    assert options >= ({"--help"} if command == "dev" else {"--help", "--dsn"})


@pytest.mark.parametrize("command", SCHEDULE_COMMANDS)
def test_every_command_for_schedules_is_listed_and_explained_with_an_example(command: str) -> None:
    assert re.search(rf"^  {command}  ", help_of("schedule"), re.MULTILINE)
    text = help_of("schedule", command)
    assert re.search(rf"Examples?:\n +durable schedule {command}\b", text)
    assert {"--help", "--dsn", "--output"} <= set(re.findall(r"(--[a-z-]+)", text))


# Errors that have nothing to do with what is asked.


@pytest.mark.parametrize("command", [["install"], ["list"], ["enqueue", "w"], ["show", str(uuid.uuid4())]])
def test_without_a_database_it_says_how_to_name_one(command: list[str]) -> None:
    assert "--dsn" in (report := Cli(None).fail(*command))
    assert "DURABLE_DSN" in report


def test_a_worker_without_a_database_says_how_to_name_one() -> None:
    assert "DURABLE_DSN" in Cli(None).fail("worker", "client.programs:app")


def test_a_server_that_is_not_there_is_named() -> None:
    report = Cli("host=127.0.0.1 port=1 dbname=nothing").fail("list")
    assert "port 1" in report
    assert "Hint: Check --dsn" in report


def test_a_dsn_that_is_none_is_reported() -> None:
    assert "the DSN is not valid" in Cli(None).fail("list", "--dsn", "my database")


def test_a_dsn_on_the_command_line_is_used_before_the_environment(cli: Cli, db: Database) -> None:
    cli.env["DURABLE_DSN"] = "host=127.0.0.1 port=1"
    assert cli.read_json("list", "--dsn", db.dsn) == []


@pytest.mark.parametrize("command", [["list"], ["enqueue", "w"], ["worker", "client.programs:app"]])
def test_a_database_without_the_schema_is_reported_with_what_to_do(empty: Database, command: list[str]) -> None:
    assert "durable install" in Cli(empty.dsn).fail(*command)


@pytest.mark.parametrize(
    "command",
    [["install"], ["list"], ["worker", "client.programs:app"], ["worker", "client.programs:app", "--processes=2"]],
)
def test_a_schema_of_another_version_is_refused(cli: Cli, db: Database, command: list[str]) -> None:
    db.connect().execute(
        "create or replace function durable.version() returns text language sql as $$ select '0.2.0' $$"
    )
    report = cli.fail(*command)
    assert "0.2.0" in report
    assert "Upgrade durable-client" in report


def test_a_role_without_the_right_is_told_who_can_give_it(cli: Cli, db: Database) -> None:
    role = f"guest_{uuid.uuid4().hex[:8]}"
    conn = db.connect()
    conn.execute(f"create role {role} login".encode())
    try:
        call(conn, "grant_client", role)
        dsn = db.cluster.dsn(db.name, role)
        assert cli.read("enqueue", "w", "--dsn", dsn)
        assert "grant_observer" in cli.fail("list", "--dsn", dsn)
    finally:
        conn.execute(f"drop owned by {role}; drop role {role}".encode())


# Install.


@EACH_END
def test_install_makes_the_extension_where_the_server_has_it(empty: Database) -> None:
    cli = Cli(empty.dsn)
    installed = cli.read_json("install")
    assert (installed["form"], installed["installed"]) == ("extension", True)
    again = cli.read_json("install")
    assert again == installed | {"installed": False}
    assert "already installed" in cli.read("install")
    assert value(empty.connect(), "select extversion from pg_extension where extname = 'durable'") == again["version"]


@EACH_END
def test_install_as_plain_sql_also_where_the_server_has_the_extension(empty: Database) -> None:
    cli = Cli(empty.dsn)
    assert cli.read_json("install", "--form", "sql")["form"] == "sql"
    assert "already installed as plain SQL" in cli.read("install")
    assert cli.read("enqueue", "w")


@EACH_END
def test_two_installs_at_once_both_succeed_and_one_of_them_installs(empty: Database) -> None:
    cli = Cli(empty.dsn)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: cli.read_json("install"), range(3)))
    assert sorted(answer["installed"] for answer in answers) == [False, False, True]


@pytest.mark.parametrize("form", ["extension", "sql"])
def test_install_refuses_a_database_of_another_encoding_and_says_what_to_do(cluster: Cluster, form: str) -> None:
    name = f"latin_{uuid.uuid4().hex[:8]}"
    with cluster.connect() as admin:
        admin.execute(f"create database {name} encoding 'LATIN1' locale 'C' template template0".encode())
        try:
            said = Cli(cluster.dsn(name)).fail("install", "--form", form)
            assert f"durable needs a database with the encoding UTF8; {name} has LATIN1" in said
            assert "create database NAME encoding 'UTF8'" in said
            assert "Traceback" not in said
        finally:
            admin.execute(f"drop database {name} with (force)".encode())


@EACH_END
def test_install_leaves_a_schema_of_that_name_alone_that_is_not_its_own(empty: Database) -> None:
    empty.connect().execute("create schema durable create table mine (n int)")
    assert "Nothing was changed" in Cli(empty.dsn).fail("install")
    assert value(empty.connect(), "select count(*) from pg_class where relnamespace = 'durable'::regnamespace") == 1


# Enqueue.


@EACH_END
def test_enqueue_passes_on_everything_it_is_told(cli: Cli, db: Database) -> None:
    answer = cli.read_json(
        *("enqueue", "fulfil", '{"id": 7}', "--queue", "orders", "--key", "order-7", "--priority", "-3"),
        *("--delay", "1h", "--max-attempts", "4", "--timeout", "90s", "--tag", "shop=7", "--tag", "text=a=b c"),
    )
    assert answer.keys() == {"workflow_id"}
    row = workflow(db.connect(), answer["workflow_id"])
    assert (row.name, row.input, row.queue, row.key, row.priority) == ("fulfil", {"id": 7}, "orders", "order-7", -3)
    assert (row.max_attempts, row.timeout.total_seconds(), row.tags) == (4, 90, {"shop": "7", "text": "a=b c"})
    assert 3590 < (row.wake_at - row.created_at).total_seconds() <= 3601


@EACH_END
def test_enqueue_takes_a_time_with_its_offset(cli: Cli, db: Database) -> None:
    answer = cli.read_json("enqueue", "w", "--run-at", "2100-12-24T18:00:00+02:00")
    row = workflow(db.connect(), answer["workflow_id"])
    assert row.wake_at == datetime(2100, 12, 24, 16, tzinfo=timezone.utc)


def test_enqueue_with_a_known_key_prints_the_same_id(cli: Cli) -> None:
    first = cli.read_json("enqueue", "w", "--key", "k")
    assert cli.read_json("enqueue", "w", "--key", "k") == first
    assert first["workflow_id"] in cli.fail("enqueue", "other", "--key", "k")


def test_enqueue_keeps_every_digit_of_a_number_and_show_gives_it_back(cli: Cli) -> None:
    number = "12345678901234567890.1234567890123456789"
    answer = cli.read_json("enqueue", "w", "-", stdin=f'{{"n": {number}}}')
    assert cli.read_json("show", answer["workflow_id"])["input"] == {"n": Decimal(number)}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{"], "not valid JSON"),
        (["NaN"], "NaN"),
        (["--delay", "soon"], "not a duration"),
        (["--run-at", "tomorrow"], "not a time"),
        (["--run-at", "2100-01-01", "--delay", "1h"], "not both"),
        (["--tag", "shop"], "KEY=VALUE"),
        (["--priority", "high"], "not a valid integer"),
    ],
)
def test_enqueue_refuses_what_it_cannot_understand(
    cli: Cli, db: Database, arguments: list[str], complaint: str
) -> None:
    assert complaint in cli.fail("enqueue", "w", *arguments, status=2)
    assert rows(db.connect(), "select * from durable.workflows") == []


@pytest.mark.parametrize(
    "arguments", [['"\\u0000"'], ["--priority", "40000"], ["--max-attempts", "0"], ["--queue", ""]]
)
def test_enqueue_reports_what_the_database_refuses(cli: Cli, db: Database, arguments: list[str]) -> None:
    cli.fail("enqueue", "w", *arguments)
    assert rows(db.connect(), "select * from durable.workflows") == []


# List.


@EACH_END
def test_list_gives_documented_fields_the_newest_first(cli: Cli, db: Database) -> None:
    conn = db.connect()
    ids = [str(enqueue(conn)), str(run_one(conn)), str(fail_one(conn))]
    listed = cli.read_json("list")
    assert [item["workflow_id"] for item in listed] == ids[::-1]
    assert all(item.keys() == WORKFLOW_FIELDS for item in listed)
    assert [item["error_message"] for item in listed] == ["the printer is on fire", None, None]


@EACH_END
def test_list_filters_by_everything_it_offers(cli: Cli, db: Database) -> None:
    conn = db.connect()
    waiting = str(enqueue(conn, "fulfil", queue="orders", key="o-1", tags={"shop": "7", "n": 5}))
    done, failed = str(run_one(conn)), str(fail_one(conn))
    conn.execute("select pg_sleep(0.01)")
    moment = value(conn, "select to_char(clock_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.USOF:00')")
    last = str(enqueue(conn, "other"))

    def listed(*arguments: str) -> set[str]:
        return {item["workflow_id"] for item in cli.read_json("list", *arguments)}

    assert listed() == {waiting, done, failed, last}
    assert listed("--status", "failed") == {failed}
    assert listed("--status", "failed", "--status", "completed") == {failed, done}
    assert listed("--name", "fulfil") == listed("--queue", "orders") == listed("--key", "o-1") == {waiting}
    assert listed("--tag", "shop=7", "--tag", "n=5") == {waiting}
    assert listed("--tag", "shop=7", "--tag", "n=6") == set()
    assert listed("--since", moment) == {last}
    assert listed("--since", "1h") == {waiting, done, failed, last}
    assert listed("--since", "0s") == set()
    assert listed("--limit", "1") == {last}
    assert "not a time" in cli.fail("list", "--since", "lately", status=2)


def test_list_into_a_pipe_cuts_nothing_off_and_has_no_colours(cli: Cli, db: Database) -> None:
    message = "no " * 60 + "end"
    workflow_id = str(fail_one(db.connect(), message))
    header, line = cli.read("list").splitlines()
    assert header.split() == ["WORKFLOW", "NAME", "STATUS", "QUEUE", "ATTEMPT", "AGE", "TOOK", "KEY", "ERROR"]
    assert line.startswith(workflow_id)
    assert line.endswith(message)


@pytest.mark.parametrize("columns", [60, 80, 100, 160])
def test_list_on_a_terminal_fits_it_and_keeps_ids_whole(cli: Cli, db: Database, columns: int) -> None:
    conn = db.connect()
    ids = [str(fail_one(conn, "long " * 50)), str(enqueue(conn, "a_name_" * 20)), str(enqueue(conn, "注文" * 30))]
    lines = cli.read_terminal(columns, "list")
    assert [line.split()[0] for line in lines] == ["WORKFLOW", *ids[::-1]]
    assert all("pending" in line for line in lines[1:3])
    assert "failed" in lines[3]
    assert max(map(len, lines)) <= columns


def test_list_says_when_there_is_nothing_and_when_there_is_more(cli: Cli, db: Database) -> None:
    assert "No workflows match" in cli.read("list")
    conn = db.connect()
    enqueue(conn)
    enqueue(conn)
    assert "--limit" in cli.run("list", "--limit", "1").stderr


# Show, cancel, retry.


@EACH_END
def test_show_gives_the_workflow_with_its_steps(cli: Cli, db: Database) -> None:
    workflow_id = str(run_one(db.connect()))
    shown = cli.read_json("show", workflow_id)
    assert shown.keys() == WORKFLOW_FIELDS | {"input", "output", "error", "state", "steps"}
    assert (shown["status"], shown["input"], shown["output"]) == ("completed", {"month": 12}, {"total": 7})
    (step,) = shown["steps"]
    assert step.keys() == STEP_FIELDS
    assert (step["step_name"], step["status"], step["output"]) == ("count", "completed", {"orders": 3})
    text = cli.read("show", workflow_id)
    for piece in (workflow_id, "report", "completed", '{"month": 12}', '{"total": 7}', "count", '{"orders": 3}'):
        assert piece in text


@EACH_END
def test_show_says_why_a_workflow_failed(cli: Cli, db: Database) -> None:
    workflow_id = str(fail_one(db.connect()))
    assert "PrinterError: the printer is on fire" in cli.read("show", workflow_id)
    assert cli.read_json("show", workflow_id)["error"]["type"] == "PrinterError"


def test_show_says_that_a_workflow_lost_its_workers_and_whether_it_is_to_blame(cli: Cli, db: Database) -> None:
    conn = db.connect()
    workflow_id = str(enqueue(conn))
    assert "Lost workers" not in cli.read("show", workflow_id)
    for line in (
        "1 since its last checkpoint; it may be to blame",
        "2 since its last checkpoint; it is a suspect",
        "1 since its last checkpoint, and it was to blame",
    ):
        claim_one(conn)
        kill_worker(conn, "worker")
        call(conn, "recover")
        assert line in cli.read("show", workflow_id)
    assert cli.read_json("show", workflow_id)["suspicions"] == 2


def test_show_does_not_flood_a_terminal_and_json_has_all(cli: Cli, db: Database) -> None:
    workflow_id = str(enqueue(db.connect(), input={"text": "x" * 100_000}))
    assert len(cli.read("show", workflow_id)) < 5_000
    assert len(cli.read_json("show", workflow_id)["input"]["text"]) == 100_000


@pytest.mark.parametrize("command", ["show", "cancel", "pause", "resume", "retry", "fork"])
def test_an_id_that_is_not_there_and_one_that_is_none(cli: Cli, command: str) -> None:
    nobody = "01900000-0000-7000-8000-000000000000"
    assert f"workflow {nobody} not found" in cli.fail(command, nobody)
    assert "UUID" in cli.fail(command, "7", status=2)


@EACH_END
def test_cancel_ends_a_workflow_once(cli: Cli, db: Database) -> None:
    conn = db.connect()
    workflow_id = str(enqueue(conn))
    assert cli.read_json("cancel", workflow_id, "--reason", "twice") == {
        "workflow_id": workflow_id,
        "status": "cancelled",
    }
    row = workflow(conn, workflow_id)  # type: ignore[arg-type]
    assert (row.status, row.error_message) == ("cancelled", "twice")
    assert "it is cancelled" in cli.fail("cancel", workflow_id)
    assert "it is completed" in cli.fail("cancel", str(run_one(conn)))


def asked(conn: psycopg.Connection[Any], subject: str, assignee: str | None = None) -> str:
    """An approval that a running workflow has requested."""
    enqueue(conn, "ask", queue="asking")
    held = claim_one(conn, queues=["asking"])
    ((approval_id,),) = call(
        conn, "request_approval", held.workflow_id, held.lease, "ask", subject, assignee, {"cents": 12000}, "2 days"
    )
    return str(approval_id)


@EACH_END
def test_approvals_gives_documented_fields_of_what_is_pending_the_newest_first(cli: Cli, db: Database) -> None:
    conn = db.connect()
    first, second, third = asked(conn, "first?", "ada"), asked(conn, "second?", "bob"), asked(conn, "third?", "ada")
    listed = cli.read_json("approvals")
    assert [each["approval_id"] for each in listed] == [third, second, first]
    assert set(listed[0]) == APPROVAL_FIELDS
    assert (listed[2]["subject"], listed[2]["form"], listed[2]["state"]) == ("first?", {"cents": 12000}, "pending")
    assert [each["approval_id"] for each in cli.read_json("approvals", "--assignee", "ada")] == [third, first]
    call(conn, "decide", first, "approved", "ada")
    assert [each["approval_id"] for each in cli.read_json("approvals", "--assignee", "ada")] == [third]
    assert [each["decided_by"] for each in cli.read_json("approvals", "--state", "decided")] == ["ada"]
    assert len(cli.read_json("approvals", "--state", "all")) == 3
    assert len(cli.read_json("approvals", "--limit", "1")) == 1
    table = cli.read("approvals", "--state", "all").splitlines()
    assert table[0].split() == [
        "APPROVAL", "SUBJECT", "ASSIGNEE", "STATE", "AGE", "EXPIRES", "IN", "WORKFLOW", "DECISION", "BY", "COMMENT",
    ]  # fmt: skip
    assert "third?" in table[1]
    assert "1 d 23 h" in table[1]
    assert "No approvals match." in cli.read("approvals", "--assignee", "nobody")
    cli.fail("approvals", "--state", "open", status=2)


def test_approvals_on_a_terminal_fit_it_and_keep_ids_whole(cli: Cli, db: Database) -> None:
    approval_id = asked(db.connect(), "a very long question? " * 20)
    lines = cli.read_terminal(80, "approvals")
    assert all(len(line) <= 80 for line in lines)
    assert approval_id in lines[1]


@EACH_END
def test_decide_approves_or_rejects_once(cli: Cli, db: Database) -> None:
    conn = db.connect()
    first, second = asked(conn, "first?"), asked(conn, "second?")
    said = cli.read("decide", first, "approve", "--by", "ada", "--comment", "fine", "--data", '{"cents": 1.50}')
    assert said == f"Approved {first}\n"
    assert cli.read_json("decide", second, "reject") == {"approval_id": second, "decision": "rejected", "decided": True}
    (stored,) = rows(conn, "select * from durable.approvals where approval_id = %s", first)
    assert (stored.decision, stored.decided_by, stored.comment) == ("approved", "ada", "fine")
    assert value(conn, "select data::text from durable.approvals where approval_id = %s", first) == '{"cents": 1.50}'
    assert "nothing was changed" in cli.read("decide", second, "reject", "--by", "bob")
    assert "is decided: rejected" in cli.fail("decide", second, "approve")
    assert "not found" in cli.fail("decide", str(uuid.uuid4()), "approve")
    cli.fail("decide", "7", "approve", status=2)
    cli.fail("decide", first, "maybe", status=2)
    cli.fail("decide", first, "approve", "--data", "{", status=2)


@EACH_END
def test_send_and_emit_wake_what_show_says_waits_for_them(cli: Cli, db: Database) -> None:
    conn = db.connect()
    workflow_id = str(enqueue(conn, queue="waiting"))
    held = claim_one(conn, queues=["waiting"])
    condition = '[{"message": "payment"}, {"event": "strike"}]'
    rows(conn, "select * from durable.wait(%s, %s, 'wait', %s, '1 day')", held.workflow_id, held.lease, condition)
    (step,) = cli.read_json("show", workflow_id)["steps"]
    assert step["waits_for"] == json.loads(condition)
    assert step["wait_until"]
    assert 'waits for [{"message": "payment"}, {"event": "strike"}] until' in cli.read("show", workflow_id)
    assert cli.read_json("emit", "strike", '{"days": 3}') == {"event": "strike", "emitted": True}
    assert workflow(conn, held.workflow_id).status == "pending"
    assert "was emitted before" in cli.read("emit", "strike")
    assert cli.read("send", workflow_id, "payment", '{"cents": 1}', "--key", "k") == f"Sent to {workflow_id}\n"
    assert "nothing was sent" in cli.read("send", workflow_id, "payment", "--key", "k")
    assert rows(conn, "select topic, payload from durable.messages") == [("payment", {"cents": 1})]
    call(conn, "cancel", held.workflow_id)
    assert "has ended (cancelled)" in cli.fail("send", workflow_id, "payment")
    cli.fail("send", "7", "payment", status=2)
    cli.fail("emit", "strike", "{", status=2)


@EACH_END
def test_retry_lets_only_what_failed_or_was_cancelled_go_on(cli: Cli, db: Database) -> None:
    conn = db.connect()
    workflow_id = str(fail_one(conn))
    assert cli.read_json("retry", workflow_id) == {"workflow_id": workflow_id, "status": "pending"}
    assert workflow(conn, workflow_id).status == "pending"  # type: ignore[arg-type]
    assert "It is pending" in cli.fail("retry", workflow_id)


def test_pause_and_resume_say_what_they_did_and_what_they_could_not(cli: Cli, db: Database) -> None:
    conn = db.connect()
    workflow_id = str(enqueue(conn))
    assert "is not paused" in cli.fail("resume", workflow_id)
    expected = {"workflow_id": workflow_id, "status": "pending"}
    assert cli.read_json("pause", workflow_id, "--reason", "the bank is down") == expected
    assert "paused already" in cli.fail("pause", workflow_id)
    assert "the bank is down" in cli.read("show", workflow_id)
    assert "pending, paused" in cli.read("list")
    assert cli.read_json("resume", workflow_id) == expected
    assert "It is completed." in cli.fail("pause", str(run_one(conn)))


def test_fork_passes_on_everything_it_is_told_and_show_tells_the_lineage(cli: Cli, db: Database) -> None:
    conn = db.connect()
    workflow_id = str(run_one(conn))
    forked = cli.read_json(
        "fork", workflow_id, "--from", "count", "--input", '{"month": 11}', "--replace", 'count={"orders": 4}'
    )
    assert forked["forked_from"] == workflow_id
    shown = cli.read_json("show", forked["workflow_id"])
    assert (shown["input"], shown["forked_from"], shown["forked_at_step"]) == ({"month": 11}, workflow_id, "count")
    assert [step["output"] for step in shown["steps"]] == [{"orders": 4}]
    assert f"{workflow_id}, at count" in cli.read("show", forked["workflow_id"])
    assert "has no step 'seven'" in cli.fail("fork", workflow_id, "--from", "seven")
    assert "not valid JSON" in cli.fail("fork", workflow_id, "--replace", "count=x", status=2)


def test_show_tells_what_a_workflow_has_published(cli: Cli, db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    call(conn, "publish", workflow_id, claim_one(conn).lease, "progress", {"done": 3})
    assert cli.read_json("show", str(workflow_id))["state"] == {"progress": {"done": 3}}
    assert '{"done": 3}' in cli.read("show", str(workflow_id))


# Worker.


class WorkerCommand:
    """`durable worker client.programs:app` with more options, in a process group of its own."""

    def __init__(self, dsn: str, journal: Journal, log: Path, *options: str) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [DURABLE, "worker", "client.programs:app", *options],
                cwd=TESTS,
                env=os.environ | {"DURABLE_DSN": dsn, "JOURNAL": str(journal.path)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait(60)

    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, text: str, times: int = 1) -> None:
        give_up = time.monotonic() + PATIENCE
        while self.log().count(text) < times:
            assert time.monotonic() < give_up, self.log()
            time.sleep(0.01)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def start_worker(db: Database, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("DURABLE_DSN", db.dsn)
    started: list[WorkerCommand] = []

    def start(*options: str) -> WorkerCommand:
        started.append(WorkerCommand(db.dsn, journal, tmp_path / f"durable-{len(started)}.log", *options))
        return started[-1]

    yield start
    for worker in started:
        worker.close()
    app.close()


def test_doctor_tells_what_is_wrong_and_what_to_do_and_fails_when_it_is_critical(cli: Cli, db: Database) -> None:
    conn = db.connect()
    conn.execute("delete from durable.tick_marks")
    done = cli.run("doctor")
    assert done.returncode == 1
    assert "critical  ticks: nothing has ticked" in done.stdout
    assert "Start a worker" in done.stdout
    call(conn, "tick")
    assert "ok  ticks: the last tick was" in cli.read("doctor")
    findings = json.loads(cli.read("doctor", "-o", "json"))["findings"]
    assert {frozenset(finding) for finding in findings} == {frozenset(["check", "state", "since", "detail", "remedy"])}
    assert {finding["state"] for finding in findings} <= {"ok", "warning"}
    # Only a warning: a probe must not end a worker for it.
    conn.execute("insert into durable.tick_troubles values ('aged', now(), now(), 'XX000', 'a part that fails')")
    assert "a part that fails" in cli.read("doctor")
    assert Cli("host=/nowhere dbname=durable").run("doctor").returncode == 1


@pytest.mark.parametrize("options", [[], ["--processes", "2"]], ids=["one process", "two processes"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_22_a_signal_drains_nothing_is_lost_and_nothing_runs_twice(
    start_worker: Any, journal: Journal, options: list[str], number: signal.Signals
) -> None:
    names = [f"w{i}" for i in range(6)]
    for name in names:
        journal.hold(f"{name}-1")
    handles = [app.enqueue(programs.chain, {"name": name, "steps": 4}) for name in names]
    worker = start_worker(*options)
    worker.wait_for_log("ready", times=len(options) or 1)
    for name in names:
        journal.wait("square", name, 1)
    worker.send(number)
    worker.wait_for_log("stopping", times=len(options) or 1)
    late = app.enqueue(programs.chain, {"name": "late", "steps": 1})
    for name in names:
        journal.release(f"{name}-1")
    assert worker.wait() == 0
    assert [handle.status() for handle in handles] == ["completed"] * len(handles)
    assert [journal.count("square", name, n) for name in names for n in range(4)] == [1] * (4 * len(names))
    # What came in the meantime waits for the next worker.
    start_worker()
    late.result(timeout=60)
    assert journal.count("square", "late") == 1


def test_03_kill_9_of_a_worker_process_loses_no_step_and_the_process_is_replaced(
    start_worker: Any, journal: Journal
) -> None:
    journal.hold("a-2")
    handle = app.enqueue(programs.chain, {"name": "a", "steps": 4})
    worker = start_worker("--processes", "2")
    journal.wait("square", "a", 2)
    (victim,) = {note[3] for note in journal.read()}
    assert victim != worker.pid
    os.kill(victim, signal.SIGKILL)
    journal.release("a-2")
    assert handle.result(timeout=60) == 0 + 1 + 4 + 9
    assert [journal.count("square", "a", n) for n in range(4)] == [1, 1, 2, 1]
    worker.wait_for_log(f"(pid {victim}) was killed by SIGKILL")
    worker.wait_for_log("ready", times=3)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0


def test_22_worker_processes_drain_when_what_supervises_them_is_killed(start_worker: Any, journal: Journal) -> None:
    journal.hold("a-1")
    handle = app.enqueue(programs.chain, {"name": "a", "steps": 3})
    worker = start_worker("--processes", "2")
    worker.wait_for_log("ready", times=2)
    journal.wait("square", "a", 1)
    worker.send(signal.SIGKILL)
    worker.wait()
    worker.wait_for_log("stopping", times=2)
    journal.release("a-1")
    assert handle.result(timeout=60) == 5
    worker.wait_for_log("stopped", times=2)
    assert journal.count("square") == 3


def test_a_worker_works_on_the_queues_it_is_given(start_worker: Any, journal: Journal) -> None:
    here = app.enqueue(programs.chain, {"name": "here", "steps": 1}, queue="b")
    elsewhere = app.enqueue(programs.chain, {"name": "elsewhere", "steps": 1}, queue="c")
    start_worker("--queues", "a, b")
    here.result(timeout=60)
    assert elsewhere.status() == "pending"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no_such_module:app", "there is no module 'no_such_module'"),
        ("client.no_such_module:app", "there is no module 'client.no_such_module'"),
        ("client.programs:no_app", "Did you mean client.programs:app?"),
        ("client.programs:os", "not Durable"),
    ],
)
def test_an_app_that_is_not_there_is_reported_with_what_is_wrong(cli: Cli, name: str, complaint: str) -> None:
    assert complaint in cli.fail("worker", name)


def test_an_app_with_a_mistake_is_reported_with_the_line_of_it(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("import json\n\nprice = 1 / 0\n")
    done = subprocess.run(
        [DURABLE, "worker", "shop:app"], env=cli.env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "shop.py" in done.stderr
    assert "line 3" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert "importlib" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["shop"], ["shop:"], [":app"], ["shop:app", "--queues", "a,,b"], ["shop:app", "--processes", "0"]]
)
def test_worker_refuses_what_it_cannot_understand(cli: Cli, arguments: list[str]) -> None:
    cli.fail("worker", *arguments, status=2)


def test_a_signal_to_processes_that_still_start_ends_them_all(start_worker: Any) -> None:
    worker = start_worker("--processes", "3")
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
    give_up = time.monotonic() + PATIENCE
    while len(pids := children.read_text().split()) < 3:
        assert time.monotonic() < give_up
        time.sleep(0.005)
    worker.send(signal.SIGINT)
    assert worker.wait() == 0
    assert not any(Path("/proc", pid).exists() for pid in pids)
