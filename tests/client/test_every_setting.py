"""A worker and a program come to the same end whatever the settings of the database are."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from durable_client import Durable, Handle, ResultTimeout, Schedule, WorkflowFailed

from client.programs import TEXT
from client.workers import Processes
from clusters import Cluster, Database
from engine import rows, value

Settings = dict[str, str]

# What a session can have that a client may stumble over.
SETTINGS: list[Settings] = [
    {"default_transaction_isolation": "repeatable read"}, {"default_transaction_isolation": "serializable"},
    {"default_transaction_deferrable": "on"}, {"statement_timeout": "20s"}, {"lock_timeout": "5s"},
    {"idle_in_transaction_session_timeout": "5s"}, {"idle_session_timeout": "1s"}, {"DateStyle": "German"}, {"DateStyle": "SQL, DMY"},
    {"DateStyle": "Postgres, DMY"}, {"IntervalStyle": "iso_8601"}, {"IntervalStyle": "sql_standard"}, {"IntervalStyle": "postgres_verbose"},
    {"TimeZone": "Asia/Kathmandu"}, {"TimeZone": "America/St_Johns"}, {"TimeZone": "UTC-12"}, {"client_encoding": "LATIN1"},
    {"client_encoding": "SQL_ASCII"}, {"client_encoding": "EUC_JP"}, {"client_encoding": "WIN1252"}, {"standard_conforming_strings": "off"},
    {"array_nulls": "off"}, {"extra_float_digits": "-15"}, {"bytea_output": "escape"}, {"transform_null_equals": "on"},
    {"quote_all_identifiers": "on"}, {"row_security": "off"}, {"session_replication_role": "replica"}, {"search_path": "durable, public"},
    {"search_path": "evil, public, pg_catalog"}, {"synchronous_commit": "off"}, {"synchronous_commit": "remote_apply"}, {"jit_above_cost": "0"},
    {"plan_cache_mode": "force_custom_plan"}, {"plan_cache_mode": "force_generic_plan"}, {"work_mem": "64kB"},
    {"plpgsql.extra_errors": "all"}, {"plpgsql.variable_conflict": "use_column"}, {"client_min_messages": "debug1"},
    {"debug_parallel_query": "on", "parallel_setup_cost": "0", "parallel_tuple_cost": "0"}, {"transaction_timeout": "5s"},
]  # fmt: skip


def lookalikes(db: Database) -> None:
    """A schema whose functions, type and operator are named as those that a client may use without saying whose they are."""
    db.connect().execute(
        """create schema evil;
           create function evil.pg_backend_pid() returns integer language sql as 'select 7';
           create function evil.make_interval(secs double precision) returns interval language sql as $$ select interval '1 year' $$;
           create function evil.to_timestamp(double precision) returns timestamptz language sql as $$ select 'infinity'::timestamptz $$;
           create function evil.hashtext(text) returns integer language sql as 'select 7';
           create function evil.never(int4, int4) returns boolean language sql as 'select false';
           create operator evil.= (leftarg = int4, rightarg = int4, function = evil.never);
           create table evil.settings (trap integer)"""
    )


def work_under(cluster: Cluster, settings: Settings, directory: Path) -> list[str]:
    """What came out otherwise with these settings of the database."""
    directory.mkdir()
    wrong: list[str] = []

    def check(what: str, found: object, expected: object) -> None:
        if found != expected:
            wrong.append(f"{settings}: {what} is {found!r} instead of {expected!r}")

    db = cluster.create_database()
    lookalikes(db)
    db.connect().execute("create table public.bookings (n integer not null)")
    with cluster.connect() as admin:
        for name, setting in settings.items():
            literal = ", ".join(f"'{part.strip()}'" for part in setting.split(",")) or "''"
            admin.execute(f"alter database {db.name} set {name} = {literal}".encode())
    with contextlib.closing(Durable(db.dsn)) as app, contextlib.closing(Processes(db.dsn, directory)) as processes:
        log = directory / "worker-0.log"
        log.touch()
        process = processes.start()

        def result(handle: Handle[Any]) -> Any:
            give_up = time.monotonic() + 60
            while True:
                try:
                    return handle.result(timeout=1)
                except ResultTimeout:
                    if not process.running() or time.monotonic() > give_up:
                        raise

        try:
            everything = app.enqueue("with_text", 5, key="one of them", run_at=datetime(2026, 1, 1, tzinfo=UTC))
            failing = app.enqueue_many(
                "failing_with_text", list(range(10)), keys=["NULL", None, *(f"k{n}" for n in range(7)), None]
            )
            check("how many there are", len({handle.workflow_id for handle in failing}), 10)
            everything.send("mail", {"text": TEXT, "price": 0.1})
            app.emit("news", TEXT)
            text, booked, mail, news, shares, later = result(everything)
            check("the result", [text, booked, mail, news, later], [TEXT, 11, {"text": TEXT, "price": 0.1}, TEXT, True])
            check("the children's", shares, [0, 1, shares[2], 3])
            check("the child that failed", TEXT in shares[2], True)
            for n, handle in enumerate(failing):
                with pytest.raises(WorkflowFailed) as info:
                    result(handle)
                check("what failed", f"{TEXT} {n}" in str(info.value), True)
            steps = everything.steps()
            check("the steps", sum(step.completed_at is not None for step in steps), len(steps))
            leap = Schedule("leap", "0 0 29 2 *", "with_text", timezone="Asia/Kathmandu")
            due = app.client.apply_schedules([leap])["leap"]
            check("when it is due", due is not None and f"{due.astimezone(UTC):%m-%d %H:%M}", "02-28 18:15")
            check("when it is due", app.client.next_firings("leap", 1), [due])
        except Exception as error:  # noqa: BLE001 - one of many
            wrong.append(f"{settings}: {error!r}")
        check("the worker", process.running(), True)
        process.terminate()
        check("its end", process.wait(), 0)
        if wrong:
            # All but the failures that are meant.
            wrong += [line for line in log.read_text().splitlines() if TEXT not in line][-20:]
    conn = db.connect(options="-c client_encoding=UTF8 -c search_path=public")
    check("the bookings", sorted(rows(conn, "select n from bookings")), [(5,), (6,)])
    check("what is left", value(conn, "select count(*) from durable.live_workflows"), 0)
    db.drop()
    return wrong


@pytest.mark.pg(15, 18)
@pytest.mark.parametrize("part", range(2))
def test_a_worker_and_a_program_come_to_the_same_end_under_every_setting(
    cluster: Cluster, tmp_path: Path, part: int
) -> None:
    with cluster.connect() as conn:
        conn.execute("load 'plpgsql'")
        known = {name for (name,) in rows(conn, "select name from pg_settings")}
    settings = [one for one in SETTINGS if one.keys() <= known][part::2]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda n: work_under(cluster, settings[n], tmp_path / str(n)), range(len(settings)))
        assert "\n".join(line for lines in found for line in lines) == ""
