"""Values, texts and arrays of every odd form, for every function that a client, an approver or a worker may call: a call is
carried out or refused with an error of durable, and nobody else notices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusters import Database
from engine import Connection, call, claim, claim_one, enqueue, refused, rows, value, workflow

pytestmark = pytest.mark.pg(15, 18)

# Arguments by their names, or by their names and types, as they are in an ordinary call.
ARGUMENTS = {
    "after": "now()", "approval_id": "$approval", "assignee": "'ada'", "attempt": "1", "attempts": "array[1]", "audience": "''",
    "backoff": "2.0", "by": "'ada'", "catchup": "'0'::interval", "catchup_mode": "'all'", "checkpoint_ids": "array[$id]",
    "checkpoint_leases": "array[$lease::bigint]", "comment": "'yes'", "complete_ids": "array[gen_random_uuid()]",
    "complete_leases": "array[1::bigint]", "conditions": """'[{"message": "topic"}]'::jsonb""",
    "conditions jsonb[]": """array['[{"message": "topic"}]'::jsonb]""", "cron": "'@daily'", "data": "'1'::jsonb",
    "decision": "'approved'", "elapsed_ms": "array[1::bigint]", "ends_at": "null", "error": """'{"message": "no"}'::jsonb""",
    "errors": "array[null::jsonb]", "event": "'event'", "expires": "'1 h'::interval", "first_id": "$id", "form": "'1'::jsonb",
    "from_step": "null", "initial": "'1 s'::interval", "input": "'1'::jsonb", "inputs": "array['1'::jsonb]", "key": "'key'",
    "keys": "array['key']", "known": "array[$id]", "lease": "$lease::bigint", "leases": "array[$lease::bigint]",
    "max_attempts": "1", "max_delay": "'1 h'::interval", "max_parallel": "1", "max_workflows": "1", "mode": "'any'",
    "modes": "array['any']", "name": "'schedule'", "output": "'1'::jsonb", "outputs": "'{}'::jsonb",
    "outputs jsonb[]": "array['1'::jsonb]", "overlap": "'skip'", "park": "true", "parks": "array[true]", "payload": "'1'::jsonb",
    "priority": "0", "queue": "'default'", "queues": "array['default']", "reason": "'so'", "retry_in": "array['1 s'::interval]",
    "retryable": "array[true]", "running_steps": "'[]'::jsonb", "step_attempts": "array[1]", "step_elapsed_ms": "array[1::bigint]",
    "step_name": "'s'", "step_names": "array['s']", "step_outputs": "array['1'::jsonb]", "subject": "'May I?'",
    "tags": "'{}'::jsonb", "timeout": "'1 h'::interval", "timeouts": "array['1 h'::interval]", "timezone": "'UTC'",
    "topic": "'topic'", "untils": "array[now()]", "value": "'1'::jsonb", "warning": "'beware'", "worker": "'sql'",
    "workflow": "'w'", "workflow_id": "$id", "workflow_ids": "array[$id]", "workflows": "array['w']",
}  # fmt: skip
JSON = {
    "5001 digits": "1e5000",
    "131072 digits": "[1, -1e131071]",
    "smaller than a float": "1e-16383",
    "an out of range integer": '[{"timer": 1e5000}]',
    "a long time": '[{"timer_at": 1e11}]',
    "a time of no length": '[{"timer": -0}, {"timer": 1e-16000}]',
    "many conditions": json.dumps([{"event": f"e{n}"} for n in range(10_001)]),
    "a step that is none": '{"step": {"a": 1}, "message": [1e5000], "type": 5, "code": [], "traceback": 1}',
    "a long step": f'{{"step": "{"x" * 1_000_000}", "message": "{"y" * 1_000_000}"}}',
    "a running step": '[{"workflow_id": "x", "lease": 1e30, "step_name": [[]], "attempt": 1e5000, "elapsed_ms": -1}]',
    "null": "null",
    "text": '"{due_at}"',
    "an object of an empty name": '{"": {"{due_at}": "{due_at}", "s": [null]}}',
    "names": '{"__proto__": 1, "s": 2, "s": 1e400}',
    "letters": json.dumps("\u202eright to left, \U0010ffff, \x01, \ud7ff, %s, $1, '"),
    "5000 levels": "[" * 5000 + "]" * 5000,
    "5000 objects": '{"s":' * 5000 + "1" + "}" * 5000,
    # In this database, for which text is limited to less.
    "too long as text": "[" + ",".join(["1e131071"] * 200) + "]",
    "hardly too long": '"' + "x" * 100_000 + '"',
}
TEXTS = [
    "", " ", "x" * 200, "x" * 201, "x" * 500, "x" * 501, "\U0010ffff" * 200, "\U0010ffff" * 500, "y" * 2_000_000, "\u202eabc", "{}",
    "NULL", '"', "\\", "a\nb\x1b[2J", "%s %I $1 '; --", "1e5000", "00000000-0000-0000-0000-000000000000", "{due_at}",
]  # fmt: skip
ARRAYS = [
    "array[$one]", "('[0:0]=' || ($one)::text)::$type", "null::$type", "'{}'::$type", "array[null]::$type", "($one) || null",
    "($one) || ($one)",
]  # fmt: skip

# Arrays that are lists of names or ids, and not parallel to others.
LISTS = {("claim", "workflows"), ("idle", "workflows"), ("reclaim", "known"), ("recheck_waits", "workflow_ids")}


def parameters(conn: Connection) -> list[Any]:
    """The parameters of the functions for clients, approvers and workers, and of the one that makes schedules."""
    return rows(
        conn,
        """select p.proname::text as function, a.name, format_type(p.proargtypes[a.n - 1], null) as type,
             a.n <= p.pronargs - p.pronargdefaults as required
           from (select distinct f.id from unnest('{client,approver,worker}'::text[]) as audience,
                   durable._functions_of(audience) as f(id)
                 union select 'durable.schedule'::regproc::regprocedure) f
           join pg_proc p on p.oid = f.id, unnest(p.proargnames) with ordinality as a(name, n)
           where a.n <= p.pronargs order by 1, a.n""",
    )


def usual(name: str, type: str) -> str:
    return ARGUMENTS.get(f"{name} {type}") or ARGUMENTS[name]


def odd_ones(name: str, type: str) -> Iterator[tuple[str, str, str | None]]:
    """What to pass: a label, an expression, and its parameter."""
    if type in ("jsonb", "jsonb[]"):
        for label, text in JSON.items():
            yield label, "%s::jsonb" if type == "jsonb" else "array[%s::jsonb]", text
    elif type in ("text", "text[]"):
        for text in TEXTS:
            yield text[:20], "%s::text" if type == "text" else "array[%s::text]", text
    if type.endswith("[]"):
        for array in ARRAYS:
            expression = array.replace("$one", usual(name, type)).replace("$type", type)
            yield expression, expression, None


def the_others_go_on(conn: Connection) -> None:
    """Whatever was stored can be claimed and read, the tick does all of its parts, and a neighbor completes."""
    neighbors = {enqueue(conn, "neighbor") for _ in range(2)}
    report = value(conn, "select durable.tick(100000)")
    assert not [part for part in report.items() if isinstance(part[1], dict)], report
    call(conn, "leave", "sql")
    got = rows(
        conn,
        "select workflow_id, lease, length(c::text) as length from durable.claim('neighbor', '{default,claimed}', 100000) c",
    )
    assert neighbors <= {row.workflow_id for row in got}
    assert rows(conn, "select length(r::text) from durable.reclaim('neighbor') r")
    done = rows(
        conn,
        "select * from durable.complete_many(%s, %s, array_fill('1'::jsonb, array[%s::int]))",
        [row.workflow_id for row in got], [row.lease for row in got], len(got),
    )  # fmt: skip
    assert {row.outcome for row in done} == {"ok"}


def expect_of_durable(error: psycopg.Error, what: str) -> None:
    """Fails for an error that is none of durable's own."""
    if not (error.sqlstate or "").startswith("WF"):
        raise AssertionError(f"{what}: {error}") from error


