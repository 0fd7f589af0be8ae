"""Running the body of a step: asynchronous or plain, from asynchronous or plain workflows, within a timeout."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from .._definitions import Step
from .run import Run


class BodyTimedOut(Exception):
    """The body of a step ran longer than its timeout."""


class BodyExited(Exception):
    """The body of a step raised SystemExit or KeyboardInterrupt, which asyncio would let end the worker."""


class ConnectionLost(Exception):
    """A transactional step lost its connection in each of its tries."""

    def __init__(self, workflow_id: str, step: str, tries: int, error: BaseException) -> None:
        super().__init__(
            f"workflow {workflow_id}, step {step!r}: its connection was lost {tries} times: {error}\n"
            "HINT: Keep slow work out of the transaction, in a step before it; see the log of Postgres."
        )


async def contained(body: Awaitable[Any]) -> Any:
    """Awaits a body; what would end the process becomes an ordinary exception."""
    try:
        return await body
    except (SystemExit, KeyboardInterrupt) as error:
        raise BodyExited(repr(error)) from error


def invoke_async(
    step: Step[Any, Any], threads: concurrent.futures.Executor, args: Any, kwargs: Any
) -> Coroutine[Any, Any, Any]:
    """Runs a step's body from the event loop."""
    if step.is_async:
        body = step.function(*args, **kwargs)
    else:
        body = in_thread(threads, functools.partial(step.function, *args, **kwargs))
    return contained(body) if step.timeout is None else _within(step.timeout, contained(body))


async def _within(timeout: float, body: Coroutine[Any, Any, Any]) -> Any:
    task = asyncio.ensure_future(body)
    try:
        done, _ = await asyncio.wait([task], timeout=timeout)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not done:
        task.cancel()
        raise BodyTimedOut(f"took longer than its timeout of {timeout:g} s")
    return task.result()


def invoke(
    run: Run, step: Step[Any, Any], threads: concurrent.futures.Executor, loop: asyncio.AbstractEventLoop, args: Any,
    kwargs: Any,
) -> Any:  # fmt: skip
    """Runs a step's body from a thread."""
    if step.is_async:
        future: concurrent.futures.Future[Any] = asyncio.run_coroutine_threadsafe(
            contained(step.function(*args, **kwargs)), loop
        )
        with run.told_by(future.cancel):
            return _result(run, future, step.timeout)
    if step.timeout is None:
        return contained_call(functools.partial(step.function, *args, **kwargs))
    context = contextvars.copy_context()
    future = threads.submit(context.run, contained_call, functools.partial(step.function, *args, **kwargs))
    return _result(run, future, step.timeout)


def _result(run: Run, future: concurrent.futures.Future[Any], timeout: float | None) -> Any:
    # Waiting first tells this timeout from one that the body raises itself.
    done, _ = concurrent.futures.wait([future], timeout=timeout)
    if not done:
        future.cancel()
        raise BodyTimedOut(f"took longer than its timeout of {timeout:g} s")
    if future.cancelled():
        run.check()
    return future.result()


def in_thread(threads: concurrent.futures.Executor, call: Callable[[], Any]) -> asyncio.Future[Any]:
    """Runs a plain call in a thread that sees the context variables of the caller."""
    context = contextvars.copy_context()
    return asyncio.get_running_loop().run_in_executor(threads, context.run, contained_call, call)


def contained_call(call: Callable[[], Any]) -> Any:
    """Makes a plain call whose exceptions may pass through futures: not those that end a process or an iteration."""
    try:
        return call()
    except (SystemExit, KeyboardInterrupt) as error:
        raise BodyExited(repr(error)) from error
    except StopIteration as error:
        raise RuntimeError("the body of a step raised StopIteration") from error


def on_loop(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine on the event loop of another thread and waits for it."""
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:
        # The worker has ended, and left this thread behind.
        coroutine.close()
        raise
    return future.result()
