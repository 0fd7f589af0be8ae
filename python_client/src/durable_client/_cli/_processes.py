"""Worker processes of their own, and what keeps their number up."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType

import click

# A process that lived for less than this did not get to work.
_SHORT_LIFE = 5.0
_LONGEST_PAUSE = 30.0


def worker_command(app: str, queues: list[str] | None, concurrency: int) -> list[str]:
    command = [sys.executable, "-m", "durable_client._cli", "worker", app, f"--concurrency={concurrency}"]
    return [*command, "--supervised", *([] if queues is None else [f"--queues={','.join(queues)}"])]


def spawn(command: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a worker that ends when this process does.

    It gets a session of its own, so that Ctrl-C reaches it through its parent only, and a pipe that it watches: the
    kernel closes it however the parent ends.
    """
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=environment)


def follow_parent() -> None:
    """Drain, as on SIGTERM, when the process at the other end of standard input is gone."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="follow parent", daemon=True).start()


class Signals:
    """SIGTERM, SIGINT and SIGCHLD as something to wait for, instead of something that happens at any line."""

    def __init__(self) -> None:
        self._received = 0
        self._wake_up, sender = socket.socketpair()
        for end in (self._wake_up, sender):
            end.setblocking(False)
        self._sender = sender

    def __enter__(self) -> Signals:
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._count)
        # Ignored by default, and then the descriptor hears nothing of it.
        signal.signal(signal.SIGCHLD, lambda received, frame: None)
        return self

    def __exit__(self, *error: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        self._wake_up.close()
        self._sender.close()

    def _count(self, number: int, frame: FrameType | None) -> None:
        self._received += 1

    def wait(self, timeout: float | None) -> int:
        """How many of SIGTERM and SIGINT were received; 0 when a child ended or the time is over."""
        select.select([self._wake_up], [], [], timeout)
        with contextlib.suppress(BlockingIOError):
            while self._wake_up.recv(4096):
                pass
        received, self._received = self._received, 0
        return received


def describe_end(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"


@dataclass(slots=True)
class _Place:
    """One of the processes that there should be."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    short_lives: int = 0
    start_at: float = 0.0


class Supervisor:
    """Keeps a number of worker processes running until it is told to stop, then waits until they have drained."""

    def __init__(self, command: list[str], processes: int) -> None:
        self._command = command
        self._places = [_Place(number) for number in range(1, processes + 1)]
        self._stopping = False
        self._failed = False

    def run(self) -> int:
        """The exit status: 0 if, once told to stop, all processes ended well."""
        with Signals() as signals:
            while True:
                self._collect()
                if not self._stopping:
                    self._fill()
                elif not any(place.process for place in self._places):
                    return 1 if self._failed else 0
                for _ in range(signals.wait(self._time_to_next_start())):
                    self._stopping = True
                    for place in self._places:
                        if place.process is not None:
                            place.process.terminate()

    def _time_to_next_start(self) -> float | None:
        starts = [place.start_at for place in self._places if place.process is None]
        return max(0.0, min(starts) - time.monotonic()) if starts and not self._stopping else None

    def _fill(self) -> None:
        for place in self._places:
            if place.process is None and place.start_at <= time.monotonic():
                place.process = spawn(self._command)
                place.started = time.monotonic()

    def _collect(self) -> None:
        for place in self._places:
            status = place.process.poll() if place.process is not None else None
            if place.process is None or status is None:
                continue
            assert place.process.stdin is not None
            place.process.stdin.close()
            pid, place.process = place.process.pid, None
            if self._stopping:
                # One that was still starting had no handler yet, and nothing to drain.
                self._failed = self._failed or status not in (0, -signal.SIGTERM)
                continue
            place.short_lives = place.short_lives + 1 if time.monotonic() - place.started < _SHORT_LIFE else 0
            pause = 0.0 if place.short_lives < 2 else min(_LONGEST_PAUSE, 0.5 * 2.0 ** (place.short_lives - 2))
            place.start_at = time.monotonic() + pause
            when = f"in {pause:g} s" if pause else "at once"
            click.echo(f"Worker process {place.number} (pid {pid}) {describe_end(status)}; replaced {when}.", err=True)
