"""Values that Postgres stores and Python cannot take in: each harms the workflow that meets it, and no other."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from durable_client import AsyncContext, Context, Durable, Event, InvalidArgument, WorkflowFailed, _codec
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from client.workers import Processes, working
from clusters import Database
from engine import Connection, call, enqueue, rows, value, wait_until

pytestmark = pytest.mark.pg(15)

# What Python's json refuses.
HOSTILE = {
    "5001 digits": "1e5000",
    "131072 digits": "[1, -1e131071]",
    "larger than a float": "1" + "0" * 400 + ".5",
    "5000 levels": "[" * 5000 + "]" * 5000,
    # So long that the outputs of children stay with them, and of errors the beginning is enough.
    "long": f'["{"x" * 1_200_000}", 1e5000]',
    "deep in an object": '{"index": 0, "value": {"a": [1e5000]}}',
}
# What is only odd.
ODD = {
    "null": "null",
    "negative zero": "-0.0",
    "smaller than a float": "1e-16383",
    "deep": "[" * 300 + "]" * 300,
    "letters": json.dumps('\u202eright to left, \U0010ffff, {due_at}, \x01, a " and a \\, %s, $1'),
    "names": '{"__proto__": 1, "__proto__": {"constructor": 2}, "": 3}',
    "a long name": f'{{"{"x" * 1_000_000}": 1}}',
}
VALUES = HOSTILE | ODD

MEETINGS = ["meeting", "plain_meeting"]
OWN, CHILD = (f"array[%({id})s::uuid], array[%(lease)s::bigint]" for id in ("id", "child"))
EMPTY = "'{}'"

# What a worker in SQL does with a workflow that it has claimed: how the workflow goes on in Python, and the calls.
CLAIMED = {
    ("checkpoint", "output"): ("step", "select durable.checkpoint(%(id)s, %(lease)s, 'given', %(v)s)"),
    ("checkpoint_many", "outputs"): (
        "step",
        f"select durable.checkpoint_many({OWN}, '{{given}}', array[%(v)s::jsonb])",
    ),
    ("checkpoint_many", "errors"): (
        "step",
        f"select durable.checkpoint_many({OWN}, '{{given}}', '{{null}}', array[%(v)s::jsonb])",
    ),
    ("flush", "step_outputs"): (
        "step",
        f"select durable.flush({OWN}, '{{given}}', array[%(v)s::jsonb], '{{1}}', '{{1}}', '{{}}', '{{}}', '{{}}')",
    ),
    ("fail_step", "error"): ("step", "select durable.fail_step(%(id)s, %(lease)s, 'given', %(v)s)"),
    ("start_children", "inputs"): (
        "children",
        "select durable.start_children(%(id)s, %(lease)s, 'map:elsewhere', 'meeting', array[%(v)s, 'null']::jsonb[])",
    ),
    ("wait", ""): (
        "message",
        """select durable.send(%(id)s, 'topic', %(v)s);
           select durable.wait(%(id)s, %(lease)s, 'receive:topic', '[{"message": "topic"}]')""",
    ),
    ("publish", "value"): ("nothing", "select durable.publish(%(id)s, %(lease)s, 'progress', %(v)s)"),
    ("request_approval", "form"): (
        "nothing", "select durable.request_approval(%(id)s, %(lease)s, 'asking', 'May I?', form => %(v)s)",
    ),
    ("continue_as_new", "input"): ("nothing", "select durable.continue_as_new(%(id)s, %(lease)s, %(v)s)"),
    ("fork", "outputs"): (
        "step",
        """select durable.checkpoint(%(id)s, %(lease)s, 'given', '1');
           select durable.fork(%(id)s, 'given', outputs => jsonb_build_object('given', %(v)s::jsonb))""",
    ),
    ("fork", "input"): ("nothing", "select durable.fork(%(id)s, input => %(v)s)"),
    ("fork_many", "outputs"): (
        "step",
        """select durable.checkpoint(%(id)s, %(lease)s, 'given', '1');
           select durable.fork_many(array[%(id)s::uuid], outputs => jsonb_build_object('given', %(v)s::jsonb))""",
    ),
    ("fork_many", "input"): ("nothing", "select durable.fork_many(array[%(id)s::uuid], input => %(v)s)"),
}  # fmt: skip
# What comes to a workflow that waits in Python. Of a child, it is what a worker in SQL does with it.
WAITING = {
    ("send", "payload"): ("message", "select durable.send(%(id)s, 'topic', %(v)s)"),
    ("emit", "payload"): ("event", "select durable.emit('event of ' || %(id)s::text, %(v)s)"),
    ("decide", "data"): (
        "approval",
        "select durable.decide(approval_id, 'approved', data => %(v)s) from durable.approvals where workflow_id = %(id)s",
    ),
    ("complete", "output"): ("child", "select durable.complete(%(child)s, %(lease)s, %(v)s)"),
    ("complete_many", "outputs"): (
        "child",
        f"select durable.complete_many({CHILD}, array[%(v)s::jsonb])",
    ),
    ("flush", "outputs"): (
        "child",
        f"select durable.flush({', '.join(6 * [EMPTY])}, {CHILD}, array[%(v)s::jsonb])",
    ),
    ("fail", "error"): ("child", "select durable.fail(%(child)s, %(lease)s, %(v)s)"),
    ("fail_many", "errors"): (
        "child",
        f"select durable.fail_many({CHILD}, array[%(v)s::jsonb])",
    ),
}
# What a client gives a workflow at its start.
STARTED = {
    ("enqueue", "input"): "select durable.enqueue(%(name)s, %(v)s)",
    ("enqueue_many", "inputs"): "select durable.enqueue_many(%(name)s, array[%(v)s::jsonb])",
    ("schedule", "input"): (
        "select durable.schedule(md5(%(v)s || %(name)s), '@yearly', %(name)s, %(v)s);"
        "select durable.trigger_schedule(md5(%(v)s || %(name)s))"
    ),
}
# Where the workflow itself does not meet the value.
UNMET = {
    ("publish", "value"), ("request_approval", "form"), ("start_children", "inputs"), ("continue_as_new", "input"),
    ("fork", "outputs"), ("fork", "input"), ("fork_many", "outputs"), ("fork_many", "input"),
}  # fmt: skip
# No worker reads these.
UNREAD = {
    *((function, "tags") for function in ("enqueue", "enqueue_many", "start_children", "schedule")),
    ("wait", "conditions"), ("wait_many", "conditions"), ("heartbeat", "running_steps"),
}  # fmt: skip


def test_the_tests_know_every_argument_that_takes_json(db: Database) -> None:
    conn = db.connect()
    found = rows(
        conn,
        """select distinct p.proname::text as function, a.name as argument
           from unnest('{client,approver,worker}'::text[]) as audience, durable._functions_of(audience) as f(id)
           join pg_proc p on p.oid = f.id,
             unnest(p.proargnames) with ordinality as a(name, n)
           where a.n <= p.pronargs and p.proargtypes[a.n - 1] in ('jsonb'::regtype, 'jsonb[]'::regtype)""",
    )
    known = {*CLAIMED, *WAITING, *STARTED, *UNREAD} - {("wait", "")}
    assert {tuple(row) for row in found} | {("schedule", "input"), ("schedule", "tags")} == known


@dataclasses.dataclass
class Met:
    """A workflow that meets a value."""

    entry: tuple[str, str]
    label: str
    way: str
    query: str
    id: UUID
    lease: int = 0

    def run(self, conn: Connection, **more: Any) -> None:
        # Without parameters of the protocol, for there may be two statements.
        cursor = psycopg.ClientCursor(conn)
        cursor.execute(self.query.encode(), {"id": self.id, "lease": self.lease, "v": VALUES[self.label], **more})


def meet(conn: Connection, entries: dict[tuple[str, str], tuple[str, str]]) -> list[Met]:
    """Enqueues a workflow for each value and each entry, asynchronous or plain in turn, with neighbors of each way."""
    met = []
    for n, (entry, label) in enumerate((entry, label) for entry in entries for label in VALUES):
        way, query = entries[entry]
        # An odd number of values, so that each value and each entry has both kinds.
        name = MEETINGS[(n // len(VALUES) + n) % 2]
        workflow_id = value(conn, "select durable.enqueue(%s, to_jsonb(%s::text))", name, way)
        met.append(Met(entry, label, way, query, workflow_id))
    return met


def claim_all(conn: Connection, queue: str) -> dict[UUID, int]:
    return {
        row.workflow_id: row.lease
        for row in rows(conn, "select workflow_id, lease from durable.claim('sql', array[%s], 10000)", queue)
    }


def settled(conn: Connection) -> None:
    """Returns when every workflow has ended, or is paused."""
    wait_until(conn, "select not exists (select from durable.live_workflows where paused_at is null)")


def test_a_value_that_python_cannot_take_in_harms_its_own_workflow_only(db: Database, processes: Processes) -> None:
    conn = db.connect()
    claimed = meet(conn, CLAIMED)
    leases = claim_all(conn, "default")
    for met in claimed:
        met.lease = leases[met.id]
        met.run(conn)
    call(conn, "leave", "sql")
    for query in STARTED.values():
        for name in MEETINGS:
            for hostile in VALUES.values():
                psycopg.ClientCursor(conn).execute(query.encode(), {"name": name, "v": hostile})
    waiting = meet(conn, WAITING)
    neighbors = [
        (way, value(conn, "select durable.enqueue(%s, to_jsonb(%s::text))", name, way))
        for name in MEETINGS for way in ("message", "event", "approval", "child", "step", "nothing") for _ in range(2)
    ]  # fmt: skip

    worker = processes.start()
    asleep = [met.id for met in waiting] + [id for way, id in neighbors if way not in ("step", "nothing")]
    wait_until(
        conn,
        "select count(*) = %s from durable.live_workflows where workflow_id = any(%s) and status = 'waiting'",
        len(asleep), asleep,
    )  # fmt: skip
    children = claim_all(conn, "elsewhere")
    child_of = dict(rows(conn, "select parent_id, workflow_id from durable.live_workflows where parent_id is not null"))
    # All at once, so that the worker is told of the hostile ones and of their neighbors in the same call.
    with conn.transaction():
        for met in waiting:
            child = child_of.get(met.id)
            met.lease = children.get(child, 0) if child else 0
            met.run(conn, child=child)
        for way, id in neighbors:
            if way in ("step", "nothing"):
                continue
            entry = {"message": "send", "event": "emit", "approval": "decide", "child": "complete"}[way]
            query = next(query for (function, _), (_, query) in WAITING.items() if function == entry)
            child = child_of.get(id)
            lease = children.get(child, 0) if child else 0
            psycopg.ClientCursor(conn).execute(query.encode(), {"id": id, "child": child, "lease": lease, "v": "1"})

    settled(conn)
    assert worker.running()
    assert worker.running()
    ended = {
        row.workflow_id: row
        for row in rows(
            conn,
            """select workflow_id, name, status, attempt, crashes, paused_at is not null as paused, input::text,
                 coalesce(pause_reason, error ->> 'message', error::text) as reason, forked_from
               from durable.workflows""",
        )
    }
    assert {ended[id].status for _, id in neighbors} == {"completed"}
    # Nobody was at work twice.
    assert {(row.attempt, row.crashes) for row in ended.values()} == {(1, 0)}
    paused = {}
    for met in (*claimed, *waiting):
        row = ended.pop(met.id)
        what = (met, row.status, row.paused, row.reason)
        is_failure = met.entry[1] in ("error", "errors")
        is_readable = met.label in ODD or (is_failure and met.way == "child" and met.label == "long")
        if met.entry in UNMET or (met.label in ODD and not is_failure):
            assert row.status == "completed", what
        elif is_failure and (is_readable or met.way != "child"):
            assert row.status == "failed", what
            assert row.reason, what
            assert is_readable or "the stored error cannot be read in Python" in row.reason, what
        else:
            # Not failed: a retry would meet the value again.
            assert row.paused, what
            assert row.reason.startswith("step '"), what
            assert "cannot be read in Python: it " in row.reason, what
            paused[met.way] = row
    started = [row for row in ended.values() if row.name in MEETINGS]
    assert len(started) > len(STARTED) * len(MEETINGS) * len(VALUES)
    for row in started:
        if readable(row.input) and not row.paused:
            assert row.status == "completed", row
        elif row.paused:
            assert row.forked_from is not None, row
            assert row.reason.startswith("step 'given': the stored output cannot be read in Python"), row
        else:
            assert row.status == "failed", row
            assert f"workflow {row.workflow_id} ({row.name}): the input cannot be read in Python" in row.reason, row
    # What the reason says to do helps.
    for way, output in (("step", 1), ("message", {"index": 0, "value": 1})):
        remedy = re.search(r"durable fork ID --from '(.+)' --replace '\1=JSON'", paused[way].reason)
        assert remedy, paused[way]
        ((copy,),) = call(conn, "fork", paused[way].workflow_id, remedy[1], outputs=json.dumps({remedy[1]: output}))
        wait_until(conn, "select durable.status(%s) = 'completed'", copy)
    worker.terminate()
    assert worker.wait() == 0


def readable(text: str | None) -> bool:
    try:
        return "Infinity" not in json.dumps(json.loads(text or "null"))
    except (ValueError, RecursionError):
        return False


def test_what_a_client_cannot_read_is_an_error_of_that_value_only(db: Database, app: Durable) -> None:
    conn = db.connect()
    hostile = HOSTILE["5001 digits"]
    ids = [enqueue(conn, "w") for _ in range(4)]
    leases = claim_all(conn, "default")
    for id in ids:
        conn.execute("select durable.checkpoint(%s, %s, 's', '{\"fine\": 1}')", [id, leases[id]])
        conn.execute("select durable.publish(%s, %s, 'fine', '2')", [id, leases[id]])
        conn.execute("select durable.request_approval(%s, %s, 'asking', 'May I?', form => '3')", [id, leases[id]])
    one, failed, textual = ids[:3]
    conn.execute("select durable.checkpoint(%s, %s, 'hostile', %s)", [one, leases[one], hostile])
    conn.execute("select durable.publish(%s, %s, 'hostile', %s)", [one, leases[one], hostile])
    conn.execute("select durable.request_approval(%s, %s, 'b', 'Or?', form => %s)", [one, leases[one], hostile])
    conn.execute("select durable.complete(%s, %s, %s)", [one, leases[one], hostile])
    conn.execute("select durable.fail(%s, %s, %s)", [failed, leases[failed], hostile])
    conn.execute("select durable.fail(%s, %s, '\"in short\"')", [textual, leases[textual]])

    with pytest.raises(
        InvalidArgument, match=f"the output of workflow {one} cannot be read in Python: it has a number"
    ):
        app.handle(one).result()
    with pytest.raises(WorkflowFailed, match=f"workflow {failed} failed: Error: the stored error cannot be read"):
        app.handle(failed).result()
    with pytest.raises(WorkflowFailed, match=f"workflow {textual} failed: Error: in short"):
        app.handle(textual).result()
    steps = {step.name: step.output for step in app.handle(one).steps()}
    state = app.handle(one).state()
    forms = {record.step_name: record.form for record in app.approvals(state=None) if record.workflow_id == str(one)}
    assert (steps["s"], state["fine"], forms["asking"]) == ({"fine": 1}, 2, 3)
    assert len(app.approvals(state=None)) == 5
    for unreadable in (steps["hostile"], state["hostile"], forms["b"]):
        assert "cannot be read in Python" in repr(unreadable)
        for use in USES:
            with pytest.raises(InvalidArgument, match="cannot be read in Python: it has a number that is too large"):
                use(unreadable)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(ANY_JSON), st.dictionaries(st.text(), ANY_JSON), st.sampled_from([(", ", ": "), (",", ":")]))
def test_json_is_taken_apart_as_it_was_put_together(
    items: list[Any], fields: dict[str, Any], separators: tuple[str, str]
) -> None:
    text = json.dumps(items, separators=separators, ensure_ascii=False)
    assert [json.loads(part) for part in _codec.parts(text)] == items
    each = _codec.parts(json.dumps(fields, separators=separators))
    assert {json.loads(name): json.loads(field) for name, field in zip(each, each, strict=True)} == fields


def test_a_wait_that_cannot_be_sent_fails_its_own_workflow_only(db: Database, app: Durable) -> None:
    latin = Durable(make_conninfo(db.dsn, client_encoding="LATIN1"))

    def event(name: str) -> Event:
        return Event("\u20ac" if name == "euro" else name)

    @latin.workflow
    async def wait(ctx: AsyncContext, names: list[str]) -> Any:
        return (await ctx.wait_any(*map(event, names))).index

    @latin.workflow
    def plain_wait(ctx: Context, names: list[str]) -> Any:
        return ctx.wait_any(*map(event, names)).index

    waiting = [workflow for workflow in (wait, plain_wait) for _ in range(5)]
    neighbors = [app.enqueue(each, ["now", f"never {n}"]) for n, each in enumerate(waiting)]
    unsent = [app.enqueue(each, ["euro"]) for each in (wait, plain_wait)]
    many = [app.enqueue(each, [str(n) for n in range(10_001)]) for each in (wait, plain_wait)]
    with working(latin):
        for handle in many:
            with pytest.raises(WorkflowFailed, match="a wait for 10001 things is longer than 10000"):
                handle.result(timeout=60)
        app.emit("now")
        assert {handle.result(timeout=60) for handle in neighbors} == {0}
        # It fails, or is sent in another encoding.
        app.emit("\u20ac")
        for handle in unsent:
            with contextlib.suppress(WorkflowFailed):
                assert handle.result(timeout=60) == 0
    latin.close()


USES: list[Callable[[Any], Any]] = [
    lambda it: it["amount"], lambda it: it.amount, bool, list, len, int, lambda it: 1 in it,
]  # fmt: skip


def test_commands_list_hostile_rows_among_others(db: Database) -> None:
    conn = db.connect()
    tags = {name: json.dumps({"tag": json.loads(text)}) for name, text in ODD.items() if len(text) < 2000}
    tags |= {name: f'{{"tag": {text}}}' for name, text in HOSTILE.items() if len(text) < 6000}
    names = {"a\nb": "\x1b[2J\r\u009b", "\u202e": "\U0010ffff€"}
    for n in range(20):
        enqueue(conn, f"w{n}")
    for name, key in names.items():
        enqueue(conn, name, key=key)
    for text in (*HOSTILE.values(), *ODD.values()):
        conn.execute("select durable.enqueue('given', %s, queue => 'q')", [text])
    for text in tags.values():
        conn.execute("select durable.enqueue('tagged', null, tags => %s)", [text])
    hostile = claim_all(conn, "q")
    for (id, lease), text in zip(hostile.items(), VALUES.values(), strict=True):
        conn.execute("select durable.checkpoint(%s, %s, 's', %s)", [id, lease, text])
        conn.execute("select durable.request_approval(%s, %s, 'a', 'May I?', form => %s)", [id, lease, text])
        conn.execute("select durable.publish(%s, %s, 'p', %s)", [id, lease, text])
        conn.execute("select durable.fail(%s, %s, %s)", [id, lease, text])
        conn.execute("select durable.schedule('s' || md5(%s), '@yearly', 'w', %s)", [text, text])

    # A terminal with few letters.
    environment = os.environ | {"DURABLE_DSN": db.dsn, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}

    def durable(*command: str) -> str:
        done = subprocess.run(
            [Path(sys.executable).with_name("durable"), *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        return done.stdout

    total = value(conn, "select count(*) from durable.workflows")
    listed = durable("list", "--limit", "1000")
    assert len(listed.splitlines()) == 1 + total
    assert "\x1b" not in listed
    assert len(json.loads(durable("list", "-o", "json", "--limit", "1000"), parse_int=str)) == total
    assert len(durable("approvals", "--state", "all").splitlines()) == 1 + len(VALUES)
    assert len(durable("schedule", "list").splitlines()) == 1 + len(VALUES)
    by_label = dict(zip(VALUES, hostile, strict=True))
    for label in ("131072 digits", "letters"):
        shown = durable("show", str(by_label[label]))
        assert len(shown) < 20_000, label
        assert "failed" in shown
    (schedule,) = rows(conn, "select name from durable.schedules where length(input::text) > 100000 limit 1")
    assert len(durable("schedule", "show", schedule.name)) < 20_000
    assert "1000000" in durable("show", str(by_label["5001 digits"]), "-o", "json")
