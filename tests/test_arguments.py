"""Bad input: each is refused with an error that says what to do, and nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from clusters import Database
from engine import NOBODY, Connection, call, claim, claim_one, enqueue, refused, rows, snapshot, steps, value, workflow

LONG = "x" * 201
ERROR = {"type": "Oops", "message": "no luck"}

BAD_ENQUEUES: list[dict[str, Any]] = [
    {"workflow": None}, {"workflow": ""}, {"workflow": LONG},
    {"queue": None}, {"queue": ""}, {"queue": LONG},
    {"key": ""}, {"key": "x" * 501},
    {"priority": 32768}, {"priority": -32769}, {"priority": None},
    {"run_at": "infinity"}, {"run_at": "-infinity"},
    {"max_attempts": 0}, {"max_attempts": -1}, {"max_attempts": None},
    {"timeout": "0"}, {"timeout": "-1 second"},
    {"tags": None}, {"tags": Jsonb([])}, {"tags": Jsonb("x")}, {"tags": Jsonb(None)},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_ENQUEUES, ids=lambda bad: "-".join(f"{k}={str(v)[:12]}" for k, v in bad.items()))
def test_an_enqueue_with_a_bad_argument_is_refused_and_writes_nothing(db: Database, bad: dict[str, Any]) -> None:
    conn = db.connect()
    before = snapshot(conn)
    with refused("WF005"):
        call(conn, "enqueue", **{"workflow": "w", **bad})
    with refused("WF005"):
        many = {key: value for key, value in bad.items() if key != "key"} | (
            {"keys": ["k", bad["key"]]} if "key" in bad else {}
        )
        call(conn, "enqueue_many", **{"workflow": "w", "inputs": [{}, {}], **many})
    assert snapshot(conn) == before


def test_batches_whose_arrays_differ_in_length_are_refused(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    lease = claim_one(conn).lease
    one, two = [workflow_id], [workflow_id, workflow_id]
    before = snapshot(conn)
    calls: list[tuple[Any, ...]] = [
        ("enqueue_many", "w", [{}], "default", ["a", "b"]),
        ("enqueue_many", "w", None),
        ("complete_many", two, [lease], [{}, {}]),
        ("complete_many", one, [lease], []),
        ("complete_many", None, None, None),
        ("fail_many", two, [lease], [ERROR, ERROR]),
        ("fail_many", one, [lease], [ERROR], [None, None]),
        ("fail_many", None, None, None),
        ("checkpoint_many", two, [lease, lease], ["s"], [{}, {}]),
        ("checkpoint_many", one, [lease], ["s"], [{}], [None, None]),
        ("checkpoint_many", one, [lease], ["s"], [{}], None, [1, 2]),
        ("checkpoint_many", one, None, ["s"], [{}]),
        ("checkpoint_many", None, None, None, None),
        ("release_many", two, [lease]),
        ("heartbeat", "worker", two, [lease]),
        ("heartbeat", "worker", one, None),
        ("flush", one, [lease], ["s"], [{}], [1], [], [], [], []),
        ("flush", [], [], [], [], [], [], one, [lease], []),
    ]
    for function, *arguments in calls:
        with refused("WF005"):
            call(conn, function, *arguments)
    assert snapshot(conn) == before


def test_empty_batches_are_allowed_and_do_nothing(db: Database) -> None:
    conn = db.connect()
    for query in (
        "select * from durable.complete_many('{}', '{}', '{}')",
        "select * from durable.fail_many('{}', '{}', '{}')",
        "select * from durable.checkpoint_many('{}', '{}', '{}', '{}')",
        "select * from durable.flush('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')",
        "select * from durable.heartbeat('nobody', '{}', '{}')",
        "select * from durable.enqueue_many('w', '{}')",
    ):
        assert rows(conn, query) == []
    assert value(conn, "select durable.release_many('{}', '{}')") == 0


@pytest.mark.parametrize("workflow_id", [NOBODY, None], ids=["unknown", "null"])
def test_a_workflow_that_is_not_stored_is_not_found(db: Database, workflow_id: object) -> None:
    conn = db.connect()
    enqueue(conn)
    before = snapshot(conn)
    calls: list[tuple[Any, ...]] = [
        ("cancel", workflow_id), ("retry", workflow_id), ("status", workflow_id), ("result", workflow_id),
        ("history", workflow_id), ("complete", workflow_id, 1), ("fail", workflow_id, 1, ERROR),
        ("checkpoint", workflow_id, 1, "s"), ("begin_step", workflow_id, 1, "s"), ("start_step", workflow_id, 1, "s"),
        ("fail_step", workflow_id, 1, "s", ERROR),
    ]  # fmt: skip
    for function, *arguments in calls:
        with refused("WF001"):
            call(conn, function, *arguments)
    assert call(conn, "step_result", workflow_id, "s") == []
    assert snapshot(conn) == before


def test_a_lease_that_was_never_given_is_lost(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    claim_one(conn)
    before = snapshot(conn)
    for lease in (None, 0, -1, 2**63 - 1):
        for function, *arguments in (
            ("complete",), ("fail", ERROR), ("checkpoint", "s"), ("begin_step", "s"), ("start_step", "s"),
            ("fail_step", "s", ERROR),
        ):  # fmt: skip
            with refused("WF002"):
                call(conn, function, workflow_id, lease, *arguments)
    assert snapshot(conn) == before


@pytest.mark.parametrize("name", [None, "", "x" * 501], ids=["null", "empty", "huge"])
def test_a_step_name_that_cannot_be_stored_is_refused(db: Database, name: str | None) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    lease = claim_one(conn).lease
    before = snapshot(conn)
    for function, *arguments in (("checkpoint",), ("begin_step",), ("start_step",), ("fail_step", ERROR)):
        with refused("WF005"):
            call(conn, function, workflow_id, lease, name, *arguments)
    done = call(conn, "checkpoint_many", [workflow_id] * 2, [lease] * 2, [name, "good"], [{}, {}])
    assert [row.outcome for row in done] == ["WF005", "ok"]
    conn.execute("delete from durable.checkpoints")
    assert snapshot(conn) == before


def test_names_of_the_largest_size_and_of_any_script_work(db: Database) -> None:
    conn = db.connect()
    name, queue, key, worker, step = "ü" * 200, "队" * 200, "🔑" * 500, "w'\"\\;--" * 25, "é#2 %s $$" * 50
    workflow_id = call(conn, "enqueue", name, {"ünï": "cödé"}, queue, key)[0][0]
    claimed = claim_one(conn, worker, queues=[queue])
    assert (claimed.name, claimed.input) == (name, {"ünï": "cödé"})
    call(conn, "checkpoint", workflow_id, claimed.lease, step, {})
    assert list(steps(conn, workflow_id)) == [step]
    call(conn, "idle", worker, [queue])
    call(conn, "attach", worker, [queue])
    call(conn, "complete", workflow_id, claimed.lease)


@pytest.mark.parametrize("worker", [None, "", LONG], ids=["null", "empty", "huge"])
def test_a_worker_name_that_cannot_be_stored_is_refused(db: Database, worker: str | None) -> None:
    conn = db.connect()
    for function in ("claim", "idle", "attach"):
        with refused("WF005"):
            call(conn, function, worker)
    assert call(conn, "heartbeat", worker) == []
    assert call(conn, "leave", worker) == [(0,)]
    assert call(conn, "reclaim", worker) == []


@pytest.mark.parametrize("queues", [None, [], [None], [""], ["default", None]], ids=str)
@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_queues_that_name_nothing_are_refused(db: Database, queues: Sequence[str | None] | None, known: bool) -> None:
    conn = db.connect()
    if known:
        claim(conn, "w")
    for function in ("claim", "idle", "attach"):
        with refused("WF005"):
            call(conn, function, "w", queues)


def test_a_retry_policy_that_makes_no_sense_is_refused(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    lease = claim_one(conn).lease
    before = snapshot(conn)
    policies: list[dict[str, Any]] = [
        {"attempt": 0}, {"attempt": None}, {"max_attempts": 0}, {"backoff": 0.5}, {"backoff": "NaN"}, {"backoff": None},
        {"initial": "-1 second"}, {"initial": None}, {"max_delay": "-1 second"}, {"max_delay": None},
        {"max_delay": "999999 years", "initial": "999999 years"},
    ]  # fmt: skip
    for bad in policies:
        with refused("WF005"):
            call(conn, "fail_step", workflow_id, lease, "s", ERROR, **{"max_attempts": 3, **bad})
    with refused("WF005"):
        call(conn, "fail_step", workflow_id, lease, "s", None)
    with refused("WF005"):
        call(conn, "fail", workflow_id, lease, None)
    with refused("WF005"):
        call(conn, "start_step", workflow_id, lease, "s", 0)
    assert snapshot(conn) == before


def test_a_long_back_off_does_not_overflow(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    lease = claim_one(conn).lease
    policy = {"attempt": 2_000_000_000, "max_attempts": 2_147_483_647, "backoff": 1000.0, "max_delay": "1 hour"}
    ((wait,),) = call(conn, "fail_step", workflow_id, lease, "s", ERROR, **policy)
    assert 1790 < wait.total_seconds() <= 3600


@pytest.mark.parametrize("limit", ["0", "-5", None])
def test_a_tick_and_a_recovery_of_nothing_are_refused(db: Database, limit: str | None) -> None:
    conn = db.connect()
    for function in ("tick", "recover"):
        with refused("WF005"):
            call(conn, function, limit)


def settings(conn: Connection) -> list[Any]:
    return rows(conn, "select name, value from durable.settings order by name")


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("no such setting", "1"), (None, "1"),
        ("lease", "0"), ("lease", "500 milliseconds"), ("lease", "soon"), ("lease", "-1 hour"), ("lease", ""),
        ("lease", "-1 day 30:00"),
        ("lease", "999999 years"), ("restart_grace", "999999 years"), ("session_grace", "-1 second"),
        ("dead_worker_retention", "999999 years"), ("retry_max", "999999 years"),
        ("max_crashes", "0"), ("max_crashes", "1.5"), ("max_crashes", "many"), ("max_crashes", "99999999999999999999"),
        ("max_payload_bytes", "0"), ("max_payload_bytes", "9999999999"),
        ("retry_backoff", "0.5"), ("retry_backoff", "NaN"), ("retry_backoff", "infinity"), ("retry_backoff", "1e999"),
    ],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_is_refused(db: Database, name: str | None, bad: str) -> None:
    conn = db.connect()
    before = settings(conn)
    with refused("WF005"):
        call(conn, "configure", name, bad)
    assert settings(conn) == before


def test_a_setting_is_changed_and_brought_back(db: Database) -> None:
    conn = db.connect()
    before = settings(conn)
    call(conn, "configure", "lease", "1 minute")
    assert value(conn, "select value from durable.settings where name = 'lease'") == "1 minute"
    call(conn, "configure", "lease", None)
    assert settings(conn) == before


def test_a_time_so_far_away_that_it_overflows_stops_no_other_workflow(db: Database) -> None:
    conn = db.connect()
    intervals = ["999999 years", *(["infinity"] if db.version >= 17 else [])]
    for timeout in intervals:
        try:
            enqueue(conn, timeout=timeout)
        except psycopg.Error as error:
            assert error.sqlstate == "WF005", error  # noqa: PT017 - accepting it is allowed, too
    sound = enqueue(conn)
    assert sound in {c.workflow_id for c in claim(conn, max_workflows=9)}
    assert "next_in_ms" in value(conn, "select durable.tick()")


def test_numbers_that_are_out_of_range_fail_their_own_item_and_no_other(db: Database) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    lease = claim_one(conn).lease
    names = ["good", "long", "negative", "no attempt"]
    done = call(
        conn, "checkpoint_many", [workflow_id] * 4, [lease] * 4, names, [{}] * 4,
        attempts=[1, 1, 1, 0], elapsed_ms=[5, 2**63 - 1, -(2**62), 5],
    )  # fmt: skip
    assert done[0].outcome == "ok"
    assert {row.outcome for row in done} <= {"ok", "WF005"}
    assert value(conn, "select bool_and(attempt >= 1 and started_at <= completed_at) from durable.workflow_steps")


@pytest.mark.parametrize(
    "running",
    [
        '{"workflow_id": "no list"}', "[1]", '["x"]', "[null]", '[{"workflow_id": "not a uuid"}]', '[{"lease": "x"}]',
        '[{"elapsed_ms": 9223372036854775807}]', '[{"attempt": -1}]', "null", "[]",
    ],
)  # fmt: skip
def test_a_heartbeat_with_malformed_steps_still_renews_or_says_what_is_wrong(db: Database, running: str) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    claimed = claim_one(conn)
    if '"workflow_id"' not in running and running.startswith("[{"):
        known = f'"workflow_id": "{workflow_id}", "lease": {claimed.lease}, "step_name": "s", "elapsed_ms": 5, '
        running = running.replace("[{", "[{" + known)
    conn.execute("update durable.workers set expires_at = now() - interval '1 second'")
    try:
        conn.execute("select durable.heartbeat('worker', null, null, %s)", [running])
    except psycopg.Error as error:
        assert error.sqlstate == "WF005", error  # noqa: PT017 - ignoring it is allowed, too
    else:
        assert value(conn, "select expires_at > now() from durable.workers")


@pytest.mark.parametrize(
    ("text", "code"),
    [('{"v": NaN}', "22P02"), ('{"v": Infinity}', "22P02"), ('{"v": "\\u0000"}', "22P05"), ("{", "22P02")],
)
def test_what_is_not_json_is_refused_before_anything_is_written(db: Database, text: str, code: str) -> None:
    conn = db.connect()
    workflow_id = enqueue(conn)
    lease = claim_one(conn).lease
    before = snapshot(conn)
    for query, parameters in (
        ("select durable.enqueue('w', %s::jsonb)", [text]),
        ("select durable.checkpoint(%s, %s, 's', %s::jsonb)", [workflow_id, lease, text]),
        ("select durable.complete(%s, %s, %s::jsonb)", [workflow_id, lease, text]),
        ("select durable.fail(%s, %s, %s::jsonb)", [workflow_id, lease, text]),
    ):
        with refused(code):
            conn.execute(query.encode(), parameters)
    assert snapshot(conn) == before


def test_an_input_over_the_limit_is_refused_and_nothing_of_its_batch_is_enqueued(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "max_payload_bytes", "1000")
    before = snapshot(conn)
    with refused("WF006"):
        enqueue(conn, input={"v": "x" * 1000})
    with refused("WF006") as error:
        call(conn, "enqueue_many", "w", [{}, {"v": "x" * 1000}, {}])
    assert "input 2" in str(error.value)
    assert snapshot(conn) == before
    call(conn, "configure", "max_payload_bytes", None)
    enqueue(conn, input={"v": "x" * 1000})


@pytest.mark.pg(15, 18)
def test_a_payload_of_100_mb_goes_in_and_comes_back(db: Database) -> None:
    conn = db.connect()
    conn.execute("create table payload as select jsonb_build_object('text', repeat('durable! ', 11111111)) as v")
    workflow_id = value(conn, "select durable.enqueue('w', v) from payload")
    claimed = rows(conn, "select workflow_id, lease, input = v as same from durable.claim('worker'), payload")[0]
    assert (claimed.workflow_id, claimed.same) == (workflow_id, True)
    conn.execute("select durable.complete(%s, %s, v) from payload", [workflow_id, claimed.lease])
    assert value(conn, "select output = v and input = v from durable.workflows, payload")
    assert workflow(conn, workflow_id).status == "completed"


def test_a_large_payload_of_a_client_comes_back_as_it_was(db: Database) -> None:
    conn = db.connect()
    large = {"text": "héllo " * 1_000_000, "n": list(range(1000))}
    workflow_id = enqueue(conn, input=large)
    claimed = claim_one(conn)
    assert claimed.input == large
    call(conn, "complete", workflow_id, claimed.lease, large)
    assert call(conn, "result", workflow_id)[0].output == large