def limit_texts(conn: Connection) -> None:
    """Texts of payloads to 16 MB, to be quicker."""
    conn.execute(
        """create or replace function durable._max_text()
           returns bigint language sql immutable parallel safe as $$ select 16777216::bigint $$"""
    )


def test_nothing_odd_in_any_argument_disturbs_others(db: Database) -> None:
    conn = db.connect()
    limit_texts(conn)
    functions: dict[str, list[Any]] = {}
    for parameter in parameters(conn):
        functions.setdefault(parameter.function, []).append(parameter)
    accepted: set[tuple[str, str, str]] = set()
    for function, named in functions.items():
        # Failures with another attempt to come, and without.
        attempts = (1, 2) if function.startswith("fail") else (1,)
        for odd, max_attempts in product(named, attempts):
            for label, expression, parameter in odd_ones(odd.name, odd.type):
                workflow_id = enqueue(conn, "w", queue="claimed", max_attempts=max_attempts)
                lease = dict(rows(conn, "select workflow_id, lease from durable.claim('sql', '{claimed}', 100)"))[
                    workflow_id
                ]
                names = {"$id": f"'{workflow_id}'::uuid", "$lease": f"{lease}", "$approval": "null::uuid"}
                if function == "decide":
                    asked = value(
                        conn, "select durable.request_approval(%s, %s, 'asked', 'May I?')", workflow_id, lease
                    )
                    names["$approval"] = f"'{asked}'::uuid"
                passed = {each.name: usual(each.name, each.type) for each in named if each.required}
                passed[odd.name] = expression
                text = ", ".join(f"{name} => {each}" for name, each in passed.items())
                for placeholder, expression in names.items():
                    text = text.replace(placeholder, expression)
                query = f"select count(f::text) from durable.{function}({text}) f"
                try:
                    conn.execute(query.encode(), [parameter] if parameter is not None else None)
                except psycopg.Error as error:
                    expect_of_durable(error, f"{function}, {odd.name}, {label}")
                else:
                    accepted.add((function, odd.name, label))
            the_others_go_on(conn)
    failed = "array(select workflow_id from durable.workflows where status = 'failed' limit 10000)"
    assert value(conn, f"select durable.retry_many({failed})") > 10
    the_others_go_on(conn)
    # All that is stored can be dumped.
    for view in ("workflows", "workflow_steps", "workflow_state", "approvals", "schedules", "queues", "workers"):
        rows(conn, f"select max(length(v::text)) from durable.{view} v")
    assert {function for function, _, label in accepted if label == "too long as text"} <= {
        *("checkpoint_many", "complete_many", "fail_many", "flush", "wait_many"), "heartbeat",
    }  # fmt: skip
    # Only where the places of the elements mean nothing.
    assert {each[:2] for each in accepted if each[2].startswith(("array[array[", "('[0:0]='"))} == LISTS


