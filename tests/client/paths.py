"""The paths of workflows that are killed at every call: their code, and what happens to them from outside.

A path is a program (its workflows), a driver (what enqueues them, sends, cancels …) and a check of what must be true in
the end. Program and driver run in processes of their own, any of which may be killed at any call and is then started
again. So a driver begins anew, and must find out how far it had come.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from uuid import UUID

import psycopg
from durable_client import (
    AsyncContext,
    ChildFailed,
    Context,
    Durable,
    Event,
    Handle,
    Message,
    Retry,
    StepFailed,
    StepInterrupted,
    Timer,
    WaitTimedOut,
    current_step,
)
from durable_client._context import context, context_async, engine
from durable_client._context.run import LONG_RUN

app = Durable()
PATIENCE = 60.0
LOOK = 0.005

# When bodies of steps ran, and what was wrong with it; what transactions did; every time at which a wait was to end; and
# what the driver tells the program, and its later self.
TABLES = """
create table effects (workflow_id uuid, step text, wrong text);
create table bookings (workflow_id uuid, step text);
create table ends (workflow_id uuid, step text, at timestamptz);
create table flags (name text);
create function keep_end() returns trigger language plpgsql as $$
begin
  insert into public.ends values (new.workflow_id, new.step_name, new.wait_until);
  return null;
end $$;
create trigger keep_end after insert or update on durable.open_steps for each row when (new.waits_for is not null)
execute function keep_end();
"""
CLEAN = "truncate effects, bookings, ends, flags"


class _Straight:
    """The way to the database that nothing disturbs, for what is no call of durable."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._conn: psycopg.Connection[Any] | None = None

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            if self._conn is None:
                self._conn = psycopg.connect(os.environ["STRAIGHT_DSN"], autocommit=True)
            cursor = self._conn.execute(query.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, *parameters: Any) -> Any:
        return self.rows(query, *parameters)[0][0]

    def until(self, query: str, *parameters: Any) -> None:
        give_up = time.monotonic() + PATIENCE
        while not self.value(query, *parameters):
            if time.monotonic() > give_up:
                raise AssertionError(f"it did not come to: {query} {parameters}")
            time.sleep(LOOK)

    async def until_async(self, query: str, *parameters: Any) -> None:
        while not self.value(query, *parameters):
            await asyncio.sleep(LOOK)


straight = _Straight()


def effect() -> None:
    """Notes that the body of the step runs; its outcome must not be stored yet, and that of all before it must be."""
    step = current_step()
    straight.rows(
        """insert into effects
           select i.id, i.step, case
             when exists (select from durable.checkpoints c where c.workflow_id = i.id and c.step_name = i.step)
               then 'it is stored already'
             when exists (
               select from effects e
               where e.workflow_id = i.id and e.step <> i.step
                 and not exists (
                   select from durable.workflow_steps s where s.workflow_id = i.id and s.step_name = e.step))
               then 'one before it is not stored' end
           from (select %s::uuid, %s::text) as i(id, step)""",
        step.workflow_id, step.name,
    )  # fmt: skip


FLAGGED = "select exists (select from flags where name = %s)"


def flag(name: str) -> None:
    straight.rows("insert into flags values (%s)", name)


class Driver:
    """What stands outside of the workflows: it calls durable by a way that may end, and looks by one that does not."""

    def __init__(self, run: str) -> None:
        self.run = run

    def enqueue(self, workflow: Any, input: Any = None, *, name: str = "", **options: Any) -> Handle[Any]:
        """The same one whenever it is called."""
        return app.enqueue(workflow, input, key=f"{self.run} {name or workflow.name}", **options)

    def until_status(self, handle: Handle[Any], *status: str) -> None:
        straight.until(
            "select status::text = any(%s) from durable.workflows where workflow_id = %s",
            list(status), handle.workflow_id,
        )  # fmt: skip

    def until_parked(self, count: int = 1) -> None:
        """Returns when so many workflows wait and the worker lies down, or a crash let this come late."""
        straight.until(
            """select count(*) filter (where status in ('waiting', 'sleeping')) >= %s
               and exists (
                 select from durable.idle_workers i join durable.workers w using (worker_id) where w.died_at is null)
               from durable.workflows""",
            count,
        )

    def finish(self, *handles: Handle[Any]) -> None:
        for handle in handles:
            self.until_status(handle, "completed", "failed", "cancelled")


