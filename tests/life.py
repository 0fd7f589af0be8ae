"""One life of everything: each part of the engine is used once, in SQL, and what came out is told.

The same calls come to the same outcome wherever and whenever they are made, so two accounts can be compared. Rows come as JSON,
which a client can read whatever the settings of its session are.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from engine import Connection

CRON = (
    "@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually", "*/5 * * * *", "30 6 * * mon-fri", "0 12 L * *",
    "0 0 * * fri#2", "0 0 * * 5L", "0 22-4/3 * jan,jul sun", "15 30 8 1-7 * ?", "0\t4 *\n* 7", "5/15 * * * *", "30 seconds",
    "1 hour 30 minutes", " 1 day", "1.5 minutes", "00:05:00", "@DAILY", "30 6 * JAN-JUN MON,FRI", "0 0 L * FRI#2",
)  # fmt: skip
REFUSED_CRON = (
    "", "daily", "* * * *", "61 * * * *", "* * * * mon#6", "0 0 15W * *", "* * 30 2 *", "a b c d e", "1 month", "0.1 seconds", "5/0 * * * *",
    r"\d * * * *",
)  # fmt: skip
ZONES = ("UTC", "Europe/Berlin", "Asia/Kathmandu", "Etc/GMT+5")
REFUSED_ZONES = ("CET", "UTC+2", "Europe/Atlantis", "Etc/GMT+x")
VIEWS = (
    "workflows", "workflow_steps", "workflow_state", "approvals", "queues", "workers", "settings", "retention_rules", "schedules",
    "schedule_firings", "schedule_backfills",
)  # fmt: skip
# Leases differ. Partitions are made at midnight, lines are tidied and workers rung for when nobody looks, and what a trigger
# woke no tick has to.
LEFT_OUT = {"lease", "partitions", "lines", "signalled", "rung", "isolation"}
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


# A call of durable, or a look at one of its views, without an operator or a function of anybody else.
CALL = re.compile(r"select (\*|[\w, ]+)( from|) durable\.\w+(\((%s|\w+ => %s|, )*\)|)( as value|)")


class Life:
    """Lives on one connection, in autocommit mode; ``account`` tells each call and what came of it.

    A ``search_path`` is that of the calls of durable, and not of the questions that are asked in between.
    """

    def __init__(self, conn: Connection, search_path: str | None) -> None:
        self._conn = conn
        self._search_path = search_path
        self._names: dict[str, str] = {}
        self.account: list[tuple[str, Any]] = []

    def ask(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """The rows of a query."""
        whole = f"select coalesce(pg_catalog.jsonb_agg(pg_catalog.to_jsonb(r)), '[]') from ({query}) as r"
        try:
            if self._search_path is not None:
                path = self._search_path if CALL.fullmatch(query) else "pg_catalog"
                self._conn.execute(f"set search_path = {path}".encode())
            ((found,),) = self._conn.execute(whole.encode(), parameters or None).fetchall()
        except psycopg.Error as error:
            self._tell(query, parameters, f"{error.sqlstate}: {error.diag.message_primary}")
            return []
        self._tell(query, parameters, found)
        assert isinstance(found, list)
        return found

    def run(self, query: str) -> Any:
        """What is no part of the account: the first row."""
        cursor = self._conn.execute(query.encode())
        return cursor.fetchone() if cursor.description else None

    def call(self, function: str, *arguments: Any, **named: Any) -> Any:
        """The one value that a function of durable returns."""
        places = ["%s"] * len(arguments) + [f"{name} => %s" for name in named]
        values = [Jsonb(v) if isinstance(v, dict) else v for v in (*arguments, *named.values())]
        rows = self.ask(f"select durable.{function}({', '.join(places)}) as value", *values)
        return rows[0]["value"] if rows else None

    def claim(self, *queues: str, worker: str = "w", most: int = 20) -> list[dict[str, Any]]:
        return self.ask(
            "select workflow_id, lease, name, input, attempt, steps, queue from durable.claim(%s, %s, %s)",
            worker,
            list(queues),
            most,
        )

    def wait(self, held: dict[str, Any], step: str, conditions: str, **named: Any) -> Any:
        places = "".join(f", {name} => %s" for name in named)
        query = f"select outcome, output from durable.wait(%s, %s, %s, %s{places})"
        return self.ask(query, held["workflow_id"], held["lease"], step, conditions, *named.values())

    def _tell(self, query: str, parameters: tuple[Any, ...], came: Any) -> None:
        self.account.append((self._plain(f"{query} {parameters}"), self._told(came)))

    def _told(self, came: Any) -> Any:
        if isinstance(came, dict):
            return {k: self._told(v) for k, v in came.items() if k not in LEFT_OUT and not k.endswith("_in_ms")}
        if isinstance(came, list):
            return [self._told(item) for item in came]
        return self._plain(came) if isinstance(came, str) else came

    def _plain(self, text: str) -> str:
        """Without what differs from life to life: ids and leases."""
        text = UUID.sub(lambda found: self._names.setdefault(found[0], f"id {len(self._names)}"), text)
        text = re.sub(r"\d{7,}", "…", text)
        return re.sub(r"\d{4}-\d\d-\d\dT[\d:.+-]+", "…", text)


def live(conn: Connection, *, search_path: str | None = None) -> list[tuple[str, Any]]:
    """What each call returned, and what is stored in the end."""
    life = Life(conn, search_path)
    for part in (_settings, _times, _steps, _failures, _waits, _children, _control, _schedules, _workers, _history):
        part(life)
    for view in VIEWS:
        rows = life.ask(f"select * from durable.{view}")
        # In an order that nobody asked for.
        life.account[-1] = (view, len(rows))
    life.ask(
        """select name, status, queue, key, priority, tags, attempt, failures, crashes, suspicions, max_attempts, input, output, error,
             error_message, started_at is null as unstarted, completed_at is null as unended, wake_at is null as awake,
             extract(epoch from deadline - started_at) as given, extract(epoch from timeout) as timeout, worker, parent_id,
             paused_at is null as unpaused, pause_reason, warning, forked_from, forked_at_step, continued_from, continued_as
           from durable.workflows order by workflow_id"""
    )
    life.ask(
        """select workflow_id, step_name, status, attempt, output, error, retry_at is null as unretried, at_most_once,
             wait_until is null as endless, waits_for
           from durable.workflow_steps order by workflow_id, step_name"""
    )
    for view in (
        "select queue from durable.queues order by queue", "select name, value, default_value from durable.settings order by name",
        "select queue, workflow, extract(epoch from keep) as keep from durable.retention_rules order by 1, 2",
        "select name, cron, timezone, overlap, extract(epoch from next_at - now()) > 0 as later, error from durable.schedules order by 1",
        "select schedule, outcome, open, workflow_id is null as is_nothing, reason from durable.schedule_firings order by schedule, due_at",
        "select workflow_id, key, value from durable.workflow_state order by 1, 2",
        "select subject, state, decision, decided_by, comment, data from durable.approvals order by approval_id",
        "select count(*) from durable.messages", "select event, payload from durable.events order by event",
        "select count(*) from durable.waits", "select count(*) from durable.open_steps", 'select key, name from durable.workflow_keys order by key collate "C"',
        "select distinct queue, priority, name from durable.lines order by 1, 2, 3",
    ):  # fmt: skip
        life.ask(view)
    return life.account


def _settings(life: Life) -> None:
    for name, given in (
        ("lease", "1 day 02:00"), ("session_grace", "250 milliseconds"), ("restart_grace", "0 seconds"), ("retry_initial", "0 seconds"), ("retry_max", "PT5M"),
        ("retry_backoff", "1.5"), ("max_payload_bytes", "1000000"), ("retention", "30 days"), ("lease", "-1 day 26:00"), ("lease", "soon"),
        ("lease", "1 day 2 hours ago"), ("nothing", "1"), ("event_retention", "1 year 2 mons"),
    ):  # fmt: skip
        life.call("configure", name, given)
    life.ask("select extract(epoch from durable._lease()) as lease, durable._max_payload() as most")
    life.ask(
        "select name, extract(epoch from value::interval) as s from durable.settings where type = 'interval'::regtype order by name"
    )


def _times(life: Life) -> None:
    """Each as milliseconds since 1970, for what JSON says of a time depends on the session's zone."""
    life.ask(
        'select c.cron, array_agg(extract(epoch from durable.cron_next(c.cron, t, z.zone)) / 3600 order by z.zone collate "C", t) as hours'
        " from unnest(%s::text[]) as c(cron), unnest(%s::text[]) as z(zone), unnest(array["
        "   '2026-03-28 23:59:30+00', '2024-02-28 12:00:00.5+00', '2026-10-25 00:30:00+00']::timestamptz[]) as t"
        ' group by c.cron order by c.cron collate "C"',
        list(CRON),
        list(ZONES),
    )
    for cron in REFUSED_CRON:
        life.call("cron_next", cron, "2026-01-01T00:00:00Z")
    for zone in REFUSED_ZONES:
        life.call("cron_next", "@daily", "2026-01-01T00:00:00Z", zone)
    life.ask(
        "select durable._day_of(id) = date '2026-01-31' as is_its_day, extract(epoch from durable._start_of('2026-02-01')) as began"
        " from (select durable._first_id('2026-01-31 23:59:59.999+00') as id) i"
    )


