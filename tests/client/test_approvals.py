"""Approvals: people are asked once, decide once, and nothing is held while they think."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from durable_client import (
    ApprovalClosed,
    AsyncContext,
    Context,
    Decision,
    Durable,
    Event,
    Handle,
    InvalidArgument,
    Timer,
    WorkflowFailed,
    WorkflowNotFound,
)

from client import programs
from client.journal import Journal
from client.proxy import Proxy
from client.workers import OnceMore, Processes, replayed, working
from clusters import Database
from engine import NOBODY, rows, value

pytestmark = pytest.mark.pg(15, 18)

EACH = pytest.mark.parametrize("plain", ["", "plain_"], ids=["async", "plain"])


def until(reached: Callable[[], Any], patience: float = 60.0) -> Any:
    give_up = time.monotonic() + patience
    while not (found := reached()):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    return found


def remind() -> int:
    return 1


def asked(app: Durable, count: int = 1) -> Any:
    """What is pending, when there is so much of it."""
    return until(lambda: found if len(found := app.approvals()) == count else None)


@EACH
def test_an_approval_holds_no_worker_and_survives_crashes_before_and_after_the_decision(
    db: Database, processes: Processes, journal: Journal, plain: str
) -> None:
    app = programs.app
    handle = app.enqueue(plain + "approving", "refund")
    worker = processes.start(concurrency=1)
    (first,) = asked(app)
    assert (first.subject, first.assignee, first.form, first.workflow) == (
        "refund", "finance", {"cents": 12000}, plain + "approving",
    )  # fmt: skip
    assert (first.workflow_id, first.expires_at - first.requested_at) == (handle.workflow_id, timedelta(days=1))
    until(lambda: handle.status() == "waiting")
    # The only slot is free for another one.
    app.enqueue(plain + "chain", {"name": "meanwhile", "steps": 2}).result(timeout=30)
    assert value(db.connect(), "select lease is null and worker_id is null from durable.live_workflows")
    worker.kill()
    assert app.decide(first.approval_id, "rejected", by="ada", data={"why": "no receipt"})
    journal.hold("refund-between")
    worker = processes.start(concurrency=1)
    journal.wait("mark", "refund", "between")
    worker.kill()
    journal.release("refund-between")
    processes.start()
    (second,) = asked(app)
    assert (second.subject, second.approval_id != first.approval_id) == ("and this?", True)
    app.decide(second.approval_id, "approved")
    assert handle.result(timeout=60) == ["rejected", "ada", {"why": "no receipt"}, 1, "approved"]
    assert journal.count("mark", "refund", "before") == 1
    assert [record.state for record in app.approvals(state=None)] == ["decided"] * 2


# Answers that are lost


@EACH
@pytest.mark.parametrize("statement", ["durable.request_approval(", "durable.wait_many(", "durable.claim("])
def test_06_after_a_lost_answer_nobody_is_asked_twice(
    db: Database, app: Durable, proxy: Proxy, statement: str, plain: str
) -> None:
    lossy = Durable(proxy.dsn(db.dsn))

    @lossy.workflow
    async def ask(ctx: AsyncContext) -> list[bool]:
        return [(await ctx.approval("may I?")).approved, (await ctx.approval("and this?")).approved]

    @lossy.workflow
    def plain_ask(ctx: Context) -> list[bool]:
        return [ctx.approval("may I?").approved, ctx.approval("and this?").approved]

    proxy.lose(*[statement] * 2)
    handle = app.enqueue(plain + "ask")
    with working(lossy):
        for _ in range(2):
            app.decide(asked(app)[0].approval_id, "approved")
        assert handle.result(timeout=30) == [True, True]
    assert proxy.lost
    assert len(app.approvals(state=None)) == 2


def test_a_workflow_that_is_woken_by_a_decision_makes_the_request_no_second_time(
    db: Database, app: Durable, proxy: Proxy
) -> None:
    through_proxy = Durable(proxy.dsn(db.dsn))

    @through_proxy.workflow
    async def ask(ctx: AsyncContext) -> bool:
        return (await ctx.approval("may I?")).approved

    handle = app.enqueue("ask")
    with working(through_proxy):
        (record,) = asked(app)
        until(lambda: handle.status() == "waiting")
        app.decide(record.approval_id, "approved")
        assert handle.result(timeout=30) is True
    assert proxy.calls.count("request_approval") == 1


# What is decided


@EACH
def test_the_decision_is_what_somebody_said(app: Durable, plain: str) -> None:
    @app.workflow
    async def ask(ctx: AsyncContext) -> Decision:
        return await ctx.approval("refund 120 EUR for order 7")

    @app.workflow
    def plain_ask(ctx: Context) -> Decision:
        return ctx.approval("refund 120 EUR for order 7")

    handle: Handle[Any] = app.enqueue(app.workflows[plain + "ask"])
    with working(app):
        (record,) = asked(app)
        app.decide(record.approval_id, "half of it", by="ada", comment="as agreed", data={"cents": 6000})
        decision = handle.result(timeout=30)
    (record,) = app.approvals(state="decided")
    assert decision == Decision(
        record.approval_id, "half of it", {"cents": 6000}, "ada", "as agreed", record.decided_at, False
    )  # fmt: skip
    assert (record.decision, record.data, record.decided_by, record.comment) == (
        "half of it", {"cents": 6000}, "ada", "as agreed",
    )  # fmt: skip


@pytest.mark.parametrize("decision", ["approved", "rejected", "half of it"])
def test_only_what_is_approved_is_true(app: Durable, decision: str) -> None:
    @app.workflow
    async def ask(ctx: AsyncContext) -> list[bool]:
        decided = await ctx.approval("may I?")
        return [bool(decided), decided.approved, decided.expired]

    handle = app.enqueue(ask)
    with working(app):
        app.decide(asked(app)[0].approval_id, decision)
        assert handle.result(timeout=30) == [decision == "approved", decision == "approved", False]


@EACH
def test_what_nobody_decides_in_time_is_expired_and_the_workflow_says_what_then(app: Durable, plain: str) -> None:
    @app.workflow
    async def ask(ctx: AsyncContext) -> Decision:
        decision = await ctx.approval("may I?", expires=1)
        return decision if not decision.expired else await ctx.approval("may I, boss?", assignee="boss")

    @app.workflow
    def plain_ask(ctx: Context) -> Decision:
        decision = ctx.approval("may I?", expires=1)
        return decision if not decision.expired else ctx.approval("may I, boss?", assignee="boss")

    handle: Handle[Any] = app.enqueue(app.workflows[plain + "ask"])
    with working(app):
        (record,) = until(lambda: app.approvals(assignee="boss"))
        (late,) = app.approvals(state="expired")
        with pytest.raises(ApprovalClosed, match="expired"):
            app.decide(late.approval_id, "approved")
        app.decide(record.approval_id, "approved", by="boss")
        decision = handle.result(timeout=30)
    assert (decision.approved, decision.by) == (True, "boss")


def test_an_expired_decision_says_nothing_else(app: Durable) -> None:
    @app.workflow
    async def ask(ctx: AsyncContext) -> Decision:
        return await ctx.approval("may I?", expires=0)

    handle = app.enqueue(ask)
    with working(app):
        decision = handle.result(timeout=30)
    assert decision == Decision(decision.approval_id, None, None, None, None, None, True)
    assert not decision


@EACH
def test_people_are_reminded_until_they_decide(app: Durable, plain: str) -> None:
    @app.workflow
    async def ask(ctx: AsyncContext) -> list[Any]:
        request = await ctx.request_approval("may I?", expires="1 day")
        reminders = 0
        while (met := await ctx.wait_any(request, Timer(0.2))).condition is not request:
            reminders += await ctx.step(remind)
        return [reminders > 0, met.index, met.value.approved, request.approval_id]

    @app.workflow
    def plain_ask(ctx: Context) -> list[Any]:
        request = ctx.request_approval("may I?", expires="1 day")
        reminders = 0
        while (met := ctx.wait_any(request, Timer(0.2))).condition is not request:
            reminders += ctx.step(remind)
        return [reminders > 0, met.index, met.value.approved, request.approval_id]

    handle = app.enqueue(plain + "ask")
    with working(app):
        (record,) = asked(app)
        until(lambda: [step for step in handle.steps() if step.name == "remind"])
        app.decide(record.approval_id, "approved")
        assert handle.result(timeout=30) == [True, 0, True, record.approval_id]


@EACH
def test_a_request_is_waited_for_later_and_beside_others(app: Durable, plain: str) -> None:
    @app.workflow
    async def ask(ctx: AsyncContext) -> list[Any]:
        legal, finance = await ctx.request_approval("legal?"), await ctx.request_approval("finance?")
        await ctx.step(remind)
        both = await ctx.wait_all(legal, finance, Event("go"))
        return [both[0].by, both[1].by, both[2], (await legal.decision()).by]

    @app.workflow
    def plain_ask(ctx: Context) -> list[Any]:
        legal, finance = ctx.request_approval("legal?"), ctx.request_approval("finance?")
        ctx.step(remind)
        both = ctx.wait_all(legal, finance, Event("go"))
        return [both[0].by, both[1].by, both[2], legal.decision().by]

    handle = app.enqueue(plain + "ask")
    app.emit("go", 7)
    with working(app):
        for record in asked(app, 2):
            app.decide(record.approval_id, "approved", by=record.subject)
        assert handle.result(timeout=30) == ["legal?", "finance?", 7, "legal?"]


def test_approvals_side_by_side_are_asked_together(app: Durable) -> None:
    @app.workflow
    async def ask(ctx: AsyncContext) -> list[str | None]:
        decisions = await asyncio.gather(*[ctx.approval(f"number {n}?") for n in range(3)])
        return [decision.by for decision in decisions]

    handle = app.enqueue(ask)
    with working(app):
        for record in asked(app, 3):
            app.decide(record.approval_id, "approved", by=record.subject)
        assert handle.result(timeout=30) == ["number 0?", "number 1?", "number 2?"]


@EACH
def test_19_a_replay_finds_every_approval_again(app: Durable, plain: str) -> None:
    failed: list[str] = []

    def fail_once() -> None:
        if not failed:
            failed.append("once")
            raise OnceMore

    @app.workflow
    async def ask(ctx: AsyncContext) -> list[Any]:
        first = await ctx.approval("first?")
        request = await ctx.request_approval("second?")
        second = await request.decision()
        await ctx.step(fail_once)
        return [first.by, second.by]

    @app.workflow
    def plain_ask(ctx: Context) -> list[Any]:
        first = ctx.approval("first?")
        request = ctx.request_approval("second?")
        second = request.decision()
        ctx.step(fail_once)
        return [first.by, second.by]

    handle = app.enqueue(plain + "ask")
    with working(app):
        for _ in range(2):
            (record,) = asked(app)
            app.decide(record.approval_id, "approved", by=record.subject)
            until(lambda: not app.approvals() or app.approvals()[0].approval_id != record.approval_id)  # noqa: B023
        assert replayed(handle) == ["first?", "second?"]
    assert len(app.approvals(state=None)) == 2


def test_a_request_that_cannot_be_fails_the_workflow_and_no_other(app: Durable) -> None:
    @app.workflow
    async def wrong(ctx: AsyncContext, what: int) -> Any:
        if what == 0:
            return await ctx.approval("")
        if what == 1:
            return await ctx.approval("may I?", expires="200 years")
        if what == 2:
            return await ctx.approval("may I?", form=float("nan"))
        if what == 3:
            return await ctx.approval("may\x00I?")
        return (await ctx.approval("may I?")).approved

    handles = app.enqueue_many(wrong, list(range(5)))
    with working(app):
        for handle in handles[:4]:
            with pytest.raises(WorkflowFailed) as failed:
                handle.result(timeout=30)
            assert failed.value.error["code"] == "WF005"
        app.decide(asked(app)[0].approval_id, "approved")
        assert handles[4].result(timeout=30) is True


# Deciding


def test_deciding_joins_the_transaction_of_the_caller(app: Durable, db: Database) -> None:
    @app.workflow
    async def ask(ctx: AsyncContext) -> str | None:
        return (await ctx.approval("may I?")).by

    handle = app.enqueue(ask)
    with working(app):
        (record,) = asked(app)
        with psycopg.connect(db.dsn) as conn:
            app.decide(record.approval_id, "approved", by="never", conn=conn)
            conn.rollback()
        with psycopg.connect(db.dsn) as conn, conn.transaction():
            assert app.decide(record.approval_id, "approved", by="ada", conn=conn)
            assert [each.state for each in app.approvals(state=None)] == ["pending"]
        assert handle.result(timeout=30) == "ada"


def test_the_first_decision_stands(app: Durable) -> None:
    @app.workflow
    async def ask(ctx: AsyncContext) -> str | None:
        return (await ctx.approval("may I?")).by

    handle = app.enqueue(ask)
    with working(app):
        (record,) = asked(app)
        assert app.decide(record.approval_id, "approved", by="ada")
        assert not app.decide(record.approval_id, "approved", by="bob")
        with pytest.raises(ApprovalClosed, match="approved, by ada"):
            app.decide(record.approval_id, "rejected")
        assert handle.result(timeout=30) == "ada"
    with pytest.raises(WorkflowNotFound):
        app.decide(NOBODY, "approved")
    for wrong in ("approve", "", "a\x00b"):
        with pytest.raises(InvalidArgument):
            app.decide(record.approval_id, wrong)


def test_what_is_listed_is_filtered_and_the_newest_comes_first(app: Durable, db: Database) -> None:
    @app.workflow
    async def ask(ctx: AsyncContext, given: list[str]) -> None:
        await ctx.approval(given[0], assignee=given[1], expires=0 if given[0] == "late" else None)

    with working(app):
        for subject, assignee in (("a", "ada"), ("b", "bob"), ("late", "ada"), ("c", "ada"), ("gone", "ada")):
            handle = app.enqueue(ask, [subject, assignee])
            until(lambda: handle.status() in ("waiting", "completed"))  # noqa: B023
        handle.cancel()
    assert [record.subject for record in app.approvals()] == ["c", "b", "a"]
    assert [record.subject for record in app.approvals(assignee="ada", limit=1)] == ["c"]
    assert [record.subject for record in app.approvals(state="withdrawn")] == ["gone"]
    assert [record.subject for record in app.approvals(assignee="ada", state="expired")] == ["late"]
    assert [record.subject for record in app.approvals(state=None)] == ["gone", "c", "late", "b", "a"]
    with pytest.raises(ApprovalClosed, match="withdrawn"):
        app.decide(app.approvals(state="withdrawn")[0].approval_id, "approved")


def test_the_asynchronous_client_lists_and_decides_too(app: Durable) -> None:
    @app.workflow
    async def ask(ctx: AsyncContext) -> str | None:
        return (await ctx.approval("may I?", assignee="ada")).comment

    async def talk() -> Any:
        handle = await app.aio.enqueue(ask)
        while not (found := await app.aio.approvals(assignee="ada")):
            await asyncio.sleep(0.01)
        assert await app.aio.decide(found[0].approval_id, "approved", by="ada", comment="fine")
        assert not await app.aio.decide(found[0].approval_id, "approved")
        result = await handle.result(timeout=30)
        await app.aio.close()
        return result

    with working(app):
        assert asyncio.run(talk()) == "fine"


def test_a_role_that_may_only_decide_decides(app: Durable, db: Database) -> None:
    @app.workflow
    async def ask(ctx: AsyncContext) -> str | None:
        return (await ctx.approval("may I?")).by

    conn = db.connect()
    role = f"approver_{db.name}"
    conn.execute(f"create role {role} login".encode())
    try:
        conn.execute("select durable.grant_approver(%s)", [role])
        handle = app.enqueue(ask)
        approver = Durable(f"{db.dsn} user={role}")
        with working(app):
            (record,) = asked(approver)
            assert approver.decide(record.approval_id, "approved")
            assert handle.result(timeout=30) == role
        approver.close()
        assert rows(conn, "select decided_by from durable.approvals") == [(role,)]
    finally:
        conn.execute(f"drop owned by {role}; drop role {role}".encode())