class Result:
    """What a run has left, for the check."""

    def __init__(self, conn: psycopg.Connection[Any], run: str) -> None:
        self._conn = conn
        self._run = run

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self._conn.execute(query.encode(), parameters or None).fetchall()

    def value(self, query: str, *parameters: Any) -> Any:
        return self.rows(query, *parameters)[0][0]

    def id(self, name: str) -> Any:
        """The id of the workflow of this name; that of the last run, if there are several."""
        return self.value(
            "select workflow_id from durable.workflows where key = %s order by created_at desc limit 1",
            f"{self._run} {name}",
        )

    def ended(self, workflow: Any) -> tuple[str, Any]:
        """How the workflow of this name, or id, ended, and its output."""
        workflow_id = self.id(workflow) if isinstance(workflow, str) else workflow
        return self.rows("select status::text, output from durable.workflows where workflow_id = %s", workflow_id)[0]

    def effects(self, workflow_id: Any) -> dict[str, int]:
        """How often the body of each step ran."""
        return dict(self.rows("select step, count(*)::int from effects where workflow_id = %s group by 1", workflow_id))

    def one_end(self, workflow_id: Any, step: str) -> Any:
        """The one time at which a wait was to end."""
        ends = self.rows("select distinct at from ends where workflow_id = %s and step = %s", workflow_id, step)
        assert len(ends) == 1, f"the wait {step} began anew: {ends}"
        return ends[0][0]


@dataclass(frozen=True)
class Path:
    name: str
    drive: Callable[[Driver], None]
    check: Callable[[Result], None]
    # Whether its workers begin with it. On other paths they are there already, and lie down.
    begins: bool = False
    # What the path is about when not all that it calls.
    only: Sequence[str] = ()
    # Statements whose first answer is lost: what comes after that is a path, too.
    lose: Sequence[str] = ()
    # Whether its steps run as often as time allows, whatever happens.
    over_and_over: bool = False
    # After how many steps the worker warns of a long run.
    long_run: int = LONG_RUN


@app.step
async def note(what: Any) -> Any:
    effect()
    return what


@app.step(name="note")
def note_plain(what: Any) -> Any:
    effect()
    return what


# How a worker begins


@app.workflow
async def quick(ctx: AsyncContext) -> str:
    return "done"


def drive_quick(driver: Driver) -> None:
    driver.finish(driver.enqueue(quick))


def check_quick(result: Result) -> None:
    assert result.ended("quick") == ("completed", "done")


# Steps of every kind, and an attempt that fails


async def book(conn: psycopg.AsyncConnection[Any]) -> str:
    step = current_step()
    await conn.execute("insert into bookings values (%s, %s)", [step.workflow_id, step.name])
    return "booked"


def book_plain(conn: psycopg.Connection[Any]) -> str:
    step = current_step()
    conn.execute("insert into bookings values (%s, %s)", [step.workflow_id, step.name])
    return "booked"


@app.step(retry=Retry(max_attempts=2, initial="1ms"))
def flaky() -> int:
    effect()
    if current_step().attempt == 1:
        raise RuntimeError("the first attempt of a step")
    return current_step().attempt


@app.step(at_most_once=True)
def launch() -> str:
    effect()
    return "launched"


@app.step
def stumble() -> str:
    effect()
    if straight.value("select failures = 0 from durable.workflows where workflow_id = %s", current_step().workflow_id):
        raise RuntimeError("the first attempt of the workflow")
    return "stood"


@app.workflow(max_attempts=2)
async def stepping(ctx: AsyncContext) -> list[Any]:
    done = [await ctx.step(note, 1), await ctx.transaction(book), await ctx.transaction(book_plain)]
    done.append(await ctx.step(flaky))
    try:
        done.append(await ctx.step(launch))
    except StepInterrupted:
        done.append("interrupted")
    return [*done, await ctx.step(stumble)]


def drive_stepping(driver: Driver) -> None:
    driver.finish(driver.enqueue(stepping))


