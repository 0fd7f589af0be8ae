"""A hot standby: what reads answers, and what writes is refused with the code by which clients know one."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest

from clusters import Cluster, Clusters, Database
from engine import Connection, call, claim_one, enqueue, refused, rows, value

pytestmark = pytest.mark.pg(15, 18)

# For any parameter by its name, or else by its type: what the checks of arguments let pass.
ARGUMENTS = {
    "audience": "'client'", "role": "current_user::regrole", "cron": "'@hourly'", "timezone": "'UTC'",
    "overlap": "'skip'", "catchup_mode": "'all'", "mode": "'any'", "conditions": "jsonb '[]'", "options": "jsonb '{}'",
}  # fmt: skip
BY_FUNCTION = {
    ("configure", "name"): "'lease'",
    ("configure", "value"): "'1 minute'",
    ("retain", "workflow"): "null",
    # A count of firings.
    ("schedule", "max_firings"): "null",
    ("schedule", "ends_at"): "null",
}
BY_TYPE = {
    "uuid": "(select workflow_id from durable.workflows)", "bigint": "1", "integer": "1", "text": "'k'",
    "jsonb": "jsonb '{}'", "interval": "interval '1 second'", "boolean": "true", "double precision": "2",
    "timestamp with time zone": "now()", "regrole": "current_user::regrole",
}  # fmt: skip
# They ask for pg_cron first.
NOT_HERE = {"enable_pg_cron", "disable_pg_cron"}


@pytest.fixture(scope="module")
def pair(clusters: Clusters, cluster: Cluster) -> Iterator[tuple[Database, Database]]:
    """A database of a primary in which something is under way, and its standby."""
    with clusters.standby(cluster) as standby:
        database = cluster.create_database()
        conn = database.connect()
        workflow_id = enqueue(conn)
        claimed = claim_one(conn, "k")
        call(conn, "request_approval", workflow_id, claimed.lease, "ask", "may I?")
        call(conn, "schedule", "k", "@hourly", "w")
        call(conn, "idle", "k")
        enqueue(conn, "other")
        conn.execute("delete from durable.live_workflows where name = 'other'")
        caught_up(conn, standby)
        copy = Database(standby, database.name)
        yield database, copy
        copy.disconnect()
        database.drop()


def caught_up(conn: Connection, standby: Cluster) -> None:
    """Returns when the standby has replayed all that is committed."""
    lsn = value(conn, "select pg_current_wal_lsn()")
    give_up = time.monotonic() + 60
    with standby.connect() as asking:
        while not value(asking, "select pg_last_wal_replay_lsn() >= %s::pg_lsn", lsn):
            assert time.monotonic() < give_up, "the standby lags behind"
            time.sleep(0.02)


def argument(function: str, name: str, kind: str) -> str:
    if (function, name) in BY_FUNCTION:
        return BY_FUNCTION[function, name]
    if kind.endswith("[]"):
        return f"array[{BY_TYPE[kind[:-2]]}]::{kind}"
    return f"{ARGUMENTS.get(name, BY_TYPE[kind])}::{kind}"


def functions(conn: Connection) -> dict[str, tuple[str, bool]]:
    """A call of each public function, and whether it may write."""
    found = rows(
        conn,
        """select p.proname, p.provolatile = 'v' as writes, array(
             select array[a.name, format_type(a.type, null)]
             from unnest(p.proargnames, p.proargtypes::oid[]) as a(name, type) where a.type is not null) as arguments
           from pg_proc p where p.pronamespace = 'durable'::regnamespace and p.proname !~ '^_' order by p.proname""",
    )
    return {
        f.proname: (
            f"select * from durable.{f.proname}({', '.join(argument(f.proname, *each) for each in f.arguments)})",
            f.writes,
        )
        for f in found
    }


def test_a_standby_answers_what_only_reads_and_refuses_all_else_as_read_only(pair: tuple[Database, Database]) -> None:
    conn = pair[1].connect()
    wrong = {}
    for name, (query, writes) in functions(conn).items():
        if name in NOT_HERE:
            continue
        try:
            conn.execute(query.encode())
            outcome = "answered"
        except psycopg.Error as error:
            outcome = f"{error.sqlstate}: {error}"
        if not outcome.startswith("25006" if writes else "answered"):
            wrong[name] = outcome
    assert wrong == {}


def test_what_a_worker_asks_of_a_standby_says_that_it_is_one(pair: tuple[Database, Database]) -> None:
    conn = pair[1].connect()
    calls = functions(conn)
    for name in ("claim", "idle", "attach", "tick", "recover", "recheck_waits"):
        with refused("25006") as error:
            conn.execute(calls[name][0].encode())
        assert "this server is a standby" in str(error.value)
    # With its own arguments, and where nothing stands in line.
    with refused("25006"):
        call(conn, "claim", "k", ["empty"], 10, ["w"], synchronous_commit=False)


def test_every_view_can_be_read_on_a_standby(pair: tuple[Database, Database]) -> None:
    database, standby = pair
    origin, conn = database.connect(), standby.connect()
    caught_up(origin, standby.cluster)
    names = value(
        conn,
        """select array_agg(distinct view) from unnest('{observer,admin,approver,worker}'::text[]) as audience,
             unnest(durable._views_of(audience)) as view""",
    )
    assert len(names) > 5
    for name in names:
        query = f"select count(*) from durable.{name}"
        assert value(conn, query) == value(origin, query), name