def _steps(life: Life) -> None:
    life.call("enqueue", "plain", {"n": 1}, queue="a")
    life.call("enqueue", "plain", {"n": 2}, queue="a", key="k", tags={"tenant": "acme"})
    life.call("enqueue", "plain", {"n": 3}, queue="a", key="k")
    life.call("enqueue", "other", {"n": 3}, queue="a", key="k")
    life.call("enqueue", "plain", {"n": 4}, queue="a", priority=-3, timeout="1 day 00:30", max_attempts=3)
    life.call("enqueue", "late", queue="a", run_at="2200-01-01T00:00:00Z")
    life.ask(
        "select durable.enqueue_many('many', array['1', '\"NULL\"', null, '{\"a\": [null]}']::jsonb[], queue => 'a',"
        " keys => array['NULL', null, 'null', null]) as id"
    )
    life.call("enqueue", "plain", priority=40000)
    life.call("enqueue", "")
    held = life.claim("a")
    first, second, third = held[:3]
    for n, one in enumerate(held):
        life.call("checkpoint", one["workflow_id"], one["lease"], "s", {"n": n})
    life.call("checkpoint", first["workflow_id"], first["lease"], "s", {"n": "again"})
    life.call("begin_step", first["workflow_id"], first["lease"], "b")
    life.call("start_step", first["workflow_id"], first["lease"], "once")
    life.call("start_step", first["workflow_id"], first["lease"], "once", 2)
    life.call("checkpoint", first["workflow_id"], 1, "stale", {})
    life.ask(
        "select extract(epoch from durable.fail_step(%s, %s, 'f', '{\"message\": \"no\"}', 1, 3, '00:01:30', 2, '1 hour')) between 45 and 90 as ok",
        second["workflow_id"],
        second["lease"],
    )
    life.call("publish", second["workflow_id"], second["lease"], "at", {"per cent": 50.5})
    life.call("warn", second["workflow_id"], second["lease"], "slow")
    life.call("state", second["workflow_id"])
    life.ask(
        "select * from durable.checkpoint_many(%s::uuid[], %s::bigint[], '{m,m}', array['1', null]::jsonb[], array[null, '{\"message\": \"x\"}']::jsonb[])"
        " order by item",
        [first["workflow_id"], second["workflow_id"]],
        [first["lease"], second["lease"]],
    )
    life.ask(
        "select * from durable.flush(%s::uuid[], %s::bigint[], '{z,y}', array[null, '\"y\"']::jsonb[], '{1,2}', '{3,4}',"
        " %s::uuid[], %s::bigint[], array[null, '2']::jsonb[]) order by kind, item",
        [first["workflow_id"], third["workflow_id"]], [first["lease"], third["lease"]],
        [first["workflow_id"], second["workflow_id"]], [first["lease"], 1],
    )  # fmt: skip
    life.call("complete", second["workflow_id"], second["lease"], {"done": True})
    life.call("complete", second["workflow_id"], second["lease"], {"done": True})
    life.ask(
        "select * from durable.complete_many(%s::uuid[], %s::bigint[], array_fill('7'::jsonb, array[%s])) order by item",
        [one["workflow_id"] for one in held[2:]], [one["lease"] for one in held[2:]], len(held) - 2,
    )  # fmt: skip
    life.ask("select status, output, error from durable.result(%s)", first["workflow_id"])
    life.ask(
        "select step_name, status, output, error from durable.history(%s) order by step_name", first["workflow_id"]
    )
    life.ask("select status, output, error from durable.step_result(%s, 's')", first["workflow_id"])
    life.call("tick")


