"""Workers: real processes that can be killed, and one in a thread of the test for what needs no killing."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from durable_client import Durable, Handle, Worker, WorkflowFailed

from client import programs

TESTS = Path(__file__).resolve().parent.parent


@functools.cache
def forks() -> ForkServerContext:
    """Forks workers off a process that has imported their programs, for that alone takes longer than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        # That process does not take over the path of this one.
        patch.setenv("PYTHONPATH", str(TESTS))
        forkserver.set_forkserver_preload(["client.programs", "client.paths"])
        forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


class Process:
    """One worker process that runs ``client.programs``."""

    def __init__(self, dsn: str, journal: Path, log: Path, options: dict[str, Any]) -> None:
        self._log = log
        environment = os.environ | {"DURABLE_DSN": dsn, "JOURNAL": str(journal)}
        self._process = forks().Process(target=programs.work, args=(environment, log, options))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def running(self) -> bool:
        return self._process.is_alive()

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.join(30)

    def wait(self) -> int:
        """Its exit status."""
        self._process.join(60)
        assert self._process.exitcode is not None, "it goes on"
        return self._process.exitcode

    def log(self) -> str:
        return self._log.read_text()


class Processes:
    """The worker processes of one test."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self._dsn = dsn
        self._directory = directory
        self._started: list[Process] = []

    def start(self, *, dsn: str | None = None, **options: Any) -> Process:
        """Starts a worker; the options are those of ``Durable.run_worker``."""
        log = self._directory / f"worker-{len(self._started)}.log"
        process = Process(dsn or self._dsn, self._directory / "journal", log, options)
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            if process.running():
                process.kill()


def replayed(handle: Handle[Any]) -> Any:
    """The result of a workflow whose first attempt fails on purpose, after a second one that replays it."""
    with pytest.raises(WorkflowFailed, match="OnceMore"):
        handle.result(timeout=60)
    assert handle.retry()
    return handle.result(timeout=60)


class OnceMore(Exception):
    """Ends the first attempt, so that the next one is a replay."""


@contextlib.contextmanager
def working(app: Durable, **options: Any) -> Iterator[Worker]:
    """Runs a worker in a thread; at the end it has drained. Raises what ``Worker.run`` raised."""
    worker = Worker(app, **options)
    started = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    errors: list[BaseException] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        task = asyncio.ensure_future(worker.run())
        await asyncio.sleep(0)
        started.set()
        await task

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 - also what ends a process must be seen by the test
            errors.append(error)

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    started.wait(10)
    try:
        yield worker
    finally:
        with contextlib.suppress(RuntimeError):
            loops[0].call_soon_threadsafe(worker.stop)
        thread.join(60)
        for error in errors:
            if isinstance(error, Exception):
                raise error
            # KeyboardInterrupt and SystemExit would end the tests.
            raise AssertionError(f"the worker ended with {error!r}") from error
    assert not thread.is_alive(), "the worker did not stop"
