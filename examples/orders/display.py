"""Progress: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_LINE_EVERY = 2.0


class Display:
    def __init__(self, orders: int) -> None:
        console = Console()
        self._orders = orders
        self._progress = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )
        self._task = self._progress.add_task("", total=orders)
        self._progress.start()
        self._started = self._last_line = time.monotonic()

    def close(self) -> None:
        self._progress.stop()

    def show(self, done: int, in_flight: int, kills: int) -> None:
        now = time.monotonic()
        rate = done / (now - self._started)
        text = f"{done:,}/{self._orders:,} done, {in_flight} in flight, {kills} kills, {rate:.0f}/s"
        self._progress.update(self._task, completed=done, description=text)
        if self._progress.disable and (now > self._last_line + _LINE_EVERY or done == self._orders):
            print(text, flush=True)
            self._last_line = now