def check_stepping(result: Result) -> None:
    workflow_id = result.id("stepping")
    status, (*output, launched, stumbled) = result.ended("stepping")
    assert (status, output, stumbled) == ("completed", [1, "booked", "booked", 2], "stood")
    ran = result.effects(workflow_id)
    # When its start was stored, its body may not have been reached.
    assert (launched, ran.pop("launch", 0)) in (("launched", 1), ("interrupted", 0), ("interrupted", 1))
    assert set(ran) == {"note", "flaky", "stumble"}
    assert result.rows("select * from bookings order by step") == [(workflow_id, "book"), (workflow_id, "book_plain")]


# Steps side by side


def sorted_out(item: str) -> str:
    step = current_step()
    straight.rows(
        """insert into effects
           select %s, %s, case when exists (
             select from durable.checkpoints c where c.workflow_id = %s and c.step_name = %s) then 'it is stored already' end""",
        *(step.workflow_id, step.name) * 2,
    )
    if item == "bad" or (item == "flaky" and step.attempt == 1):
        raise RuntimeError(item)
    return item


@app.step(retry=Retry(max_attempts=2, initial="1ms"))
async def sort_out(item: str) -> str:
    return sorted_out(item)


@app.step(name="sort_out", retry=Retry(max_attempts=2, initial="1ms"))
def sort_out_plain(item: str) -> str:
    return sorted_out(item)


ITEMS = ["good", "flaky", "bad", "better"]


@app.workflow
async def mapping(ctx: AsyncContext) -> list[str]:
    kept: list[Any] = await ctx.map(sort_out, ITEMS, max_parallel=2, return_failures=True)
    try:
        await ctx.map(sort_out, ["bad", "never begun"], max_parallel=1)
    except StepFailed as failure:
        kept.append(failure)
    return ["failed" if isinstance(item, StepFailed) else item for item in kept]


@app.workflow
def mapping_plain(ctx: Context) -> list[str]:
    kept: list[Any] = ctx.map(sort_out_plain, ITEMS, max_parallel=2, return_failures=True)
    try:
        ctx.map(sort_out_plain, ["bad", "never begun"], max_parallel=1)
    except StepFailed as failure:
        kept.append(failure)
    return ["failed" if isinstance(item, StepFailed) else item for item in kept]


def drive_mapping(driver: Driver) -> None:
    driver.finish(driver.enqueue(mapping), driver.enqueue(mapping_plain))


def check_mapping(result: Result) -> None:
    for name in ("mapping", "mapping_plain"):
        assert result.ended(name) == ("completed", ["good", "flaky", "failed", "better", "failed"])
        assert set(result.effects(result.id(name))) == {"sort_out", *(f"sort_out#{n}" for n in range(2, 6))}


# 23


@app.workflow
async def sleeping(ctx: AsyncContext) -> str:
    await ctx.step(note, 1)
    await ctx.sleep("1 second")
    return str(await ctx.step(note, "slept"))


def drive_sleeping(driver: Driver) -> None:
    driver.finish(driver.enqueue(sleeping))


def check_sleeping(result: Result) -> None:
    workflow_id = result.id("sleeping")
    assert result.ended("sleeping") == ("completed", "slept")
    assert result.value(
        "select completed_at >= %s from durable.workflow_steps where workflow_id = %s and step_name = 'sleep'",
        result.one_end(workflow_id, "sleep"), workflow_id,
    )  # fmt: skip
    assert set(result.effects(workflow_id)) == {"note", "note#2"}


# 24


@app.step
def until_sent(count: int) -> None:
    effect()
    straight.until(
        "select count(*) >= %s from durable.messages where workflow_id = %s", count, current_step().workflow_id
    )


@app.workflow
def receiving(ctx: Context, event: str) -> list[Any]:
    ctx.step(until_sent, 1)
    before = ctx.receive("mail")
    during = ctx.receive("mail")
    ctx.step(until_sent, 3)
    after = ctx.receive("mail")
    return [before, during, after, *ctx.wait_all(Message("mail"), Event(event))]


