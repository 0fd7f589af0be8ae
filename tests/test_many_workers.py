"""A thousand registered workers, and many thousands that are gone."""

from __future__ import annotations

from clusters import Database
from engine import Connection, call, claim, rows, value

LIVING = 1000
GONE = 20_000


def register(conn: Connection) -> None:
    conn.execute("select durable.idle('w' || n) from generate_series(1, %s) n", [LIVING])


def bury(conn: Connection) -> None:
    """What some deploys within a day leave behind."""
    conn.execute(
        """insert into durable.workers (name, queues, expires_at, died_at)
           select 'gone' || n, '{default}', now(), now() - interval '20 hours' from generate_series(1, %s) n""",
        [GONE],
    )


def reads(conn: Connection, table: str) -> int:
    """How many rows of a table were read so far, or entries of its indexes."""
    conn.execute("select pg_stat_force_next_flush()")
    conn.execute("select pg_stat_clear_snapshot()")
    read = value(
        conn,
        """select t.seq_tup_read + (select sum(i.idx_tup_read) from pg_stat_user_indexes i where i.relid = t.relid)
           from pg_stat_user_tables t where t.relname = %s""",
        table,
    )
    return int(read)


def test_hot_calls_do_not_read_all_workers_and_ticks_not_those_that_are_gone(db: Database) -> None:
    conn = db.connect()
    register(conn)
    bury(conn)
    # One tick in a hundred looks at all of the dead; not one of these. The first one finds that they hold nothing.
    conn.execute("select setseed(0.5)")
    for _ in range(7):
        call(conn, "tick", worker="w500")
    for limit, calls in [
        (20, [("enqueue", "w"), ("claim", "w500"), ("heartbeat", "w500"), ("idle", "w500")]),
        (10 * LIVING, [("tick", 1000, "w500"), ("recover",)]),
    ]:
        for function, *arguments in calls:
            before = reads(conn, "workers")
            call(conn, function, *arguments)
            assert reads(conn, "workers") - before <= limit, function


def test_a_thousand_workers_that_die_at_once_are_recovered_in_batches(db: Database) -> None:
    conn = db.connect()
    register(conn)
    conn.execute("select durable.enqueue_many('w', array_fill('{}'::jsonb, array[%s]))", [5 * LIVING])
    conn.execute(
        """do $$ begin for n in 1 .. 1000 loop perform durable.claim('w' || n, max_workflows => 5); end loop; end $$"""
    )
    conn.execute("update durable.workers set expires_at = now() - interval '1 second'")
    for _ in range(5):
        before = reads(conn, "live_workflows")
        assert value(conn, "select durable.tick()")["recovered"] == 1000
        # The ready ones that were there before it are not read again, nor what the dead hold beyond the batch.
        assert reads(conn, "live_workflows") - before <= 10_000
    assert value(conn, "select durable.tick()")["recovered"] == 0
    assert rows(conn, "select status::text, attempt, count(*) from durable.workflows group by 1, 2") == [
        ("pending", 2, 5 * LIVING)
    ]
    assert value(conn, "select count(*) from durable.idle_workers") == 0
    assert len(claim(conn, "next", 5 * LIVING)) == 5 * LIVING


def test_a_worker_that_outlives_a_thousand_others_does_not_wait_for_their_turns(db: Database) -> None:
    conn = db.connect()
    register(conn)
    turns = [row.turn for row in rows(conn, "select durable._next_turn(w.name) as turn from durable.workers w")]
    assert len(turns) == LIVING
    assert max(turns) <= 30_000
    # Those that were put off come back at different times


def test_what_a_worker_that_was_cleared_holds_after_all_is_found(db: Database) -> None:
    conn = db.connect()
    call(conn, "enqueue", "w")
    claim(conn, "late")
    conn.execute("update durable.workers set died_at = now() - interval '3 hours', cleared_at = now()")
    for _ in range(2000):
        if call(conn, "recover") != [(0,)]:
            break
    assert value(conn, "select status::text from durable.workflows") == "pending"
