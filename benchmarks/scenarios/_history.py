"""History that was not worked for: rows put straight into the partitions, as the engine would have stored them."""

from __future__ import annotations

import json
from typing import Any

import psycopg

from benchmarks.workload import ORDER, charge

# Of ten names in five queues; one in a hundred failed; each tenth has a key, and each tenth a tag. Ids begin with the
# time of creation, and come in its order.
WORKFLOWS = """
  insert into durable.finished_workflows (workflow_id, lease, created_at, started_at, completed_at, attempt,
    failures, crashes, max_attempts, priority, status, name, queue, key, tags, input, output, error)
  select (left(durable._first_id(t.at)::text, 13) || lpad(to_hex(28672 + n %% 4096), 5, '-') || '-8'
      || substr(md5(n::text), 1, 3) || '-' || lpad(to_hex(n), 12, '0'))::uuid,
    n, t.at, t.at, t.at + interval '1 second', 1, e.failed::integer, 0, 1, 0,
    case when e.failed then 'failed' else 'completed' end,
    'workflow ' || n %% 10, 'queue ' || n %% 5, case when n %% 10 = 0 or %(keyed)s then %(day)s || ' ' || n end,
    case when n %% 10 = 0 then jsonb_build_object('tenant', 'tenant ' || n / 10 %% 1000) else '{}' end,
    %(input)s::jsonb, case when not e.failed then %(output)s::jsonb end,
    case when e.failed then '{"type": "CardDeclined", "message": "the card was declined"}'::jsonb end
  from generate_series(1, %(count)s) n,
    lateral (select durable._start_of(%(day)s::date) + n * (least(now(), durable._start_of(%(day)s::date + 1))
      - durable._start_of(%(day)s::date)) / (%(count)s + 1) as at) t,
    lateral (select n %% 100 = 0 as failed) e"""
STEPS = """
  insert into durable.checkpoints (workflow_id, started_at, completed_at, attempt, status, step_name, output)
  select f.workflow_id, f.started_at, f.completed_at, 1, 'completed', 'charge #' || s, %(output)s::jsonb
  from durable.finished_workflows f, generate_series(1, %(steps)s) s
  where f.workflow_id >= durable._first_id(durable._start_of(%(day)s::date))
    and f.workflow_id < durable._first_id(durable._start_of(%(day)s::date + 1))"""
KEYS = """
  insert into durable.workflow_keys (key, name, workflow_id)
  select f.key, f.name, f.workflow_id from durable.finished_workflows f
  where f.workflow_id >= durable._first_id(durable._start_of(%(day)s::date))
    and f.workflow_id < durable._first_id(durable._start_of(%(day)s::date + 1)) and f.key is not null"""


def fill_day(conn: psycopg.Connection[Any], days_ago: int, workflows: int, steps: int, *, keyed: bool) -> str:
    """Finished workflows of a past day, which is returned, with that many steps each; all with a key, or one in ten."""
    values = {"input": json.dumps(ORDER), "output": json.dumps(charge(ORDER)), "steps": steps, "keyed": keyed}
    day: str = conn.execute("select ((now() at time zone 'UTC')::date - %s)::text", [days_ago]).fetchall()[0][0]
    conn.execute("select durable._provision_partitions(%(day)s, %(day)s)", {"day": day})
    for statement in (WORKFLOWS, STEPS, KEYS):
        conn.execute(statement, {**values, "count": workflows, "day": day})
    return day
