"""Settings of the server, a database, a role or a session change nothing that the engine does, or are refused at install."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
import pytest

from clusters import ROOT, Cluster, Database, run
from engine import Connection, advance, enqueue, refused, rows, value
from life import live
from test_install import catalogue, install_plain

HERE = Path(__file__).parent
LEVELS = ("session", "database", "role")
Settings = dict[str, str]

# What a session cannot live with, or is about something else: the first ones have tests of their own below.
NO_LIFE = {
    "default_transaction_read_only", "transaction_read_only", "transaction_isolation", "transaction_deferrable",
    # A client that ends with its first error.
    "exit_on_error",
    # Broken pages.
    "ignore_checksum_failure", "zero_damaged_pages",
}  # fmt: skip
# Those that take more than a switch: values that people use, and the far ends.
BY_HAND: list[Settings] = [
    {"DateStyle": "German"}, {"DateStyle": "SQL, DMY"}, {"DateStyle": "Postgres, YMD"},
    {"TimeZone": "Asia/Kathmandu"}, {"TimeZone": "America/St_Johns"}, {"TimeZone": "UTC-12"}, {"timezone_abbreviations": "Australia"},
    {"client_encoding": "LATIN1"}, {"client_encoding": "SQL_ASCII"}, {"client_encoding": "WIN1252"}, {"client_encoding": "SJIS"},
    {"extra_float_digits": "-15"}, {"extra_float_digits": "3"}, {"search_path": ""}, {"search_path": "durable, public"},
    {"statement_timeout": "60s"}, {"lock_timeout": "60s"}, {"idle_in_transaction_session_timeout": "60s"}, {"idle_session_timeout": "60s"},
    {"work_mem": "64kB"}, {"maintenance_work_mem": "1MB"}, {"hash_mem_multiplier": "1"}, {"temp_buffers": "800kB"},
    {"random_page_cost": "1000", "seq_page_cost": "0"}, {"random_page_cost": "0", "seq_page_cost": "1000"}, {"cpu_tuple_cost": "1000"},
    {"effective_cache_size": "8kB"}, {"default_statistics_target": "1"}, {"cursor_tuple_fraction": "0"}, {"gin_pending_list_limit": "64kB"},
    {"from_collapse_limit": "1", "join_collapse_limit": "1"}, {"geqo_threshold": "2"}, {"commit_delay": "100", "commit_siblings": "0"},
    {"default_tablespace": "pg_default", "temp_tablespaces": "pg_default", "default_table_access_method": "heap"},
    {"jit": "on", "jit_above_cost": "0"},
    {"plpgsql.variable_conflict": "use_variable"}, {"plpgsql.variable_conflict": "use_column"}, {"plpgsql.check_asserts": "off"},
    {"max_parallel_workers_per_gather": "4", "parallel_setup_cost": "0", "parallel_tuple_cost": "0", "min_parallel_table_scan_size": "0"},
    {"plpgsql.extra_errors": "all"}, {"plpgsql.extra_warnings": "all"}, {"plpgsql.print_strict_params": "on"},
]  # fmt: skip
# Of all kinds at once, for all levels.
STRANGE: Settings = {
    "DateStyle": "German", "IntervalStyle": "sql_standard", "TimeZone": "America/St_Johns", "standard_conforming_strings": "off",
    "array_nulls": "off", "quote_all_identifiers": "on", "bytea_output": "escape", "transform_null_equals": "on", "xmloption": "document",
    "extra_float_digits": "-15", "default_transaction_isolation": "read uncommitted", "row_security": "off", "plan_cache_mode": "force_custom_plan",
    "plpgsql.extra_errors": "all", "plpgsql.variable_conflict": "use_variable", "search_path": "durable, public", "work_mem": "64kB",
}  # fmt: skip
STRICT = {"default_transaction_isolation": "serializable", "default_transaction_deferrable": "on"}
PLANLESS: Settings = {
    f"enable_{method}": "off"
    for method in (
        "seqscan", "indexscan", "indexonlyscan", "bitmapscan", "tidscan", "nestloop", "hashjoin", "mergejoin", "sort", "material",
        "hashagg", "memoize", "partition_pruning",
    )
}  # fmt: skip


def switches(conn: Connection) -> list[Settings]:
    """One for each other value of a switch or a list that a user of the database can set, but for what is only logged."""
    # Its settings are known from when it is used first.
    conn.execute("load 'plpgsql'")
    found = rows(
        conn,
        """select name, vartype, setting, enumvals from pg_settings
           where context in ('user', 'superuser') and vartype in ('bool', 'enum') and category not like 'Reporting%'
             and name not like 'debug_print%' order by name""",
    )
    return [
        {one.name: other}
        for one in found
        if one.name not in NO_LIFE
        for other in (one.enumvals or ["on", "off"])
        if other != one.setting
    ]


@contextlib.contextmanager
def database_with(cluster: Cluster, settings: Settings, level: str, template: str | None = None) -> Iterator[Database]:
    """A database, and sessions in it, that have the settings at that level; ``dsn`` has them, too."""
    db = cluster.create_database(template=template)
    user = f"user_{db.name}" if level == "role" else "postgres"
    with cluster.connect() as conn:
        if level == "role":
            conn.execute(f"create role {user} superuser login".encode())
        for name, setting in settings.items() if level != "session" else ():
            of = f"database {db.name}" if level == "database" else f"role {user}"
            literal = "''" if not setting else ", ".join(f"'{part.strip()}'" for part in setting.split(","))
            conn.execute(f"alter {of} set {name} = {literal}".encode())
        db.dsn = cluster.dsn(db.name, user)
        if level == "session":
            # As in the conninfo of a client.
            options = " ".join(
                f"-c {name}={setting}".replace(" ", r"\ ").replace(r"-c\ ", "-c ") for name, setting in settings.items()
            )
            db.dsn += " options='{}'".format(options.replace("\\", "\\\\").replace("'", "\\'"))
        try:
            yield db
        finally:
            db.drop()
            if level == "role":
                conn.execute(f"drop role {user}".encode())


@contextlib.contextmanager
def connected(db: Database) -> Iterator[Connection]:
    with psycopg.connect(db.dsn, autocommit=True) as conn:
        yield conn


def check(cluster: Cluster, settings: Sequence[Settings], levels: Sequence[str]) -> None:
    """Lives with each of the settings, each at the next of the levels, and fails with what comes out otherwise."""
    with database_with(cluster, {}, "session") as db, connected(db) as conn:
        expected = live(conn)
    found = []
    for one, level in zip(settings, itertools.cycle(levels), strict=False):
        with database_with(cluster, one, level) as db, connected(db) as conn:
            account = live(conn)
        differing = [(a, b) for a, b in itertools.zip_longest(expected, account) if a != b]
        for (query, came), other in differing[:5]:
            rows_of = (
                zip(came, other[1], strict=False) if isinstance(came, list) and query == other[0] else [(came, other)]
            )
            found += [f"{one} of the {level}: {query}", *(f"  {a}\n  {b}" for a, b in rows_of if a != b)]
    if found:
        pytest.fail("\n".join(found))


def in_bundles(settings: Sequence[Settings], size: int = 6) -> list[Settings]:
    """So many at a time, never two values of one setting."""
    count = -(-len(settings) // size)
    bundles: list[Settings] = [{} for _ in range(count)]
    for n, one in enumerate(settings):
        bundle = bundles[n % count]
        assert not bundle.keys() & one.keys()
        bundle.update(one)
    return bundles


@pytest.mark.pg(15, 18)
@pytest.mark.parametrize("part", range(4))
def test_no_switch_changes_anything(cluster: Cluster, part: int) -> None:
    with cluster.connect() as conn:
        settings = in_bundles(switches(conn))
    check(cluster, settings[part::4], LEVELS)


@pytest.mark.pg(15)
@pytest.mark.parametrize("part", range(2))
def test_no_value_changes_anything(cluster: Cluster, part: int) -> None:
    check(cluster, in_bundles(BY_HAND)[part::2], LEVELS)


@pytest.mark.parametrize("settings", [STRANGE, STRICT, PLANLESS], ids=["strange", "strict", "planless"])
def test_many_settings_at_once_change_nothing_at_any_level(cluster: Cluster, settings: Settings) -> None:
    check(cluster, [settings] * len(LEVELS), LEVELS)


@pytest.mark.pg(15)
@pytest.mark.parametrize("settings", [STRANGE, PLANLESS], ids=["strange", "planless"])
def test_the_files_of_pgtap_pass_with_many_settings_at_once(cluster: Cluster, settings: Settings) -> None:
    with database_with(cluster, settings, "database") as db:
        db.connect().execute("create extension pgtap schema public")
        for file in sorted((HERE / "sql").glob("*.sql")):
            psql = cluster.installation.tool("psql")
            output = run(psql, "-X", "-a", "-q", "-v", "ON_ERROR_STOP=1", "-d", db.dsn, "-f", str(file))
            assert output == (HERE / f"expected/{file.stem}.out").read_text()


# Other people's names

OPERANDS = [
    "text", "int2", "int4", "int8", "uuid", "jsonb", "timestamptz", "timestamp", "interval", "date", "bool", "numeric", "float8", "bit",
    "varbit", "tid", "xid8", "name", "oid",
]  # fmt: skip


def make_lookalikes(conn: Connection) -> None:
    """The schema evil: tables, types, functions and operators named as those that durable uses, and all of them traps."""
    conn.execute("create schema evil")
    tables = "select relname from pg_class where relnamespace = 'durable'::regnamespace and relkind in ('r', 'p', 'v')"
    for (name,) in rows(conn, tables):
        conn.execute(f"create table evil.{name} (trap integer)".encode())
    for name in ("uuid", "jsonb", "text", "date", "regclass", "xid8", "tid", "timestamptz", "oid", "name"):
        conn.execute(f"create domain evil.{name} as pg_catalog.{name} check (false)".encode())
    # What cannot be made is no trap: a polymorphic result without such an argument, say.
    conn.execute(
        """create procedure evil.make(head text) language plpgsql as $make$
           begin
             execute 'create function evil.' || head || $$ language plpgsql as 'begin raise ''a trap''; end' $$;
           exception when invalid_function_definition or feature_not_supported or duplicate_function then
             null;
           end $make$"""
    )
    source = value(conn, "select string_agg(prosrc, ' ') from pg_proc where pronamespace = 'durable'::regnamespace")
    functions = rows(
        conn,
        """select format('%%I(%%s) returns %%s', p.proname, pg_get_function_identity_arguments(p.oid),
             pg_get_function_result(p.oid)) as head
           from pg_proc p
           where p.pronamespace = 'pg_catalog'::regnamespace and p.proname = any(%s) and p.prokind = 'f'
             and 'internal'::regtype <> all(p.proargtypes) and p.prorettype not in ('internal'::regtype, 'trigger'::regtype)
           union
           select format('%%I(%%s) returns bigint', a, t) from unnest('{count,max,min,array_agg,sum}'::text[]) a, unnest(%s::text[]) t""",
        sorted(set(re.findall(r"\b([a-z_0-9]+)\(", source))),
        OPERANDS,
    )
    operators = rows(
        conn,
        """select o.oprname, o.oprleft::regtype::text as l, o.oprright::regtype::text as r, o.oprresult::regtype::text as result
           from pg_operator o
           where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprresult <> 0
             and array[o.oprleft, o.oprright] && %s::regtype[]::oid[]
             and not exists (select from pg_type t where t.oid in (o.oprleft, o.oprright) and t.typtype = 'p')""",
        OPERANDS,
    )
    assert len(functions) > 100
    assert len(operators) > 300
    for (head,) in functions:
        conn.execute("call evil.make(%s)", [head])
    for n, one in enumerate(operators):
        sides = {side: of for side, of in (("leftarg", one.l), ("rightarg", one.r)) if of != "-"}
        conn.execute(f"call evil.make('operator_{n}({', '.join(sides.values())}) returns {one.result}')".encode())
        parts = ", ".join(f"{side} = {of}" for side, of in sides.items())
        conn.execute(f"create operator evil.{one.oprname} ({parts}, function = evil.operator_{n})".encode())


@pytest.mark.pg(15, 18)
def test_a_search_path_with_other_peoples_namesakes_first_changes_nothing(cluster: Cluster) -> None:
    with database_with(cluster, {}, "session") as db, connected(db) as conn:
        expected = live(conn)
    with database_with(cluster, {}, "session") as db, connected(db) as conn:
        make_lookalikes(conn)
        conn.execute("set search_path = evil, pg_catalog")
        for trapped in ("clock_timestamp()", "1 = 1", "'01900000-0000-7000-8000-000000000000'::uuid", "count(1)"):
            with pytest.raises(psycopg.Error):
                conn.execute(f"select {trapped}".encode())
        assert live(conn, search_path="evil, durable, pg_catalog") == expected


# Other people's databases


@pytest.mark.pg(15)
@pytest.mark.parametrize(
    "locale",
    [
        "locale 'C'",
        "locale 'C.UTF-8'",
        "locale 'C' locale_provider icu icu_locale 'tr-TR'",
        "locale 'C' locale_provider icu icu_locale 'en-US-u-kf-upper'",
    ],
)
def test_the_locale_of_the_database_changes_nothing(cluster: Cluster, locale: str) -> None:
    with database_with(cluster, {}, "session") as db, connected(db) as conn:
        expected = live(conn)
    name = f"located_{os.getpid()}"
    with cluster.connect() as admin:
        admin.execute(f"create database {name} encoding 'UTF8' {locale} template template0".encode())
        try:
            with cluster.connect(name) as conn:
                conn.execute("create extension durable")
                conn.execute("select durable.tick()")
                assert live(conn) == expected
        finally:
            admin.execute(f"drop database {name} with (force)".encode())


@pytest.mark.pg(15)
@pytest.mark.parametrize("become", ["role", "session authorization"])
def test_an_owner_who_is_no_superuser_and_whom_another_role_became_does_the_same(cluster: Cluster, become: str) -> None:
    with database_with(cluster, {}, "session") as db, connected(db) as conn:
        expected = live(conn)
    with database_with(cluster, {}, "session", "template0") as db, connected(db) as conn:
        owner = f"owner_{db.name}"
        conn.execute(f"create role {owner}".encode())
        conn.execute(f"grant create on database {db.name} to {owner}".encode())
        conn.execute(f"set {become} {owner}".encode())
        install_plain(conn)
        conn.execute("select durable.tick()")
        assert live(conn) == expected
        conn.execute(f"reset {become}".encode())
        conn.execute(f"drop owned by {owner} cascade; drop role {owner}".encode())


@pytest.mark.pg(15)
def test_an_event_trigger_that_keeps_a_log_changes_nothing(cluster: Cluster) -> None:
    with database_with(cluster, {}, "session") as db, connected(db) as conn:
        expected = live(conn)
    with database_with(cluster, {}, "session") as db, connected(db) as conn:
        conn.execute(
            """create table log (tag text, what text);
               create function log_end() returns event_trigger language plpgsql as $$
               begin insert into public.log select tg_tag, object_identity from pg_event_trigger_ddl_commands(); end $$;
               create function log_drop() returns event_trigger language plpgsql as $$
               begin insert into public.log select tg_tag, object_identity from pg_event_trigger_dropped_objects(); end $$;
               create event trigger log_end on ddl_command_end execute function log_end();
               create event trigger log_drop on sql_drop execute function log_drop()"""
        )
        assert live(conn) == expected
        assert {tag for (tag,) in rows(conn, "select tag from log")} >= {"CREATE TABLE", "ALTER TABLE", "DROP TABLE"}


@pytest.mark.pg(15)
def test_an_event_trigger_that_refuses_tables_stops_nothing_but_the_making_and_dropping_of_days(db: Database) -> None:
    conn = db.connect()
    conn.execute("select durable._provision_partitions('2020-02-29', '2020-02-29')")
    advance(conn, "10 days")
    conn.execute(
        """create function refuse() returns event_trigger language plpgsql as $$ begin raise 'not in office hours'; end $$;
           create event trigger refuse_tables on ddl_command_start when tag in ('CREATE TABLE', 'DROP TABLE')
             execute function refuse()"""
    )
    enqueue(conn, run_at="2200-01-01")
    conn.execute("update durable.live_workflows set wake_at = durable._now()")
    reports = [value(conn, "select durable.tick()") for _ in range(4)]
    for report in reports:
        assert "not in office hours" in report.pop("partitions")["error"]
        assert not [part for part, done in report.items() if isinstance(done, dict)]
    assert sum(report["woken"] for report in reports) == 1
    assert sum(report["dropped"] for report in reports) == 0
    conn.execute("drop event trigger refuse_tables")
    while value(conn, "select durable.tick()")["dropped"] == 0:
        pass


# Isolation, and sessions that may not write


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_stricter_default_of_isolation_drops_days_by_pg_cron_and_says_that_a_tick_by_hand_does_not(
    cluster: Cluster, level: str
) -> None:
    there = "select count(*) from pg_class where relkind = 'r' and relname ~ '_2020'"
    settings = {"default_transaction_isolation": level, "default_transaction_read_only": "on"}
    with cluster.connect() as admin:
        db = cluster.create_database()
        with db.connect() as conn:
            conn.execute("select durable._provision_partitions('2020-02-29', '2020-03-01')")
        for name, setting in settings.items():
            admin.execute(f"alter database {db.name} set {name} = '{setting}'".encode())
    with db.connect() as conn, db.connect() as writer:
        # A message that no trigger wakes anybody for.
        writer.execute("set default_transaction_read_only = off")
        for _ in range(5):
            report = value(writer, "select durable.tick()")
            assert report["isolation"] == level
            assert not [part for part, done in report.items() if isinstance(done, dict)]
        assert value(conn, there) == 4
        give_up = time.monotonic() + 60
        while value(conn, there) > 0:
            assert time.monotonic() < give_up
            # What pg_cron calls.
            conn.execute("call durable._tick_for('100 milliseconds')")
    db.drop()


def test_a_session_that_may_not_write_reads_and_is_told_so_by_postgres(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    reader = db.connect(options="-c default_transaction_read_only=on")
    assert value(reader, "select durable.status(%s)", workflow_id) == "pending"
    assert value(reader, "select count(*) from durable.workflows") == 1
    assert value(reader, "select count(*) from durable.history(%s)", workflow_id) == 0
    value(reader, "select durable.cron_next('@daily', now())")
    for call_ in ("enqueue('w')", "cancel(%s)", "emit('news')", "tick()"):
        with refused("25006"):
            reader.execute(f"select durable.{call_}".encode(), [workflow_id] if "%s" in call_ else None)


# What is compiled costs more than it saves


@pytest.mark.pg(15)
def test_no_call_is_compiled(cluster: Cluster) -> None:
    with database_with(cluster, {"jit": "on"}, "database") as db, connected(db) as conn:
        plans: list[str] = []
        conn.add_notice_handler(lambda notice: plans.append(str(notice.message_primary)))
        # Tells the plans of what functions do, too.
        conn.execute("load 'auto_explain'")
        for name, setting in {
            "log_nested_statements": "on",
            "log_min_duration": "0",
            "log_analyze": "on",
            "log_timing": "off",
        }.items():
            conn.execute(f"set auto_explain.{name} = {setting}".encode())
        conn.execute("set client_min_messages = log")
        live(conn)
        assert len(plans) > 1000
        assert [plan for plan in plans if "JIT:" in plan] == []


def test_what_forbids_plans_forbids_to_compile_them(db: Database) -> None:
    """What a forbidden plan seems to cost is a reason to compile it."""
    found = rows(
        db.connect(),
        """select oid::regprocedure::text from pg_proc where pronamespace = 'durable'::regnamespace
           and 'enable_seqscan=off' = any(proconfig) and 'jit=off' <> all(proconfig)""",
    )
    assert found == []


# Installing


@pytest.mark.parametrize("settings", [STRANGE, STRICT, PLANLESS], ids=["strange", "strict", "planless"])
def test_both_forms_install_the_same_with_many_settings_at_once(
    cluster: Cluster, db: Database, settings: Settings
) -> None:
    expected = catalogue(db.connect())
    for form in ("create extension durable", "plain"):
        # The first would only be seen in how the catalog shows what is the same.
        these = settings | {"quote_all_identifiers": "off", "check_function_bodies": "on"}
        with database_with(cluster, these, "database", "template0") as other, connected(other) as conn:
            if form == "plain":
                install_plain(conn)
            else:
                conn.execute(form.encode())
            conn.execute(f"alter database {other.name} reset all".encode())
            assert catalogue(other.connect()) == expected


@pytest.mark.pg(15)
@pytest.mark.parametrize("encoding", ["LATIN1", "SJIS", "GB18030", "SQL_ASCII"])
def test_psql_installs_the_plain_file_whatever_its_encoding(cluster: Cluster, db: Database, encoding: str) -> None:
    with database_with(cluster, {"client_encoding": encoding}, "session", "template0") as other:
        psql = cluster.installation.tool("psql")
        run(psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-1", "-d", other.dsn, "-f", str(ROOT / "build/durable.sql"))
        assert catalogue(other.connect()) == catalogue(db.connect())


@contextlib.contextmanager
def database_of(cluster: Cluster, encoding: str) -> Iterator[str]:
    """The name of an empty database with another encoding."""
    name = f"encoded_{os.getpid()}"
    with cluster.connect() as admin:
        admin.execute(f"create database {name} encoding '{encoding}' locale 'C' template template0".encode())
        try:
            yield name
        finally:
            admin.execute(f"drop database {name} with (force)".encode())


@pytest.mark.pg(15, 18)
def test_a_database_of_any_other_encoding_is_refused_by_both_forms(cluster: Cluster) -> None:
    with cluster.connect() as admin:
        encodings = [name for (name,) in rows(admin, "select pg_encoding_to_char(n) from generate_series(0, 34) n")]
        assert {"UTF8", "SQL_ASCII", "LATIN1", "EUC_JP", "WIN1252"} <= set(encodings)
    for encoding in encodings:
        if encoding == "UTF8":
            continue
        with database_of(cluster, encoding) as name:
            for form in (["-c", "create extension durable"], ["-1", "-f", str(ROOT / "build/durable.sql")]):
                # Some encodings only psql can speak.
                with pytest.raises(RuntimeError) as info:
                    run(
                        cluster.installation.tool("psql"), "-X", "-v", "ON_ERROR_STOP=1", "-d", cluster.dsn(name), *form
                    )
                # Nothing that belongs to the schema is left either, or the second form would say so.
                assert f"ERROR:  durable needs a database with the encoding UTF8; {name} has {encoding}" in str(
                    info.value
                )
                assert "create database NAME encoding 'UTF8' template template0" in str(info.value)


@pytest.mark.pg(15, 18)
def test_a_plain_file_that_goes_on_after_it_was_refused_installs_nothing(cluster: Cluster) -> None:
    with database_of(cluster, "LATIN1") as name:
        psql, file = cluster.installation.tool("psql"), ROOT / "build/durable.sql"
        run(psql, "-X", "-q", "-d", cluster.dsn(name), "-f", str(file))
        with psycopg.connect(cluster.dsn(name)) as conn:
            assert value(conn, "select count(*) from pg_namespace where nspname = 'durable'") == 0
            assert value(conn, "select count(*) from pg_class where relname = 'live_workflows'") == 0


# The source


def test_the_scripts_are_of_plain_characters_and_their_literals_mean_one_thing() -> None:
    for file in sorted((ROOT / "sql").rglob("*.sql")):
        text = file.read_text()
        assert text.isascii(), f"{file.name}: a client or a database of another encoding could not read it"
        code = re.sub(r"--.*|^\\echo.*", "", text, flags=re.MULTILINE)
        literals = re.findall(r"(?<![eE])'(?:[^']|'')*'", code)
        assert [literal for literal in literals if "\\" in literal] == [], (
            f"{file.name}: see standard_conforming_strings"
        )