def drive_receiving(driver: Driver) -> None:
    event = f"all sent {driver.run}"
    handle = driver.enqueue(receiving, event)
    for number in (1, 2, 3, 4):
        sent = straight.value("select count(*) from durable.messages where workflow_id = %s", handle.workflow_id)
        if number in (2, 4) and sent < number:
            driver.until_parked()
        assert handle.send("mail", number, key=str(number)) == (sent < number)
        if number == 2:
            straight.until(
                "select count(received_by) >= 2 from durable.messages where workflow_id = %s", handle.workflow_id
            )
    app.emit(event, "all")
    driver.finish(handle)


def check_receiving(result: Result) -> None:
    workflow_id = result.id("receiving")
    assert result.ended("receiving") == ("completed", [1, 2, 3, 4, "all"])
    received = result.rows(
        "select payload, received_by from durable.messages where workflow_id = %s order by seq", workflow_id
    )
    assert received == [(1, "receive:mail"), (2, "receive:mail#2"), (3, "receive:mail#3"), (4, "wait_all")]
    assert set(result.effects(workflow_id)) == {"until_sent", "until_sent#2"}


# 25


@app.workflow
async def hearing(ctx: AsyncContext, run: str) -> list[Any]:
    early = await ctx.wait_event(f"early {run}")
    await ctx.step(note, early)
    news = await ctx.wait_event(f"news {run}")
    return [early, await ctx.step(note, news)]


LISTENERS = 2


def drive_hearing(driver: Driver) -> None:
    app.emit(f"early {driver.run}", "bird")
    handles = app.enqueue_many(
        hearing, [driver.run] * LISTENERS, keys=[f"{driver.run} listener {n}" for n in range(LISTENERS)]
    )
    if not straight.value("select exists (select from durable.events where event = %s)", f"news {driver.run}"):
        driver.until_parked(LISTENERS)
    app.emit(f"news {driver.run}", "all")
    driver.finish(*handles)


def check_hearing(result: Result) -> None:
    for n in range(LISTENERS):
        assert result.ended(f"listener {n}") == ("completed", ["bird", "all"])
        assert set(result.effects(result.id(f"listener {n}"))) == {"note", "note#2"}


# 26


@app.workflow
def timing_out(ctx: Context, run: str) -> list[Any]:
    try:
        ctx.receive("mail", timeout="300ms")
    except WaitTimedOut:
        ctx.step(note_plain, "timed out")
    met = ctx.wait_any(Message("mail"), Event(f"never {run}"), Timer("300ms"))
    return [ctx.step(note_plain, met.index), met.value]


def drive_timing_out(driver: Driver) -> None:
    driver.finish(driver.enqueue(timing_out, driver.run))


def check_timing_out(result: Result) -> None:
    workflow_id = result.id("timing_out")
    assert result.ended("timing_out") == ("completed", [2, None])
    assert result.value(
        """select output = '{"timed_out": true}' and completed_at >= %s from durable.workflow_steps
           where workflow_id = %s and step_name = 'receive:mail'""",
        result.one_end(workflow_id, "receive:mail"), workflow_id,
    )  # fmt: skip
    assert set(result.effects(workflow_id)) == {"note", "note#2"}


# Approvals


@app.workflow
async def asking(ctx: AsyncContext) -> list[Any]:
    paid = await ctx.approval("pay?", assignee="finance", form={"cents": 1}, expires="1 day")
    await ctx.step(note, paid.decision)
    late = await ctx.approval("within 300 ms?", expires="300ms")
    request = await ctx.request_approval("and this?")
    met = await ctx.wait_any(Message("never"), request)
    return [paid.decision, paid.by, late.expired, met.index, met.value.decision]


def drive_asking(driver: Driver) -> None:
    handle = driver.enqueue(asking)
    for step in ("approval", "approval#3"):
        find = """select r.approval_id, r.decision is not null from durable.approval_requests r
                  where r.workflow_id = %s and r.step_name = %s"""
        straight.until(f"select exists ({find})", handle.workflow_id, step)
        ((approval_id, decided),) = straight.rows(find, handle.workflow_id, step)
        if not decided:
            driver.until_parked()
        assert app.decide(approval_id, "approved", by="ada") == (not decided)
    driver.finish(handle)


def check_asking(result: Result) -> None:
    workflow_id = result.id("asking")
    assert result.ended("asking") == ("completed", ["approved", "ada", True, 1, "approved"])
    asked = result.rows(
        "select step_name, state::text from durable.approvals where workflow_id = %s order by approval_id", workflow_id
    )
    assert asked == [("approval", "decided"), ("approval#2", "expired"), ("approval#3", "decided")]
    assert set(result.effects(workflow_id)) == {"note"}


