from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg

from benchmarks.bench import Bench, Scenario
from benchmarks.measurement import Measurement, Target

DUE_PER_SECOND = 1_000
CLAIM = 100
LINES = {
    "*/5 * * * *": "every five minutes",
    "30 2 * * 1-5": "half past two on weekdays",
    "0 9-17/2 1,15 * mon": "lists, a range with a step, either day",
}

# Timed by the server's clock, each call from where the one before ended.
LOOP = """
create function pg_temp.cron_next_us(line text, calls integer) returns float8 language plpgsql as $$
declare
  v_at timestamptz := '2026-01-01';
  v_started timestamptz := clock_timestamp();
begin
  for i in 1 .. calls loop
    v_at := durable.cron_next(line, v_at, 'Europe/Berlin');
  end loop;
  return extract(epoch from clock_timestamp() - v_started) * 1e6 / calls;
end $$"""

Connection = psycopg.Connection[tuple[object, ...]]


def run(bench: Bench) -> Iterator[Measurement]:
    for system in bench.chosen("durable"):
        dsn = bench.prepare(system)
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(LOOP)
            calls = 2_000 if bench.quick else 20_000
            for line, words in LINES.items():
                mean = conn.execute("select pg_temp.cron_next_us(%s, %s)", [line, calls]).fetchall()[0][0]
                yield Measurement.of(
                    "schedules", "durable", f"cron_next, {words}, mean", "µs", "lower", [mean],
                    settings={"line": line, "calls": calls}, target=Target(100),
                )  # fmt: skip
        yield from _due(bench, dsn)


def _due(bench: Bench, dsn: str) -> Iterator[Measurement]:
    """A thousand schedules fall due each second, one process ticks as a worker would, and another one claims."""
    schedules = 20_000 if bench.quick else 100_000
    window = 20.0 if bench.quick else 60.0
    settings = {"schedules": schedules, "due_per_s": DUE_PER_SECOND, "window_s": window}
    with psycopg.connect(dsn, autocommit=True) as conn:
        claims_alone = _claims(conn, window / 4)
        conn.execute(
            "select count(durable.schedule('s' || n, %s, 'report' || n %% 10, queue => 'reports',"
            " starts_at => '2026-01-01 UTC'::timestamptz + make_interval(secs => n %% %s)))"
            " from generate_series(1, %s) n",
            [f"{schedules // DUE_PER_SECOND} seconds", schedules // DUE_PER_SECOND, schedules],
        )
        conn.execute("analyze durable.schedules")
        ticks: list[float] = []
        ends = threading.Event()
        ticker = threading.Thread(target=_tick, args=(dsn, ticks, ends))
        ticker.start()
        try:
            # What fell due while the schedules were made is caught up with first.
            _run(conn, "reports", 10.0)
            since = conn.execute("select clock_timestamp()").fetchall()[0][0]
            del ticks[:]
            claims = _run(conn, "reports", window)
        finally:
            ends.set()
            ticker.join()
        fired, late, latest = conn.execute(
            "select count(*), percentile_cont(0.99) within group (order by late), max(late) from ("
            "  select extract(epoch from handled_at - due_at)::float8 * 1000 as late from durable.schedule_firings"
            "  where outcome = 'fired' and due_at > %s) f",
            [since],
        ).fetchall()[0]
    assert fired >= 0.9 * DUE_PER_SECOND * (window - 2), f"only {fired} fired"
    ticks.sort()
    claims.sort()
    claims_alone.sort()
    yield Measurement.of(
        "schedules",
        "durable",
        "tick, median",
        "ms",
        "lower",
        [ticks[len(ticks) // 2]],
        settings=settings,
        target=Target(300),
    )
    yield Measurement.of("schedules", "durable", "tick, max", "ms", "lower", [ticks[-1]], settings=settings)
    yield Measurement.of(
        "schedules", "durable", "late, p99", "ms", "lower", [late], settings=settings, target=Target(1000)
    )
    yield Measurement.of("schedules", "durable", "late, max", "ms", "lower", [latest], settings=settings)
    for name, times in (("without schedules", claims_alone), ("while they fire", claims)):
        yield Measurement.of(
            "schedules", "durable", f"claim of up to {CLAIM}, {name}, median", "ms", "lower", [times[len(times) // 2]],
            settings=settings,
        )  # fmt: skip


def _tick(dsn: str, times: list[float], ends: threading.Event) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        while not ends.is_set():
            started = time.perf_counter()
            report = conn.execute("select durable.tick()", prepare=True).fetchall()[0][0]
            times.append((time.perf_counter() - started) * 1000)
            assert isinstance(report["fired"], int), report
            ends.wait(min(500, max(20, report["next_in_ms"] or 500)) / 1000)


def _claims(conn: Connection, seconds: float) -> list[float]:
    """Claims of what one connection enqueues in step."""
    times = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        conn.execute(
            "select durable.enqueue_many('report', array_fill('{}'::jsonb, array[%s]), queue => 'alone')",
            [CLAIM],
            prepare=True,
        )
        times.append(_claim(conn, "alone"))
    return times


def _run(conn: Connection, queue: str, seconds: float) -> list[float]:
    """Claims and completes what the schedules start; returns how long the claims took that found all they asked for."""
    times = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        taken = _claim(conn, queue)
        if taken:
            times.append(taken)
        else:
            time.sleep(0.01)
    return times


def _claim(conn: Connection, queue: str) -> float:
    started = time.perf_counter()
    claimed = conn.execute(
        "select array_agg(workflow_id), array_agg(lease), count(*) from durable.claim('worker', array[%s], %s)",
        [queue, CLAIM],
        prepare=True,
    ).fetchall()[0]
    taken = (time.perf_counter() - started) * 1000
    if not claimed[2]:
        return 0.0
    conn.execute(
        "select count(*) from durable.complete_many(%s, %s, array_fill(null::jsonb, array[%s]))",
        list(claimed),
        prepare=True,
    )
    return taken if claimed[2] == CLAIM else 0.0


SCENARIO = Scenario("schedules", "Schedules: cron_next, and 1,000 falling due each second", run)