# In the order of the arrays of each function that takes a batch: what is passed for two items.
BATCHES = {
    "checkpoint_many": {"workflow_ids": "$ids", "leases": "$leases", "step_names": "'{a,a}'", "outputs": "'{1,1}'",
                        "errors": "'{null,null}'", "attempts": "'{1,1}'", "elapsed_ms": "'{1,1}'"},
    "complete_many": {"workflow_ids": "$ids", "leases": "$leases", "outputs": "'{1,1}'"},
    "fail_many": {"workflow_ids": "$ids", "leases": "$leases", "errors": "'{1,1}'", "retry_in": "'{1 s,1 s}'",
                  "retryable": "'{true,true}'"},
    "wait_many": {"workflow_ids": "$ids", "leases": "$leases", "step_names": "'{a,a}'", "conditions": "'{[],[]}'",
                  "timeouts": "'{1 h,1 h}'", "untils": "'{infinity,2200-01-01}'", "modes": "'{any,any}'", "parks": "'{true,true}'"},
}  # fmt: skip


def test_batches_are_all_known(db: Database) -> None:
    found = rows(
        db.connect(),
        """select p.proname::text from pg_proc p
           where p.pronamespace = 'durable'::regnamespace and p.proname !~ '^_' and 'outcome' = any(p.proargnames)
             and 'item' = any(p.proargnames)""",
    )
    assert {row.proname for row in found} == {*BATCHES, "flush"}