# 27


@app.workflow
async def leaf(ctx: AsyncContext, value: Any) -> Any:
    await ctx.step(note, value)
    if value == "bad":
        raise ValueError("a bad leaf")
    return value


@app.workflow
async def large(ctx: AsyncContext) -> str:
    return random.Random(1).randbytes(60_000).hex()


@app.workflow
async def branching(ctx: AsyncContext) -> list[Any]:
    started = await ctx.start(leaf, "started")
    many = await ctx.map(leaf, [0, "bad", 2], max_parallel=2, return_failures=True)
    blob = await ctx.run(large)
    met = await ctx.wait_any(started)
    try:
        await ctx.run(leaf, "bad")
    except ChildFailed as error:
        many.append(error)
    return [await started.result(), [str(getattr(each, "error", each)) for each in many], len(blob), met.index]


def drive_branching(driver: Driver) -> None:
    driver.finish(driver.enqueue(branching))


def check_branching(result: Result) -> None:
    parent = result.id("branching")
    status, (started, many, size, index) = result.ended("branching")
    assert (status, started, size, index) == ("completed", "started", 120_000, 0)
    assert [many[0], many[2], len(many)] == ["0", "2", 4]
    assert all("a bad leaf" in failed for failed in (many[1], many[3]))
    children = result.rows(
        "select concat_ws(' ', name, input), status::text, workflow_id from durable.workflows where parent_id = %s",
        parent,
    )
    assert sorted(child[:2] for child in children) == [
        ('large', "completed"), ('leaf "bad"', "failed"), ('leaf "bad"', "failed"), ('leaf "started"', "completed"),
        ("leaf 0", "completed"), ("leaf 2", "completed"),
    ]  # fmt: skip
    for name, _, workflow_id in children:
        assert set(result.effects(workflow_id)) == ({"note"} if name != "large" else set())


# 28


@app.step
async def hang() -> None:
    effect()
    await asyncio.sleep(PATIENCE)


@app.workflow
async def held(ctx: AsyncContext) -> None:
    await ctx.step(hang)
    await ctx.step(note, "never")


@app.workflow
async def holding(ctx: AsyncContext) -> None:
    await ctx.run(held)


@app.workflow
async def head(ctx: AsyncContext) -> None:
    await ctx.run(holding)


def drive_cancelling(driver: Driver) -> None:
    done = driver.enqueue(quick)
    driver.finish(done)
    assert not done.cancel("too late")
    handle = driver.enqueue(head)
    straight.until("select exists (select from effects where step = 'hang')")
    handle.cancel("enough")
    driver.finish(handle)
    # The slot is free: the step was told.
    driver.finish(driver.enqueue(quick, name="next"))


def check_cancelling(result: Result) -> None:
    assert result.ended("quick") == ("completed", "done")
    assert result.ended("next") == ("completed", "done")
    assert result.ended("head") == ("cancelled", None)
    family = result.rows(
        """with recursive family as (
             select workflow_id, name, status::text from durable.workflows where workflow_id = %s
             union all
             select w.workflow_id, w.name, w.status::text
             from durable.workflows w join family f on f.workflow_id = w.parent_id)
           select name, status from family""",
        result.id("head"),
    )
    assert family == [("head", "cancelled"), ("holding", "cancelled"), ("held", "cancelled")]
    assert result.rows("select distinct step from effects") == [("hang",)]


# 29


@app.step
def approach(n: int) -> int:
    effect()
    return n


@app.step
def fail_until_mended() -> str:
    effect()
    if not straight.value(FLAGGED, "mended"):
        raise RuntimeError("not mended yet")
    return "mended"


@app.workflow
def failing(ctx: Context) -> list[Any]:
    return [ctx.step(approach, 1), ctx.transaction(book_plain), ctx.step(fail_until_mended)]


def drive_retrying(driver: Driver) -> None:
    handle = driver.enqueue(failing)
    if not straight.value(FLAGGED, "mended"):
        driver.until_status(handle, "failed")
        flag("mended")
    if handle.status() == "failed":
        assert handle.retry()
    driver.finish(handle)