def _failures(life: Life) -> None:
    life.call("enqueue", "failing", queue="b", max_attempts=2)
    life.call("enqueue", "lost", queue="b")
    life.call("enqueue", "twice", queue="b", max_attempts=3)
    failing, lost, twice = life.claim("b")
    life.call("fail", failing["workflow_id"], failing["lease"], {"type": "E", "message": "no", "step": "s"})
    life.call("fail", lost["workflow_id"], lost["lease"], {"type": "E", "message": "never"}, retryable=False)
    life.ask(
        "select * from durable.fail_many(%s::uuid[], %s::bigint[], array['{\"message\": \"1\"}', null]::jsonb[], array['0', null]::interval[])"
        " order by item",
        [twice["workflow_id"], lost["workflow_id"]],
        [twice["lease"], lost["lease"]],
    )
    life.call("tick")
    (failing, twice) = life.claim("b")
    life.call("fail", failing["workflow_id"], failing["lease"], {"message": "no again"})
    life.ask("select durable.release_many(%s::uuid[], %s::bigint[])", [twice["workflow_id"]], [twice["lease"]])
    (twice,) = life.claim("b")
    life.call("complete", twice["workflow_id"], twice["lease"])
    life.call("retry", failing["workflow_id"])
    life.ask("select durable.retry_many(%s::uuid[])", [lost["workflow_id"], twice["workflow_id"]])
    for one in life.claim("b"):
        life.call("complete", one["workflow_id"], one["lease"], {"retried": True})
    life.call("status", "01900000-0000-7000-8000-000000000000")