@pytest.mark.parametrize("function", [*BATCHES, "flush"])
def test_an_item_that_is_null_or_too_large_harms_itself_only(db: Database, function: str) -> None:
    conn = db.connect()
    limit_texts(conn)
    long = JSON["too long as text"].replace('"', '\\"')
    batch = BATCHES.get(function) or {
        "checkpoint_ids": "$ids", "checkpoint_leases": "$leases", "step_names": "'{a,a}'", "step_outputs": "'{1,1}'",
        "step_attempts": "'{1,1}'", "step_elapsed_ms": "'{1,1}'", "complete_ids": "$ids", "complete_leases": "$leases",
        "outputs": "'{1,1}'",
    }  # fmt: skip
    for argument in batch:
        is_json = value(
            conn,
            """select format_type(p.proargtypes[array_position(p.proargnames, %s) - 1], null) = 'jsonb[]'
               from pg_proc p where p.pronamespace = 'durable'::regnamespace and p.proname = %s""",
            argument, function,
        )  # fmt: skip
        for odd in ["null", *([f'"{long}"'] if is_json else [])]:
            own, neighbor = enqueue(conn, "w"), enqueue(conn, "w")
            leases = {row.workflow_id: row.lease for row in claim(conn, "worker", 2)}
            passed = {}
            for name, usual_one in batch.items():
                text = usual_one.replace("$ids", f"'{{{own},{neighbor}}}'").replace(
                    "$leases", f"'{{{leases[own]},{leases[neighbor]}}}'"
                )
                first, last = text[2:-2].split(",")
                passed[name] = f"'{{{odd if name == argument else first},{last}}}'"
            named = ", ".join(f"{name} => {each}" for name, each in passed.items())
            outcomes = rows(conn, f"select to_json(f)::text from durable.{function}({named}) f")
            failed = [json.loads(text) for (text,) in outcomes]
            assert all(each["outcome"] in ("ok", "parked") for each in failed if each["item"] == 2), (
                argument,
                odd,
                failed,
            )
            call(conn, "leave", "worker")
            if function in ("complete_many", "flush"):
                assert workflow(conn, neighbor).status == "completed"
            conn.execute("delete from durable.live_workflows")


def deepest(conn: Connection) -> int:
    """How many levels a value may have that a statement passes."""
    low, high = 100, 200_000
    while low < high - 1:
        middle = (low + high) // 2
        try:
            conn.execute("select durable.checkpoint(null, null, 's', %s)", ["[" * middle + "]" * middle])
        except psycopg.errors.StatementTooComplex:
            high = middle
        except psycopg.Error:
            low = middle
    return low


def test_what_is_nested_too_deep_to_be_part_of_another_value_harms_its_workflow_only(db: Database) -> None:
    conn = db.connect()
    levels = deepest(conn) - 5
    deep = "[" * levels + "]" * levels
    replayed, waiting, both, neighbor = (
        enqueue(conn, name, max_attempts=2) for name in ("replayed", "waiting", "both", "neighbor")
    )
    leases = {row.workflow_id: row.lease for row in claim(conn, "first", 9)}
    for step in ("a", "b"):
        conn.execute("select durable.checkpoint(%s, %s, %s, %s)", [replayed, leases[replayed], step, deep])
        conn.execute("select durable.checkpoint(%s, %s, %s, '1')", [neighbor, leases[neighbor], step])
    for receiver in (waiting, both, neighbor):
        conn.execute("select durable.send(%s, 'topic', %s)", [receiver, "1" if receiver == neighbor else deep])
        conn.execute("select durable.send(%s, 'other', '2')", [receiver])
    conn.execute("select durable.fail(%s, %s, %s, retry_in => '0')", [both, leases[both], deep])
    call(conn, "tick")
    call(conn, "leave", "first")
    # What a statement can read and what it can write differ from version to version, and with this.
    conn.execute("set max_stack_depth = '1MB'")

    # Without the large columns, for they cannot be read here, and all of them, for they can be sent.
    got = rows(
        conn,
        "select workflow_id, lease, length(c::text) as length, case when name <> 'both' then steps end as steps"
        " from durable.claim('second', max_workflows => 9) c",
    )
    leases = {row.workflow_id: row.lease for row in got}
    steps = {row.workflow_id: row.steps for row in got}
    assert len(got) == 4
    assert [step.get("omitted", False) for step in steps[replayed]] == [True, True]
    assert [step["step_name"] for step in steps[neighbor]] == ["a", "b"]
    assert value(conn, "select length(output::text) from durable.step_result(%s, 'a')", replayed) == len(deep)
    assert rows(conn, "select count(r::text) from durable.reclaim('second') r") == [(4,)]

    topics = '[{"message": "topic"}, {"message": "other"}]'
    outcomes = rows(
        conn,
        "select item, outcome from durable.wait_many(%s, %s, '{w,w,w}', array[%s, %s, %s]::jsonb[], modes => '{any,all,all}')",
        [waiting, both, neighbor], [leases[each] for each in (waiting, both, neighbor)], topics, topics, topics,
    )  # fmt: skip
    assert [row.outcome for row in outcomes] == ["WF006", "WF006", "ok"]
    with refused("WF006") as error:
        call(conn, "wait", waiting, leases[waiting], "w", topics)
    assert f"workflow {waiting}, step 'w': the payload is too large" in str(error.value)
    the_others_go_on(conn)


