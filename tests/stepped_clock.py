"""A server whose clock a test sets while it runs, by libfaketime."""

from __future__ import annotations

import os
from pathlib import Path

from clusters import Cluster


class SteppedClock:
    """The clock of one server, and of nobody else; the time that passes is the true one."""

    def __init__(self, cluster: Cluster) -> None:
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
        self._file = cluster.sockets / "clock"
        # What the tests take for now, when they run at another time.
        self._base = -int(os.environ.get("DATEFUDGE", "0"))
        self.set(0)
        cluster.stop()
        with (cluster.data / "postgresql.conf").open("a") as file:
            # It shows a handler of a signal the true time, by which no timeout of Postgres ends while the clock is ahead.
            file.write("lock_timeout = 0\n")
        cluster.environment |= {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        cluster.start()

    def set(self, seconds: float) -> None:
        """Ahead of the true time by so much, or behind it."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._base + seconds:+.3f}\n")
        new.chmod(0o644)
        new.rename(self._file)