def _waits(life: Life) -> None:
    waits = {
        "mail": '[{"message": "topic"}, {"timer": 864000}]',
        "news": '[{"event": "news"}]',
        "asks": '[{"approval": "ask"}]',
        "sleeps": '[{"timer": 0.01}]',
        "both": '[{"event": "news"}, {"message": "topic"}]',
    }
    modes = {"both": {"mode": "all"}, "news": {"timeout": "2 days 00:00:01"}}
    held = {}
    for name, conditions in waits.items():
        life.call("enqueue", name, queue=name)
        (held[name],) = life.claim(name)
        if name == "asks":
            life.call(
                "request_approval", held[name]["workflow_id"], held[name]["lease"], "ask", "may I?", "ada", {"eur": 120}, "2 days 12:00"
            )  # fmt: skip
        life.wait(held[name], "s", conditions, **modes.get(name, {}))
    life.wait(held["both"], "s", '[{"never": 1}]')
    life.call("send", held["mail"]["workflow_id"], "topic", {"n": 1}, "k")
    life.call("send", held["mail"]["workflow_id"], "topic", {"n": 1}, "k")
    life.call("emit", "news", {"n": 2})
    life.call("emit", "news", {"n": 3})
    life.call("send", held["both"]["workflow_id"], "topic", {"n": 4})
    life.ask(
        "select durable.decide(approval_id, 'approved', 'ada', 'fine', '[1.50]') from durable.approvals where state = 'pending'"
    )
    life.ask("select durable.decide(approval_id, 'approved') from durable.approvals")
    life.ask("select extract(epoch from expires_at - requested_at) as given from durable.approvals")
    life.ask("select durable.tick() from pg_sleep(0.02)")
    for name, conditions in waits.items():
        (one,) = life.claim(name)
        life.wait(one, "s", conditions, **modes.get(name, {}))
        life.call("complete", one["workflow_id"], one["lease"])


def _children(life: Life) -> None:
    life.call("enqueue", "parent", queue="d")
    (parent,) = life.claim("d")
    first = life.ask(
        "select durable.start_children(%s, %s, 'c', 'child', array['1', '2', null]::jsonb[], queue => 'e', max_parallel => 2) as value",
        parent["workflow_id"],
        parent["lease"],
    )[0]["value"]
    condition = f'[{{"children": "{first}"}}]'
    life.wait(parent, "w", condition)
    one, two = life.claim("e")
    life.call("complete", one["workflow_id"], one["lease"], {"child": 1})
    life.call("fail", two["workflow_id"], two["lease"], {"message": "no"})
    life.call("tick")
    (three,) = life.claim("e")
    life.call("complete", three["workflow_id"], three["lease"])
    life.call("tick")
    (parent,) = life.claim("d")
    life.wait(parent, "w", condition)
    life.ask("select workflow_id, status, output, error from durable.child_results(%s)", first)
    life.call("complete", parent["workflow_id"], parent["lease"])