def check_retrying(result: Result) -> None:
    workflow_id = result.id("failing")
    assert result.ended("failing") == ("completed", [1, "booked", "mended"])
    assert set(result.effects(workflow_id)) == {"approach", "fail_until_mended"}
    assert result.rows("select * from bookings") == [(workflow_id, "book_plain")]


@app.step
def choose() -> UUID:
    effect()
    return UUID(int=1)


@app.workflow
async def forked(ctx: AsyncContext) -> list[Any]:
    first = await ctx.step(approach, 1)
    chosen = await ctx.step(choose)
    return [first, await ctx.transaction(book), chosen.int, await ctx.step(note, "end")]


def the_fork(handle: Handle[Any], from_step: str, **options: Any) -> Handle[Any]:
    """The fork of a workflow, which has none or this one."""
    found = straight.rows("select workflow_id from durable.workflows where forked_from = %s", handle.workflow_id)
    return app.handle(found[0][0]) if found else handle.fork(from_step, **options)


def drive_forking(driver: Driver) -> None:
    handle = driver.enqueue(forked)
    driver.finish(handle)
    # What was chosen is no UUID, so that it pauses.
    misfit = the_fork(handle, "choose", outputs={"choose": {"none": True}})
    straight.until(
        "select paused_at is not null or status = 'cancelled' from durable.workflows where workflow_id = %s",
        misfit.workflow_id,
    )
    driver.finish(the_fork(misfit, "choose", outputs={"choose": UUID(int=2)}))
    misfit.cancel()


def check_forking(result: Result) -> None:
    original = result.id("forked")
    assert result.ended("forked") == ("completed", [1, "booked", 1, "end"])
    ((misfit, status),) = result.rows(
        "select workflow_id, status::text from durable.workflows where forked_from = %s", original
    )
    ((mended, output),) = result.rows(
        "select workflow_id, output from durable.workflows where forked_from = %s", misfit
    )
    assert status == "cancelled"
    assert output == [1, "booked", 2, "end"]
    ran = [set(result.effects(each)) for each in (original, misfit, mended)]
    assert ran == [{"approach", "choose", "note"}, set(), {"note"}]
    assert sorted(result.rows("select * from bookings")) == sorted([(original, "book"), (mended, "book")])


# Pause, published state, long runs


@app.step
async def until_paused() -> None:
    # Cancelled when the workflow is paused, and never at its end by itself before that: what it then wrote would come to
    # nothing, but at a time that nobody knows, in the next run of a path perhaps.
    paused = straight.value(FLAGGED, "paused")
    effect()
    if not paused:
        await asyncio.sleep(PATIENCE)


@app.workflow
async def pausing(ctx: AsyncContext) -> str:
    await ctx.set("progress", 1)
    await ctx.step(note, 1)
    await ctx.step(until_paused)
    await ctx.set("progress", 2)
    return "done"


def drive_pausing(driver: Driver) -> None:
    handle = driver.enqueue(pausing)
    if not straight.value(FLAGGED, "paused"):
        straight.until("select exists (select from effects where step = 'until_paused')")
        handle.pause("look first")
        flag("paused")
    handle.resume()
    driver.finish(handle)


def check_pausing(result: Result) -> None:
    workflow_id = result.id("pausing")
    assert result.ended("pausing") == ("completed", "done")
    assert result.value("select durable.state(%s)", workflow_id) == {"progress": 2}
    assert set(result.effects(workflow_id)) == {"note", "until_paused"}


@app.step
async def until_warned() -> None:
    effect()
    await straight.until_async(
        "select warning is not null from durable.workflows where workflow_id = %s", current_step().workflow_id
    )


@app.workflow
async def continuing(ctx: AsyncContext, left: int) -> str:
    await ctx.step(note, left)
    await ctx.step(until_warned)
    if left > 0:
        await ctx.continue_as_new(left - 1)
    return "done"


def drive_continuing(driver: Driver) -> None:
    # The handle is that of the first run, or of the next one, which then has the key.
    assert driver.enqueue(continuing, 1).result(timeout=PATIENCE) == "done"