def test_a_schedule_whose_input_cannot_be_made_does_not_stop_the_others(db: Database) -> None:
    conn = db.connect()
    levels = deepest(conn) - 50
    for name, text in (
        ("before", '{"at": "{due_at}"}'),
        ("deep", f'{{"at": "{{due_at}}", "deep": {"[" * levels + "]" * levels}}}'),
        ("later", "null"),
    ):
        conn.execute("select durable.schedule(%s, '1 day', 'scheduled', %s)", [name, text])
    conn.execute("update durable.schedules set next_at = durable._now()")
    conn.execute("set max_stack_depth = '1MB'")
    the_others_go_on(conn)
    firings = {row.schedule: row for row in rows(conn, "select * from durable.schedule_firings")}
    assert (firings["before"].outcome, firings["later"].outcome) == ("fired", "fired")
    assert firings["deep"].outcome == "failed"
    assert "stack depth" in firings["deep"].reason


def test_what_has_come_and_is_too_large_together_ends_its_own_wait_only(db: Database) -> None:
    conn = db.connect()
    call(conn, "configure", "max_payload_bytes", "100000")
    both, neighbor = enqueue(conn, "w"), enqueue(conn, "w")
    leases = {row.workflow_id: row.lease for row in claim(conn, "worker", 2)}
    for receiver, size in ((both, 60_000), (neighbor, 30_000)):
        for topic in ("a", "b"):
            conn.execute("select durable.send(%s, %s, to_jsonb(repeat('x', %s)))", [receiver, topic, size])
    topics = '[{"message": "a"}, {"message": "b"}]'
    outcomes = rows(
        conn,
        "select item, outcome from durable.wait_many(%s, %s, '{w,w}', array[%s, %s]::jsonb[], modes => '{all,all}')",
        [both, neighbor], [leases[both], leases[neighbor]], topics, topics,
    )  # fmt: skip
    assert [row.outcome for row in outcomes] == ["WF006", "ok"]
    # Nothing is lost: it may take one after the other.
    assert rows(conn, "select count(*) from durable.messages where received_by is null") == [(2,)]
    the_others_go_on(conn)


def test_what_is_large_together_is_left_out(db: Database) -> None:
    conn = db.connect()
    # They compress to little, and are large as text.
    conn.execute("create table large as select jsonb_build_object('text', repeat('durable ', 12000)) as v")
    for n in range(3):
        workflow_id = enqueue(conn, f"w{n}")
        lease = claim_one(conn, "worker").lease
        conn.execute(
            """select count(*) from durable.checkpoint_many(
                 array_fill(%(id)s::uuid, array[4]), array_fill(%(lease)s::bigint, array[4]), '{a,b,c,d}',
                 array(select v from large, generate_series(1, 4)),
                 array[null, null, (select jsonb_build_object('message', repeat('no ', 100000)) from large), '1'])""",
            {"id": workflow_id, "lease": lease},
        )
    call(conn, "leave", "worker")
    got = rows(conn, "select length(steps::text) as length, steps from durable.claim('worker', max_workflows => 9)")
    for row in got:
        assert [(step["status"], step.get("omitted")) for step in row.steps] == [
            ("completed", None), ("completed", None), ("error", True), ("error", None),
        ]  # fmt: skip


def test_outputs_of_children_that_compress_well_are_left_with_the_children(db: Database) -> None:
    conn = db.connect()
    conn.execute("create table large as select jsonb_build_object('text', repeat('durable ', 160000)) as v")
    parent = enqueue(conn, "parent")
    lease = claim_one(conn).lease
    first = value(
        conn, "select durable.start_children(%s, %s, 's', 'child', array_fill('1'::jsonb, array[8]))", parent, lease
    )
    for child in claim(conn, "children", 8):
        query = "select durable.%s(%%s, %%s, v) from large" % ("complete" if child.workflow_id == first else "fail")
        conn.execute(query.encode(), [child.workflow_id, child.lease])
    ((outcome, output),) = call(conn, "wait", parent, lease, "w", json.dumps([{"children": str(first)}]))
    assert outcome == "ok"
    assert "outputs" not in output["value"]
    assert len(json.dumps(output)) < 10_000
    assert len(output["value"]["failed"]["1"]["error"]["message"]) == 200


