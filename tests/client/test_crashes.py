"""Worker processes that are killed, frozen and drained."""

from __future__ import annotations

import itertools
import time

import pytest
from durable_client import RecoveryLimitExceeded

from client import programs
from client.journal import Journal
from client.programs import app
from client.workers import Processes
from clusters import Database
from engine import call, steps, value, wait_until, workflow

pytestmark = pytest.mark.pg(15, 18)

SUM = sum(n * n for n in range(5))


def test_03_after_kill_9_completed_steps_do_not_run_again_and_the_rest_do(
    db: Database, processes: Processes, journal: Journal
) -> None:
    handles = {}
    for program in (programs.chain, programs.plain_chain):
        for k in (0, 2, 4):
            name = f"{program.name}-at-{k}"
            journal.hold(f"{name}-{k}")
            handles[name, k] = app.enqueue(program, {"name": name, "steps": 5})
    worker = processes.start()
    for name, k in handles:
        journal.wait("square", name, k)
    worker.kill()
    for name, k in handles:
        journal.release(f"{name}-{k}")
    processes.start()
    for (name, k), handle in handles.items():
        assert handle.result(timeout=60) == SUM
        assert [journal.count("square", name, n) for n in range(5)] == [2 if n == k else 1 for n in range(5)]
        stored = workflow(db.connect(), handle.workflow_id)  # type: ignore[arg-type]
        assert (stored.attempt, stored.crashes, stored.failures) == (2, 0, 0)


def test_03_after_kill_9_between_the_last_step_and_the_end_nothing_runs_again(
    db: Database, processes: Processes, journal: Journal
) -> None:
    journal.hold("a-end")
    handle = app.enqueue(programs.plain_chain, {"name": "a", "steps": 5})
    worker = processes.start()
    journal.wait("square", "a", 4)
    with db.connect() as conn:
        while value(conn, "select count(*) from durable.workflow_steps") < 5:
            pass
    worker.kill()
    journal.release("a-end")
    processes.start()
    assert handle.result(timeout=60) == SUM
    assert journal.count("square") == 5


def test_04_two_workers_that_recover_the_same_workflows_run_each_once(
    db: Database, processes: Processes, journal: Journal
) -> None:
    names = [f"w{n}" for n in range(20)]
    for name in names:
        journal.hold(f"{name}-1")
    handles = [app.enqueue(programs.chain, {"name": name, "steps": 3}) for name in names]
    dying = processes.start()
    for name in names:
        journal.wait("square", name, 1)
    others = [processes.start(), processes.start()]
    for name in names:
        journal.release(f"{name}-1")
        journal.hold(f"{name}-2")
    dying.kill()
    for name in names:
        journal.wait("square", name, 2)
        journal.release(f"{name}-2")
    assert [handle.result(timeout=60) for handle in handles] == [5] * len(names)
    # Which of the three got how far when the first one was killed is left open; none of the others did a thing twice.
    other_pids = {other.pid for other in others}
    done = [tuple(note[1:3]) for note in journal.read() if note[3] in other_pids]
    assert len(done) == len(set(done))
    assert value(db.connect(), "select count(*) from durable.workflow_steps") == 3 * len(names)


def test_05_a_stale_owner_changes_nothing(db: Database, processes: Processes, journal: Journal) -> None:
    conn = db.connect()
    call(conn, "configure", "lease", "2 seconds")
    held = {"stuck in a step": "1", "about to end": "end"}
    handles = {}
    for name, place in held.items():
        for program in (programs.chain, programs.plain_chain):
            handles[f"{name}, {program.name}"] = place
            journal.hold(f"{name}, {program.name}-{place}")
    started = {name: app.enqueue(name.split(", ")[1], {"name": name, "steps": 2}) for name in handles}
    stale = processes.start()
    for name in handles:
        journal.wait("square", name, 1)
    stale.pause()
    owner = processes.start()
    for name, place in handles.items():
        if place != "end":
            journal.wait("square", name, 1, times=2)
        assert started[name].status() in ("pending", "running")
    for name, place in handles.items():
        journal.release(f"{name}-{place}")
    assert [handle.result(timeout=60) for handle in started.values()] == [1] * len(handles)
    before = [workflow(conn, handle.workflow_id) for handle in started.values()]  # type: ignore[arg-type]
    stored = [steps(conn, handle.workflow_id) for handle in started.values()]  # type: ignore[arg-type]
    owner.kill()
    stale.resume()
    # It is a healthy worker again, which takes what is there.
    assert app.enqueue(programs.chain, {"name": "next", "steps": 2}).result(timeout=60) == 1
    assert [note[3] for note in journal.read() if note[1] == "next"] == [stale.pid] * 2
    assert [workflow(conn, handle.workflow_id)._replace(worker=row.worker)  # type: ignore[arg-type]
            for handle, row in zip(started.values(), before, strict=True)] == before  # fmt: skip
    assert [steps(conn, handle.workflow_id) for handle in started.values()] == stored  # type: ignore[arg-type]
    for name in handles:
        assert journal.count("square", name, 0) == 1