def check_continuing(result: Result) -> None:
    last = result.id("continuing")
    first = result.value("select continued_from from durable.workflows where workflow_id = %s", last)
    assert result.ended(last) == ("completed", "done")
    assert result.ended(first) == ("completed", None)
    assert result.value("select continued_as from durable.workflows where workflow_id = %s", first) == last
    assert set(result.effects(first)) == set(result.effects(last)) == {"note", "until_warned"}


# What comes after a crash, a lost answer, or SIGTERM is a path as well


@app.step
def die_once() -> str:
    effect()
    if straight.value("select count(*) from effects where step = 'die_once'") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


@app.workflow
async def dying(ctx: AsyncContext) -> str:
    await ctx.step(note, 1)
    return await ctx.step(die_once)


def drive_dying(driver: Driver) -> None:
    driver.finish(driver.enqueue(dying))


def check_dying(result: Result) -> None:
    assert result.ended("dying") == ("completed", "alive")
    assert set(result.effects(result.id("dying"))) == {"note", "die_once"}


@app.step
def stop_once() -> str:
    effect()
    if straight.value("select count(*) from effects where step = 'stop_once'") == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        # Given back while the step goes on.
        given_back = "select lease is null from durable.live_workflows where workflow_id = %s"
        straight.until(given_back, current_step().workflow_id)
    return "done"


@app.workflow
def stopping(ctx: Context) -> str:
    return ctx.step(stop_once)


def drive_stopping(driver: Driver) -> None:
    driver.finish(driver.enqueue(stopping))


def check_stopping(result: Result) -> None:
    assert result.ended("stopping") == ("completed", "done")


@app.workflow
async def failing_at_length(ctx: AsyncContext) -> None:
    straight.rows("insert into effects values (%s, 'body')", ctx.workflow_id)
    raise ValueError("an error that is larger than what may be stored")


def drive_giving_back(driver: Driver) -> None:
    limit = "select durable.configure('max_payload_bytes', %s)"
    straight.rows(limit, "50")
    handle = driver.enqueue(failing_at_length)
    straight.until("select count(*) > 2 from effects")
    straight.rows(limit, None)
    driver.finish(handle)


def check_giving_back(result: Result) -> None:
    assert result.ended("failing_at_length") == ("failed", None)


_PATHS = [
    Path("beginning", drive_quick, check_quick, begins=True),
    Path("stepping", drive_stepping, check_stepping),
    Path("mapping", drive_mapping, check_mapping, over_and_over=True),
    Path("sleeping", drive_sleeping, check_sleeping),
    Path("receiving", drive_receiving, check_receiving),
    Path("hearing", drive_hearing, check_hearing),
    Path("timing_out", drive_timing_out, check_timing_out),
    Path("asking", drive_asking, check_asking),
    Path("branching", drive_branching, check_branching),
    Path("cancelling", drive_cancelling, check_cancelling),
    Path("retrying", drive_retrying, check_retrying),
    Path("forking", drive_forking, check_forking),
    Path("pausing", drive_pausing, check_pausing),
    Path("continuing", drive_continuing, check_continuing, long_run=1),
    Path("dying", drive_dying, check_dying),
    Path("reclaiming", drive_quick, check_quick, only=("reclaim",), lose=("durable.claim(",)),
    Path("stopping", drive_stopping, check_stopping, only=("leave",)),
    Path("giving_back", drive_giving_back, check_giving_back, only=("release_many",), over_and_over=True),
]
PATHS = {path.name: path for path in _PATHS}


def work(name: str, long_run: int, dsn: str, straight_dsn: str, log: str) -> None:
    """A worker process, for any path."""
    _begin(dsn, straight_dsn, log)
    for module in (context, context_async, engine):
        module.LONG_RUN = long_run  # type: ignore[attr-defined]
    app.run_worker(name=name, concurrency=1, drain=0.1)


def drive(requests: Connection, dsn: str, straight_dsn: str, log: str) -> None:
    """A process that drives paths, one after the other, as it is told to."""
    _begin(dsn, straight_dsn, log)
    while True:
        path, run = requests.recv()
        PATHS[path].drive(Driver(run))
        requests.send("done")


def _begin(dsn: str, straight_dsn: str, log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    os.environ["DURABLE_DSN"] = dsn
    os.environ["STRAIGHT_DSN"] = straight_dsn
