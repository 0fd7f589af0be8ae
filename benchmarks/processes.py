"""Worker processes, and the pipe on which their workflows report that they began."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent

Profile = Literal["throughput", "default"]
IN_FLIGHT = 200  # what a worker process runs at once where a scenario does not vary it


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker process is told."""

    dsn: str
    profile: Profile  # "default" leaves all settings of the system as they are
    in_flight: int  # for the profile "throughput"
    mark_fd: int | None
    names: int | None = None  # so many workflows of one step, and no others, see workload.nth()

    def mark(self, sample: int) -> None:
        """Reports that the body of a workflow began."""
        assert self.mark_fd is not None
        at = time.monotonic()
        os.write(self.mark_fd, f"{sample} {os.getpid()} {at!r}\n".encode())


@dataclass(frozen=True, slots=True)
class Mark:
    sample: int
    pid: int
    at: float  # time.monotonic(), which all processes of a machine share


class Marks:
    """The reading end. Marks are shorter than PIPE_BUF, so those of several processes do not mix."""

    def __init__(self) -> None:
        self._read_fd, self.write_fd = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._read_fd, selectors.EVENT_READ)
        self._lines: list[bytes] = []
        self._partial = b""

    def next(self, timeout: float) -> Mark | None:
        deadline = time.monotonic() + timeout
        while not self._lines:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                return None
            *self._lines, self._partial = (self._partial + os.read(self._read_fd, 65536)).split(b"\n")
        sample, pid, at = self._lines.pop(0).split()
        return Mark(int(sample), int(pid), float(at))

    def close(self) -> None:
        self._selector.close()
        os.close(self._read_fd)
        os.close(self.write_fd)


def cpu_seconds_of(pid: int) -> float:
    """Processor time, user and system, of a process, of the children it has waited for, and of its living children."""
    ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    of_children = 0.0
    for child in children:
        with suppress(FileNotFoundError, ProcessLookupError):
            of_children += cpu_seconds_of(int(child))
    return ticks / os.sysconf("SC_CLK_TCK") + of_children


class WorkerProcess:
    """A worker of one system in a process of its own."""

    def __init__(
        self,
        system: str,
        profile: Profile,
        dsn: str,
        marks: Marks | None = None,
        *,
        in_flight: int = IN_FLIGHT,
        names: int | None = None,
    ) -> None:
        self.system = system
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        mark_fd = marks.write_fd if marks is not None else None
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "benchmarks.worker", "--system", system, "--profile", profile, "--dsn", dsn,
                "--in-flight", str(in_flight),
                *(["--mark-fd", str(mark_fd)] if mark_fd is not None else []),
                *(["--names", str(names)] if names is not None else []),
            ],
            stdout=self._output, stderr=self._output, pass_fds=[mark_fd] if mark_fd is not None else [],
            cwd=ROOT,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float:
        return cpu_seconds_of(self.pid)

    def require_alive(self) -> None:
        if self._process.poll() is not None:
            raise SystemExit(f"The worker of {self.system} ended with {self._process.returncode}:\n{self.output()}")

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def output(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")[-8000:]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        self.kill()
        self._output.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