def test_a_payload_that_has_no_text_is_refused_wherever_it_comes_from(db: Database) -> None:
    conn = db.connect()
    with refused("WF006") as error:
        conn.execute("select durable.enqueue('w', ('[' || repeat('1e131071,', 3100) || '1]')::jsonb)")
    assert "402653184 of text" in str(error.value)
    call(conn, "configure", "max_payload_bytes", "1000000")
    conn.execute("create table large as select jsonb_build_object('text', repeat('durable ', 200000)) as v")
    assert value(conn, "select pg_column_size(v) < 100000 from large")
    workflow_id = enqueue(conn, "w")
    lease = claim_one(conn).lease
    for query in (
        "enqueue('w', v)", "send($id, 'topic', v)", "emit('event', v)", "checkpoint($id, $lease, 's', v)",
        "fail_step($id, $lease, 's', v, 1, 2)", "publish($id, $lease, 'key', v)", "fork($id, input => v)",
        "request_approval($id, $lease, 's', 'May I?', form => v)", "continue_as_new($id, $lease, v)",
        "fork($id, outputs => jsonb_build_object('s', v))", "fail($id, $lease, v)", "complete($id, $lease, v)",
        "schedule('s', '@daily', 'w', v)", "start_children($id, $lease, 'c', 'w', array[v])",
    ):  # fmt: skip
        text = query.replace("$id", f"'{workflow_id}'").replace("$lease", str(lease))
        with refused("WF006"):
            conn.execute(f"select durable.{text} from large".encode())
    with refused("WF005"):
        conn.execute("select durable.enqueue('w', tags => v) from large")


NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,6})?", fullmatch=True)
SCALARS = st.one_of(
    NUMBERS, st.sampled_from(["null", "true", "1e131071", "-1e5000"]), st.text(max_size=50).map(json.dumps)
)


def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    names = st.text(max_size=10).map(json.dumps)
    return st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]"),
        st.dictionaries(names, inner, max_size=4).map(
            lambda items: "{" + ",".join(f"{name}:{each}" for name, each in items.items()) + "}"
        ),
        st.tuples(inner, st.integers(0, 6000)).map(lambda it: "[" * it[1] + it[0] + "]" * it[1]),
        st.tuples(inner, st.integers(1, 200)).map(lambda it: "[" + ",".join([it[0]] * it[1]) + "]"),
    )


def test_any_value_that_postgres_accepts_goes_through_a_workflow(db: Database) -> None:
    conn = db.connect()
    limit_texts(conn)
    taken: set[str] = set()

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.recursive(SCALARS, nested, max_leaves=8))
    def run(text: str) -> None:
        try:
            conn.execute("select %s::jsonb", [text])
        except psycopg.Error:
            return
        id = str(enqueue(conn, "w", max_attempts=2))
        lease = dict(rows(conn, "select workflow_id::text, lease from durable.claim('sql', max_workflows => 100)"))[id]
        own = {"id": id, "lease": lease, "v": text}
        for query in (
            "enqueue('w', %(v)s)", "enqueue('w', tags => %(v)s)", "checkpoint(%(id)s, %(lease)s, 's', %(v)s)",
            "fail_step(%(id)s, %(lease)s, 't', %(v)s, 1, 2)", "fail_step(%(id)s, %(lease)s, 't', %(v)s, 2, 2)",
            "publish(%(id)s, %(lease)s, 'key', %(v)s)", "send(%(id)s, 'topic', %(v)s)", "emit(%(id)s, %(v)s)",
            "wait(%(id)s, %(lease)s, 'w', %(v)s)", "wait(%(id)s, %(lease)s, 'm', '[{\"message\": \"topic\"}]')",
            "request_approval(%(id)s, %(lease)s, 'a', 'May I?', form => %(v)s)", "heartbeat('sql', '{}', '{}', %(v)s)",
            "decide(approval_id, 'approved', data => %(v)s) from durable.approvals where workflow_id = %(id)s and true",
            "wait(%(id)s, %(lease)s, 'a', '[{\"approval\": \"a\"}]')", "fork(%(id)s, outputs => %(v)s)",
            "fork(%(id)s, outputs => jsonb_build_object('s', %(v)s::jsonb))", "schedule('s', '* * * * * *', 'w', %(v)s)",
            "start_children(%(id)s, %(lease)s, 'c', 'w', array[%(v)s]::jsonb[])", "fail(%(id)s, %(lease)s, %(v)s)",
        ):  # fmt: skip
            try:
                conn.execute(f"select durable.{query}".encode(), own)
            except psycopg.Error as error:
                expect_of_durable(error, query)
            else:
                taken.add(query)
        the_others_go_on(conn)

    run()
    # Else nothing of this was tried.
    assert len(taken) >= 15
