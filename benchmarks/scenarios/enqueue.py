from __future__ import annotations

import json
from collections.abc import Iterator

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target
from benchmarks.workload import ONE_STEP, ORDER, QUEUE

TARGET = Target(150)
WARM_UP = 100

# Each call is timed by the server's clock within one transaction, as a trigger would make them.
LOOP = """
create function pg_temp.timed_enqueues(input jsonb, calls integer) returns setof float8 language plpgsql as $$
declare
  v_started timestamptz;
begin
  for i in 1 .. calls loop
    v_started := clock_timestamp();
    perform durable.enqueue('one_step', input, queue => 'orders');
    return next extract(epoch from clock_timestamp() - v_started) * 1e6;
  end loop;
end $$"""


def run(bench: Bench) -> Iterator[Measurement]:
    for system in bench.chosen("durable"):
        dsn = bench.prepare(system)
        calls = 2_000 if bench.quick else 10_000
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(LOOP)
            call = "select * from pg_temp.timed_enqueues(%s, %s)"
            conn.execute(call, [json.dumps(ORDER), WARM_UP])
            samples = [row[0] for row in conn.execute(call, [json.dumps(ORDER), calls])]
        yield Measurement.of(
            "enqueue", "durable", "in a server-side loop, mean", "µs", "lower", [sum(samples) / calls],
            settings={"calls": calls}, target=TARGET,
        )  # fmt: skip

        if bench.cluster.count_statements(True):
            mean = _statement_mean(bench.prepare(system), calls // 2)
            bench.cluster.count_statements(False)
            yield Measurement.of(
                "enqueue", "durable", "as a client's statement, mean", "µs", "lower", [mean],
                settings={"calls": calls // 2}, target=TARGET,
            )  # fmt: skip


def _statement_mean(dsn: str, calls: int) -> float:
    """Execution time of the prepared statement in transactions of a client, by pg_stat_statements."""
    call = "select durable.enqueue(%s, %s::jsonb, queue => %s)"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("create extension pg_stat_statements")
        for n in range(WARM_UP + calls):
            if n == WARM_UP:
                conn.execute("select pg_stat_statements_reset()")
            with conn.transaction():
                conn.execute(call, [ONE_STEP, json.dumps(ORDER), QUEUE], prepare=True)
        counted, mean = conn.execute(
            "select calls, mean_exec_time * 1000 from pg_stat_statements where query like 'select durable.enqueue(%'"
        ).fetchall()[0]
    assert counted == calls
    return float(mean)


SCENARIO = Scenario("enqueue", "One enqueue in the caller's transaction: time in the server", run)
