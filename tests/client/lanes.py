"""Runs of paths with a crash at one of their calls, several of them side by side."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import re
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from client import paths
from client.proxy import WHEN, Crash, Proxy
from client.workers import forks
from clusters import Cluster
from engine import call, value

# Enough to keep two cores busy while each waits for a tick now and then.
_LANES = 6
# Calls that only ask, so that nobody can tell afterwards whether they were made; and what makes connections.
READS = {"version", "status", "result", "history", "state", "step_result", "child_results", "next_firings", "SELECT"}
# Rows that are there for unfinished workflows only.
_UNFINISHED = ("live_workflows", "open_steps", "waits", "ended_children", "late_wakes")


class _Process:
    # Whoever starts a process also asks after all others, which only one thread at a time may do.
    _lock = threading.Lock()

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        with self._lock:
            self._process = forks().Process(target=target, args=args)
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        # Ready when the process has ended.
        self.end = self._process.sentinel

    def running(self) -> bool:
        with self._lock:
            return self._process.is_alive()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        wait([self.end], timeout=10)


class Lane:
    """A database with a proxy before it, where one path is run at a time, by a worker and a driver that stay until they
    are killed."""

    def __init__(self, cluster: Cluster, log: Path) -> None:
        self._database = cluster.create_database()
        self._conn = self._database.connect()
        self._conn.execute(paths.TABLES.encode())
        for setting in ("session_grace", "restart_grace", "retry_initial"):
            call(self._conn, "configure", setting, "10 ms")
        self._sockets = tempfile.TemporaryDirectory(prefix="proxy-")
        self._proxy = Proxy(cluster.sockets / ".s.PGSQL.5432", Path(self._sockets.name))
        self._log = log
        self._ways = (self._proxy.dsn(self._database.dsn), self._database.dsn, str(log))
        self._runs = 0
        self._workers = 0
        self._worker: _Process | None = None
        self._long_run = 0
        self._driver: _Process | None = None

    def close(self) -> None:
        for process in (self._worker, self._driver):
            if process is not None:
                process.kill()
        self._proxy.close()
        self._sockets.cleanup()
        self._database.drop()

    def run(self, path: paths.Path, crash: Crash | None = None, most_effects: int | None = None) -> Run:
        """Runs a path to its end, with a crash if it comes to that, and checks what it has left."""
        self._runs += 1
        self._conn.execute(paths.CLEAN)
        self._log.write_text("")
        try:
            self._prepare(path)
            self._proxy.crash_at(crash)
            # A claim that was under way before would take what the path enqueues, and nobody would be killed for it.
            self._wait_for("the calls from before do not end", self._proxy.is_quiet)
            self._proxy.lose(*path.lose)
            self._play(path)
            self._wait_for("the calls do not end", self._proxy.is_quiet)
            self._check(path, most_effects)
            return Run(self._proxy, value(self._conn, "select count(*) from effects"))
        except Exception as error:
            raise AssertionError(
                f"{path.name}, killed {crash}: {error!r}\ncalls: {self._proxy.calls}\n{self._log.read_text()[-8000:]}"
            ) from error

    def _prepare(self, path: paths.Path) -> None:
        """Makes the worker lie down, so that all runs begin alike."""
        if self._worker is not None and (path.begins or path.long_run != self._long_run):
            self._worker.kill()
        self._long_run = path.long_run
        if path.begins:
            return
        self._wait_for("the worker does not lie down", self._worker_is_idle)

    def _worker_is_idle(self) -> bool:
        self._have_worker()
        return value(
            self._conn,
            "select exists (select from durable.idle_workers join durable.workers using (worker_id) where name = %s)",
            self._worker_name,
        )

    def _wait_for(self, otherwise: str, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + paths.PATIENCE
        while not condition():
            assert time.monotonic() < give_up, otherwise
            time.sleep(paths.LOOK)

    @property
    def _worker_name(self) -> str:
        return f"worker {self._workers}"

    def _have_worker(self) -> _Process:
        if self._worker is None or not self._worker.running():
            self._workers += 1
            self._worker = _Process(paths.work, self._worker_name, self._long_run, *self._ways)
        return self._worker

    def _have_driver(self) -> _Process:
        if self._driver is None or not self._driver.running():
            self._requests, theirs = multiprocessing.Pipe()
            self._driver = _Process(paths.drive, theirs, *self._ways)
            theirs.close()
        return self._driver

    def _play(self, path: paths.Path) -> None:
        """Lets the driver drive the path, and starts another worker, or driver, for one that has ended."""
        give_up = time.monotonic() + paths.PATIENCE
        while True:
            driver = self._have_driver()
            self._requests.send((path.name, self._name))
            ready: list[Any] = []
            while self._requests not in ready:
                ready = wait([self._requests, self._have_worker().end], timeout=give_up - time.monotonic())
                assert time.monotonic() < give_up, "it does not end"
            with contextlib.suppress(EOFError):
                self._requests.recv()
                return
            driver.kill()
            assert driver.pid == self._proxy.killed, "the driver failed"

    @property
    def _name(self) -> str:
        return f"{self._database.name} {self._runs}"

    def _check(self, path: paths.Path, most_effects: int | None) -> None:
        path.check(paths.Result(self._conn, self._name))
        wrong = self._conn.execute("select * from effects where wrong is not null").fetchall()
        assert not wrong, f"steps ran at the wrong time: {wrong}"
        if most_effects is not None and not path.over_and_over:
            effects = value(self._conn, "select count(*) from effects")
            assert effects <= most_effects, "more ran again than was under way"
        # What is left to do is for the ticks.
        give_up = time.monotonic() + paths.PATIENCE
        while left := {
            table: count
            for table in _UNFINISHED
            if (count := value(self._conn, f"select count(*) from durable.{table}"))
        }:
            assert time.monotonic() < give_up, f"rows are left: {left}"
            call(self._conn, "tick")
        # Parts of a tick, and what nobody foresaw.
        failed = re.findall(r".* failed: .* \(\w{5}\)$|.*Traceback.*", self._log.read_text(), re.MULTILINE)
        assert not failed, failed


class Run:
    """What a run did: its calls, how many bodies of steps ran, and whether a process was killed."""

    def __init__(self, proxy: Proxy, effects: int) -> None:
        self.calls = [each for each in proxy.calls if each not in READS]
        self.effects = effects
        self.crashed = proxy.killed is not None


class Lanes:
    """Several lanes, and the undisturbed runs that were recorded on them."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self._lanes = [Lane(cluster, directory / f"lane-{n}.log") for n in range(_LANES)]
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in self._lanes:
            self._free.put(lane)
        self._pool = ThreadPoolExecutor(_LANES)
        self._records: dict[str, Run] = {}

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for lane in self._lanes:
            lane.close()

    def _run(self, name: str, crash: Crash | None = None) -> Run:
        lane = self._free.get()
        try:
            # Of the one workflow that is under way, one step.
            return lane.run(paths.PATHS[name], crash, None if crash is None else self._records[name].effects + 1)
        finally:
            self._free.put(lane)

    def record(self, *names: str) -> dict[str, Run]:
        """Undisturbed runs of these paths."""
        missing = [name for name in names if name not in self._records]
        self._records |= dict(zip(missing, self._pool.map(self._run, missing), strict=True))
        return {name: self._records[name] for name in names}

    def crash(self, name: str) -> dict[Crash, bool]:
        """Runs a path once for each side of each of its calls, with a crash there; says whether it came to that."""
        only = paths.PATHS[name].only
        crashes = [
            Crash(each, turn, when)
            for each, count in Counter(self.record(name)[name].calls).items()
            if not only or each in only
            for turn in range(1, count + 1)
            for when in WHEN
        ]
        runs = self._pool.map(self._run, [name] * len(crashes), crashes)
        return {crash: run.crashed for crash, run in zip(crashes, runs, strict=True)}