def test_10_a_transaction_of_a_frozen_worker_commits_once(db: Database, processes: Processes, journal: Journal) -> None:
    conn = db.connect()
    call(conn, "configure", "lease", "2 seconds")
    conn.execute("create table transfers (name text)")
    programs_ = (programs.transferring, programs.plain_transferring)
    for program in programs_:
        journal.hold(f"transfer-{program.name}")
    handles = [app.enqueue(program, [program.name]) for program in programs_]
    frozen = processes.start()
    for program in programs_:
        journal.wait("transfer", program.name)
    frozen.pause()
    processes.start()
    while not value(conn, "select exists (select from durable.workers where died_at is not null)"):
        conn.execute("select pg_sleep(0.02)")
    for program in programs_:
        journal.release(f"transfer-{program.name}")
    frozen.resume()
    assert [handle.result(timeout=60) for handle in handles] == [[program.name] for program in programs_]
    assert [row[0] for row in conn.execute("select name from transfers order by name")] == sorted(
        program.name for program in programs_
    )


def test_10_a_transaction_of_a_worker_that_stays_frozen_is_taken_over(
    db: Database, processes: Processes, journal: Journal
) -> None:
    conn = db.connect()
    call(conn, "configure", "lease", "2 seconds")
    conn.execute("create table transfers (name text)")
    programs_ = (programs.transferring, programs.plain_transferring)
    for program in programs_:
        journal.hold(f"transfer-{program.name}")
    handles = [app.enqueue(program, [program.name]) for program in programs_]
    frozen = processes.start()
    for program in programs_:
        journal.wait("transfer", program.name)
    frozen.pause()
    for program in programs_:
        journal.release(f"transfer-{program.name}")
    processes.start()
    assert [handle.result(timeout=60) for handle in handles] == [[program.name] for program in programs_]
    frozen.resume()
    # It finds its sessions gone and is a healthy worker again.
    wait_until(conn, "select count(*) = 2 from durable.workers where died_at is null and session_lock")
    assert frozen.running()
    assert [row[0] for row in conn.execute("select name from transfers order by name")] == sorted(
        program.name for program in programs_
    )


def test_10_kill_9_in_a_transaction_leaves_neither_rows_nor_checkpoint(
    db: Database, processes: Processes, journal: Journal
) -> None:
    conn = db.connect()
    conn.execute("create table transfers (name text)")
    journal.hold("transfer-b")
    handles = [
        app.enqueue(program, ["a", "b", "c"]) for program in (programs.transferring, programs.plain_transferring)
    ]
    worker = processes.start()
    journal.wait("transfer", "b", times=2)
    worker.kill()
    journal.release("transfer-b")
    while value(conn, "select count(*) from pg_locks where relation = 'transfers'::regclass") > 0:
        conn.execute("select pg_sleep(0.01)")
    assert value(conn, "select array_agg(name) from transfers") == ["a", "a"]
    assert value(conn, "select count(*) from durable.workflow_steps") == 2
    processes.start()
    assert [handle.result(timeout=60) for handle in handles] == [["a", "b", "c"]] * 2
    assert value(conn, "select array_agg(name order by name) from transfers") == ["a", "a", "b", "b", "c", "c"]


def test_18_a_workflow_that_crashes_its_workers_is_given_up_and_says_so(
    db: Database, processes: Processes, journal: Journal
) -> None:
    call(db.connect(), "configure", "max_crashes", "2")
    handle = app.enqueue(programs.crashing)
    # Two crashes make it a suspect, and from then on they count.
    for n in range(1, 6):
        worker = processes.start()
        journal.wait("crash", times=n)
        worker.wait()
    processes.start()
    with pytest.raises(RecoveryLimitExceeded, match="gave up after 3 crashes in a row") as caught:
        handle.result(timeout=60)
    # It says what to do, and where to look while it goes on and after.
    assert f"durable retry {handle.workflow_id}" in (caught.value.hint or "")
    assert journal.count("crash") == 5


def test_22_sigterm_lets_workflows_finish(processes: Processes, journal: Journal) -> None:
    for name in ("a", "b"):
        journal.hold(f"{name}-2")
    handles = [
        app.enqueue(programs.chain, {"name": "a", "steps": 5}),
        app.enqueue(programs.plain_chain, {"name": "b", "steps": 5}),
    ]
    worker = processes.start()
    for name in ("a", "b"):
        journal.wait("square", name, 2)
    worker.terminate()
    # Long enough for the signal to arrive; were it not, the worker might still claim the next one and finish it.
    time.sleep(0.5)
    later = app.enqueue(programs.chain, {"name": "later", "steps": 1})
    for name in ("a", "b"):
        journal.release(f"{name}-2")
    assert worker.wait() == 0
    assert [handle.result(timeout=1) for handle in handles] == [SUM, SUM]
    assert journal.count("square") == 10
    assert later.status() == "pending"