def _control(life: Life) -> None:
    ids = [life.call("enqueue", f"steered {n}", {"n": n}, queue="f") for n in range(5)]
    for n in (0, 1):
        life.call("pause", ids[n], "look")
    life.call("cancel", ids[2], "not wanted")
    life.call("resume", ids[0])
    held = life.claim("f")
    for one in held:
        life.call("checkpoint", one["workflow_id"], one["lease"], "s", {"s": 1})
        life.call("checkpoint", one["workflow_id"], one["lease"], "t", {"t": 1})
    life.call("suspend", held[0]["workflow_id"], held[0]["lease"], "ask somebody")
    life.call("continue_as_new", held[1]["workflow_id"], held[1]["lease"], {"next": 1})
    life.call("cancel", held[2]["workflow_id"])
    life.call("complete", held[2]["workflow_id"], held[2]["lease"])
    life.call("resume", held[0]["workflow_id"])
    life.call("fork", held[2]["workflow_id"], "t", {"forked": 1}, outputs={"s": 2})
    life.ask("select durable.fork_many(%s::uuid[], 's')", [held[2]["workflow_id"]])
    for one in life.claim("f"):
        life.call("complete", one["workflow_id"], one["lease"])


def _schedules(life: Life) -> None:
    def schedule(name: str, cron: str, **named: Any) -> None:
        places = "".join(f", {name} => %s" for name in named)
        life.ask(
            f"select extract(epoch from durable.schedule(%s, %s, 'report', queue => 'g'{places})) > 0 as is_some",
            name,
            cron,
            *named.values(),
        )

    # None falls due by itself meanwhile.
    later = "2200-01-01T00:00:00Z"
    schedule(
        "yearly",
        "@yearly",
        timezone="Europe/Berlin",
        overlap="queue_one",
        catchup="1 day 06:00",
        jitter="00:05",
        starts_at=later,
    )
    schedule("leap", "*/5 * 29 2 *", input=Jsonb({"at": "{due_at}", "of": "{schedule}"}), timeout="1 day 00:10")
    schedule("weekdays", "30 6 * * mon-fri", starts_at=later, max_firings=3)
    schedule("every", "1 day 01:00", overlap="allow", starts_at=later)
    schedule("wrong", "@often")
    life.ask("select extract(epoch from n) as s from durable.next_firings('weekdays', 5) as n")
    life.call("trigger_schedule", "yearly")
    life.call("pause_schedule", "every", "quiet")
    life.ask("select extract(epoch from durable.resume_schedule('every')) > 0 as is_some")
    for dry in (True, False):
        life.ask(
            "select extract(epoch from due_at) as s, outcome, action"
            " from durable.backfill_schedule('leap', '2024-02-29 00:50:00+00', '2024-02-29 01:10:00+00', %s, 9)",
            dry,
        )
    life.run("update durable.schedules set next_at = now() - interval '1 second' where name = 'weekdays'")
    life.call("tick")
    for one in life.claim("g"):
        life.call("complete", one["workflow_id"], one["lease"])
    life.call("unschedule", "every")
    life.call("tick")


def _workers(life: Life) -> None:
    life.call("enqueue", "held", queue="h")
    life.call("enqueue", "held", queue="h")
    life.call("enqueue", "kept", queue="h")
    life.ask("select count(durable.attach('dies', '{h}'))")
    one, two = life.claim("h", worker="dies", most=2)
    life.ask("select workflow_id, name, steps from durable.reclaim('dies', array[%s]::uuid[])", one["workflow_id"])
    life.ask(
        "select workflow_id, reason from durable.heartbeat('dies', %s::uuid[], %s::bigint[])",
        [one["workflow_id"], two["workflow_id"]],
        [one["lease"], 1],
    )
    life.ask("select count(durable.idle('rests', '{h}', '{held}'))")
    life.ask("select name, queues, died_at is null as lives, session_lock from durable.workers order by worker_id")
    # In another session nobody would hold its lock.
    life.ask("select pg_advisory_unlock_all()")
    life.run(
        "update durable.workers set session_lock = false, expires_at = now() - interval '1 second' where name = 'dies'"
    )
    life.call("recover")
    for again in life.claim("h", worker="takes over"):
        life.call("complete", again["workflow_id"], again["lease"])
    life.call("leave", "takes over")
    life.ask("select durable.recheck_waits('{}')")


def _history(life: Life) -> None:
    life.call("retain", "1 year 2 days", workflow="plain")
    life.call("retain", "00:30", queue="b")
    life.ask("select durable._provision_partitions('2020-02-29', '2020-03-01')")
    there = "select count(*) as days from pg_class where relname ~ '^(finished_workflows|checkpoints)_2020'"
    life.ask(there)
    for _ in range(40):
        life.run("call durable._tick_for('0')")
        if life.run(there) == (0,):
            break
    life.ask(there)
    for _ in range(3):
        life.call("tick")
