"""The processes of the demonstration: the payment service, and workers with short lives."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ..database import DURABLE


@contextlib.contextmanager
def payment_service() -> Iterator[str]:
    """Runs the payment service and yields its URL."""
    command = [sys.executable, "-m", "examples.orders.payments"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError("the payment service did not start")
            yield url
        finally:
            process.terminate()


class Workers:
    """A number of `durable worker` processes, one of which is killed and replaced now and then."""

    def __init__(self, count: int, seed: int, log: Path) -> None:
        self._chance = random.Random(seed)
        self._log = log
        self._processes: list[subprocess.Popen[bytes]] = []
        self.kills = 0
        for _ in range(count):
            self._start()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def _start(self) -> None:
        command = [DURABLE, "worker", "examples.orders.shop:app", "--concurrency", "50"]
        with self._log.open("ab") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def kill_one(self) -> None:
        """SIGKILL to one of them: no handler runs, nothing is flushed, nobody says goodbye."""
        process = self._processes.pop(self._chance.randrange(len(self._processes)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.kills += 1
        self._start()

    def pause(self, kill_every: float) -> float:
        """How long to wait with the next one."""
        return kill_every * self._chance.uniform(0.7, 1.3)

    def find_ended(self) -> int | None:
        """The exit status of one that ended without having been killed."""
        return next((status for process in self._processes if (status := process.poll()) is not None), None)

    def drain(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(60)

    def last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])
