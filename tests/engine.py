"""Calls of the engine as the tests write them: one function for any SQL function, and the few that nearly all need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import TupleRow, namedtuple_row
from psycopg.types.json import Jsonb

Connection = psycopg.Connection[TupleRow]
# What holds the data of users.
TABLES = (
    "live_workflows", "finished_workflows", "checkpoints", "open_steps", "workflow_state", "workflow_keys", "queues", "waits",
    "messages", "events", "approval_requests", "ended_children",
)  # fmt: skip
# A uuid of the right shape that no workflow has.
NOBODY = UUID("01900000-0000-7000-8000-000000000000")


def rows(conn: Connection, query: str, *parameters: Any) -> list[Any]:
    """The rows of a query as named tuples."""
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(query.encode(), parameters or None).fetchall()


def value(conn: Connection, query: str, *parameters: Any) -> Any:
    """The one value that a query returns."""
    ((only,),) = rows(conn, query, *parameters)
    return only


def call(conn: Connection, function: str, *arguments: Any, **named: Any) -> list[Any]:
    """Calls durable.<function>; a dict is passed as jsonb, and so are the dicts in a list."""
    places = ["%s"] * len(arguments) + [f"{name} => %s" for name in named]
    values = [_to_sql(argument) for argument in (*arguments, *named.values())]
    return rows(conn, f"select * from durable.{function}({', '.join(places)})", *values)


def _to_sql(argument: Any) -> Any:
    if isinstance(argument, dict):
        return Jsonb(argument)
    if isinstance(argument, list):
        return [_to_sql(item) for item in argument]
    return argument


def enqueue(conn: Connection, workflow: str = "w", **named: Any) -> UUID:
    ((workflow_id,),) = call(conn, "enqueue", workflow, **named)
    assert isinstance(workflow_id, UUID)
    return workflow_id


def claim(
    conn: Connection, worker: str = "worker", max_workflows: int = 1, queues: Sequence[str] = ("default",)
) -> list[Any]:
    return call(conn, "claim", worker, list(queues), max_workflows)


def claim_one(conn: Connection, worker: str = "worker", queues: Sequence[str] = ("default",)) -> Any:
    (claimed,) = claim(conn, worker, 1, queues)
    return claimed


def workflow(conn: Connection, workflow_id: UUID) -> Any:
    (row,) = rows(conn, "select * from durable.workflows where workflow_id = %s", workflow_id)
    return row


def steps(conn: Connection, workflow_id: UUID) -> dict[str, Any]:
    found = rows(conn, "select * from durable.workflow_steps where workflow_id = %s", workflow_id)
    assert len({step.step_name for step in found}) == len(found), "a step is shown twice"
    return {step.step_name: step for step in found}


def snapshot(conn: Connection) -> list[Any]:
    """Everything that is stored, to be compared before and after a call that must change nothing."""
    return [rows(conn, f"select * from durable.{table} order by 1, 2") for table in TABLES]


def kill_worker(conn: Connection, worker: str) -> None:
    """What the passing of its lease does to a worker that is gone."""
    conn.execute("update durable.workers set expires_at = now() - interval '1 second' where name = %s", [worker])


def age(conn: Connection, by: str, workflow_ids: Sequence[UUID]) -> list[UUID]:
    """Finished workflows as if all of it had happened earlier by so much; returns their new ids.

    To move the end alone would not do: the id has the time of creation, and nothing ends before it or on an earlier day.
    """
    parameters = {"by": by, "ids": list(workflow_ids)}
    time = "durable._id_time({0}) - %(by)s::interval"
    earlier = f"(left(durable._first_id({time})::text, 13) || right({{0}}::text, 23))::uuid"
    aged = f"select {earlier.format('id')} from unnest(%(ids)s) with ordinality as given (id, place) order by place"
    # A finished workflow is named in many places.
    columns = rows(
        conn,
        """select c.relname, a.attname, array(
             select t.attname::text from pg_attribute t
             where t.attrelid = c.oid and t.atttypid = 'timestamptz'::regtype and a.attname = 'workflow_id') as times
           from pg_class c join pg_attribute a on a.attrelid = c.oid
           where c.relnamespace = 'durable'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
             and a.atttypid = 'uuid'::regtype
           order by c.relname, a.attname = 'workflow_id'""",
    )
    with conn.transaction():
        ids = [row[0] for row in conn.execute(aged.encode(), parameters)]
        conn.execute(
            """select durable._provision_partitions(min(day), max(day))
               from (select (durable._id_time(id) at time zone 'UTC')::date from unnest(%s) as id) as aged (day)""",
            [ids],
        )
        for table, column, times in columns:
            changes = [f"{column} = {earlier.format(column)}", *(f"{at} = {at} - %(by)s::interval" for at in times)]
            query = f"update durable.{table} set {', '.join(changes)} where {column} = any(%(ids)s)"
            conn.execute(query.encode(), parameters)
    return ids


def advance(conn: Connection, interval: str) -> None:
    """Puts the clock of this database forward, by so much altogether, as a test kit of users does."""
    conn.execute(
        f"""create or replace function durable._now() returns timestamptz language sql volatile parallel safe
            as $$ select pg_catalog.clock_timestamp() + interval '{interval}' $$""".encode()
    )


@contextmanager
def refused(code: str) -> Iterator[pytest.ExceptionInfo[psycopg.Error]]:
    """Expects the SQLSTATE, and, for one of durable's own, a message, a detail and a hint."""
    with pytest.raises(psycopg.Error) as info:
        yield info
    diag = info.value.diag
    assert info.value.sqlstate == code, f"{info.value.sqlstate}: {info.value}"
    if code.startswith("WF"):
        assert diag.message_primary
        assert diag.message_detail
        assert diag.message_hint


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    """Runs the functions in threads of their own and returns their results, or raises the first error."""
    with ThreadPoolExecutor(len(functions)) as pool:
        futures: list[Future[Any]] = [pool.submit(function) for function in functions]
    return [future.result() for future in futures]


def wait_until(conn: Connection, query: str, *parameters: Any) -> None:
    """Returns when a query returns true."""
    give_up = time.monotonic() + 60
    while not value(conn, query, *parameters):
        if time.monotonic() > give_up:
            raise AssertionError(f"this did not come true: {query} {parameters}")
        time.sleep(0.02)


def decide_next(conn: Connection, decision: str, by: str = "ada") -> None:
    """Waits until a workflow asks somebody, and decides."""
    pending = "from durable.approvals where state = 'pending'"
    wait_until(conn, f"select count(*) > 0 {pending}")
    value(conn, f"select durable.decide(approval_id, %s, by => %s) {pending}", decision, by)


def wait_until_blocked(observer: Connection, blocked: Connection) -> None:
    """Returns when the other connection waits for a lock."""
    for _ in range(2000):
        if value(observer, "select cardinality(pg_blocking_pids(%s)) > 0", blocked.info.backend_pid):
            return
        observer.execute("select pg_sleep(0.005)")
    raise AssertionError("the connection was never blocked")
