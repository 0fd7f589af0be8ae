"""A hot standby: what reads answers, and what writes is refused with the code by which clients know one."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.types.json import Jsonb

from clusters import Cluster, Clusters, Database
from engine import Connection, call, claim, claim_one, enqueue, refused, rows, value, wait_until
from test_retention import ended

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


def promoted(standby: Cluster) -> None:
    standby.promote()
    give_up = time.monotonic() + 60
    with standby.connect() as conn:
        while value(conn, "select pg_is_in_recovery()"):
            assert time.monotonic() < give_up, "the standby is not promoted"
            time.sleep(0.02)


@pytest.mark.pg(15)
def test_an_asynchronous_failover_loses_what_was_last_and_nothing_by_halves(
    clusters: Clusters, own_cluster: Cluster
) -> None:
    database = own_cluster.create_database()
    conn = database.connect()
    conn.execute("create table bookings (n integer)")
    names = ("once", "step", "transaction", "receives", "asks", "parent", "fails", "completes", "cancelled", "paused")
    ids = {name: enqueue(conn, name) for name in names}
    held = {row.name: row for row in claim(conn, "worker", len(names))}
    leases = {name: row.lease for name, row in held.items()}
    call(conn, "send", ids["receives"], "t", {"n": 1})
    ((approval,),) = call(conn, "request_approval", ids["asks"], leases["asks"], "ask", "may I?")
    in_line = enqueue(conn, "claimed")
    # Due since the beginning of this hour.
    call(conn, "schedule", "hourly", "@hourly", "fired", catchup="3 hours")
    due_at = value(conn, "update durable.schedules set next_at = date_trunc('hour', now()) returning next_at")
    with clusters.standby(own_cluster) as standby:
        caught_up(conn, standby)
        with standby.connect() as there:
            # It gets nothing more.
            there.execute("alter system set primary_conninfo = ''")
            there.execute("select pg_reload_conf()")
            wait_until(there, "select not exists (select from pg_stat_wal_receiver)")
        # All of this is acknowledged.
        lost = enqueue(conn, "enqueued", key="k")
        call(conn, "send", ids["once"], "t", {})
        call(conn, "emit", "e")
        call(conn, "cancel", ids["cancelled"])
        call(conn, "pause", ids["paused"])
        call(conn, "decide", approval, "approved", "ada")
        call(conn, "start_step", ids["once"], leases["once"], "s")
        call(conn, "checkpoint", ids["step"], leases["step"], "s", {})
        call(conn, "complete", ids["completes"], leases["completes"], {})
        call(conn, "fail", ids["fails"], leases["fails"], {"type": "Oops", "message": "no luck"})
        children = call(conn, "start_children", ids["parent"], leases["parent"], "c", "child", [{}])
        call(conn, "configure", "max_crashes", "7")
        assert value(conn, "select durable.tick()")["fired"] == 1
        with conn.transaction():
            call(conn, "begin_step", ids["transaction"], leases["transaction"], "s")
            conn.execute("insert into bookings values (1)")
            call(conn, "checkpoint", ids["transaction"], leases["transaction"], "s", {})
        received = call(conn, "wait", ids["receives"], leases["receives"], "r", Jsonb([{"message": "t"}]))
        claimed = {row.name: row for row in claim(conn, "worker", 2)}["claimed"]
        assert claimed.workflow_id == in_line
        database.disconnect()
        own_cluster.stop(signal.SIGQUIT)
        promoted(standby)
        copy = Database(standby, database.name)
        conn = copy.connect()

        # Workflows, with their keys, messages, events, decisions, cancels and pauses are gone, completions are undone.
        with refused("WF001"):
            call(conn, "status", lost)
        assert {name: value(conn, "select durable.status(%s)", ids[name]) for name in names} == dict.fromkeys(
            names, "running"
        )
        assert value(conn, "select count(*) from durable.messages") == 1
        assert value(conn, "select count(*) from durable.events") == 0
        assert value(conn, "select decision from durable.approvals") is None
        # An at-most-once step starts a second time, for its first start is gone; other steps run again, too.
        call(conn, "start_step", ids["once"], leases["once"], "s")
        assert call(conn, "step_result", ids["step"], "s") == []
        # What a transactional step wrote went with its checkpoint.
        assert value(conn, "select count(*) from bookings") == 0
        assert call(conn, "step_result", ids["transaction"], "s") == []
        call(conn, "begin_step", ids["transaction"], leases["transaction"], "s")
        # A message that was received is received once more, by the same step.
        again = call(conn, "wait", ids["receives"], leases["receives"], "r", Jsonb([{"message": "t"}]))
        assert again == received == [("ok", {"index": 0, "value": {"n": 1}})]
        # Children are started a second time, and due times fire again.
        assert value(conn, "select count(*) from durable.workflows where name in ('child', 'fired')") == 0
        assert call(conn, "start_children", ids["parent"], leases["parent"], "c", "child", [{}]) != children
        assert value(conn, "select durable.tick()")["fired"] >= 1
        assert value(conn, "select outcome from durable.schedule_firings where due_at = %s", due_at) == "fired"
        assert value(conn, "select value = default_value from durable.settings where name = 'max_crashes'")
        # The claim that is gone has no valid lease, and the next one of that place has another.
        with refused("WF002"):
            call(conn, "checkpoint", in_line, claimed.lease, "s")
        second = {row.name: row for row in claim(conn, "another", 9)}["claimed"]
        assert second.lease >> 20 == claimed.lease >> 20
        assert second.lease != claimed.lease
        # The worker is not dead: what it holds it holds on.
        assert call(conn, "heartbeat", "worker", list(ids.values()), [leases[name] for name in ids]) == []
        copy.disconnect()
        own_cluster.start()


@pytest.mark.pg(15)
def test_a_standby_may_be_read_while_days_are_dropped(pair: tuple[Database, Database]) -> None:
    database, standby = pair
    origin, conn = database.connect(), standby.connect()
    for days_ago in range(40, 50):
        ended(origin, days_ago)
    caught_up(origin, standby.cluster)
    dropped = 0
    while dropped < 20:
        dropped += value(origin, "select durable.tick()")["dropped"]
        for view in ("workflows", "workflow_steps"):
            value(conn, f"select count(*) from durable.{view}")
    caught_up(origin, standby.cluster)
    # What still reads gives way, when the standby must not wait for it, with an error that says to try again.
    conn.execute("alter system set max_standby_streaming_delay = '100ms'")
    conn.execute("select pg_reload_conf()")
    ended(origin, 60)
    caught_up(origin, standby.cluster)
    reader = standby.connect(autocommit=False)
    value(reader, "select count(*) from durable.workflows")
    while dropped < 22:
        dropped += value(origin, "select durable.tick()")["dropped"]
    caught_up(origin, standby.cluster)
    with pytest.raises(psycopg.OperationalError) as info:
        value(reader, "select count(*) from durable.workflows")
    assert info.value.sqlstate == "40001" or reader.closed