def test_22_sigterm_gives_long_workflows_back_at_the_next_step(
    db: Database, processes: Processes, journal: Journal
) -> None:
    for name in ("a", "b"):
        journal.hold(f"{name}-2")
    handles = [
        app.enqueue(programs.chain, {"name": "a", "steps": 5}),
        app.enqueue(programs.plain_chain, {"name": "b", "steps": 5}),
    ]
    worker = processes.start(drain=0.1)
    for name in ("a", "b"):
        journal.wait("square", name, 2)
    worker.terminate()
    assert worker.wait() == 0
    assert [handle.status() for handle in handles] == ["pending", "pending"]
    for name in ("a", "b"):
        journal.release(f"{name}-2")
    processes.start()
    assert [handle.result(timeout=60) for handle in handles] == [SUM, SUM]
    for name in ("a", "b"):
        assert [journal.count("square", name, n) for n in range(5)] == [1, 1, 2, 1, 1]
    assert value(db.connect(), "select max(attempt) from durable.workflows") == 1


def test_22_sigterm_under_load_loses_nothing_and_runs_nothing_twice(
    db: Database, processes: Processes, journal: Journal
) -> None:
    names = [f"w{n}" for n in range(300)]
    handles = [
        *app.enqueue_many(programs.chain, [{"name": name, "steps": 3} for name in names[:200]]),
        *app.enqueue_many(programs.plain_chain, [{"name": name, "steps": 3} for name in names[200:]]),
    ]
    for _ in range(4):
        # Counted from here, for the signal is caught only once the worker runs.
        noted = journal.count("square")
        worker = processes.start(concurrency=30)
        journal.wait("square", times=min(noted + 20, 3 * len(names)))
        worker.terminate()
        assert worker.wait() == 0
    processes.start()
    assert [handle.result(timeout=60) for handle in handles] == [5] * len(handles)
    ran = [tuple(note[1:3]) for note in journal.read()]
    assert len(ran) == len(set(ran)) == 3 * len(names)


def test_a_step_that_runs_at_most_once_is_reported_as_interrupted_after_kill_9(
    processes: Processes, journal: Journal
) -> None:
    journal.hold("launch-a")
    journal.hold("launch-b")
    handles = [app.enqueue(programs.launching, "a"), app.enqueue(programs.plain_launching, "b")]
    worker = processes.start()
    journal.wait("launch", times=2)
    worker.kill()
    processes.start()
    assert handles[0].result(timeout=60) == "launch was interrupted"
    with pytest.raises(Exception, match="it was begun before a crash"):
        handles[1].result(timeout=60)
    assert journal.count("launch") == 2
    journal.release("launch-b")
    # Whoever retries the workflow decides that the step may run again.
    assert handles[1].retry()
    assert handles[1].result(timeout=60) == "launched"
    keys = {note[2] for note in journal.read() if note[1] == "b"}
    assert keys == {f"{handles[1].workflow_id}/launch"}


def test_now_uuid_and_random_are_the_same_in_every_replay(processes: Processes, journal: Journal) -> None:
    journal.hold("late-0")
    handle = app.enqueue(programs.dice)
    worker = processes.start()
    journal.wait("late", 0)
    worker.kill()
    journal.release("late-0")
    processes.start()
    drawn = handle.result(timeout=60)
    first, second = (note[1] for note in journal.read() if note[0] == "drawn")
    assert first == second == drawn[:5]
    assert len(set(drawn)) == 6


def test_code_that_blocks_the_event_loop_keeps_its_lease(db: Database, processes: Processes, journal: Journal) -> None:
    call(db.connect(), "configure", "lease", "1 second")
    handle = app.enqueue(programs.blocking, 3)
    first = processes.start()
    journal.wait("block")
    processes.start()
    assert handle.result(timeout=60) == first.pid
    assert journal.count("block") == 1


def test_the_waits_of_step_retries_survive_kill_9(processes: Processes, journal: Journal) -> None:
    handle = app.enqueue(programs.knocking)
    worker = processes.start()
    journal.wait("knock", 1)
    while not any(step.retry_at for step in handle.steps()):
        pass
    worker.kill()
    processes.start()
    assert handle.result(timeout=60) == 3
    knocks = [note[1:] for note in journal.read()]
    assert [attempt for attempt, _ in knocks] == [1, 2, 3]
    # The second half of each wait is left to chance.
    assert all(later[1] - earlier[1] >= 0.75 for earlier, later in itertools.pairwise(knocks))
