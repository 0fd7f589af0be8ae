"""Tables for people and JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# The longest piece of a payload that a terminal is shown.
PREVIEW = 2000

# Arguments of json_build_object. The server builds the JSON, so that numbers and texts arrive as they are stored.
WORKFLOW_JSON = """
  'workflow_id', w.workflow_id, 'name', w.name, 'status', w.status, 'queue', w.queue, 'key', w.key,
  'priority', w.priority, 'tags', w.tags, 'attempt', w.attempt, 'failures', w.failures, 'crashes', w.crashes,
  'suspicions', w.suspicions, 'max_attempts', w.max_attempts, 'error_message', w.error_message,
  'created_at', w.created_at, 'started_at', w.started_at, 'completed_at', w.completed_at, 'wake_at', w.wake_at,
  'deadline', w.deadline, 'timeout_seconds', extract(epoch from w.timeout), 'worker', w.worker,
  'paused_at', w.paused_at, 'pause_reason', w.pause_reason, 'warning', w.warning, 'forked_from', w.forked_from,
  'forked_at_step', w.forked_at_step, 'continued_from', w.continued_from, 'continued_as', w.continued_as"""

_STYLES = {
    "completed": "green",
    "running": "cyan",
    "failed": "bold red",
    "error": "bold red",
    "cancelled": "yellow",
    "sleeping": "blue",
    "waiting": "blue",
}


# What is stored may have them, and would break lines, or move the cursor of a terminal.
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), " ")


@dataclass(frozen=True, slots=True)
class Column:
    """``from_width`` is the width of the terminal from which on it is shown; what is ``flexible`` may be cut off."""

    title: str
    from_width: int = 0
    right: bool = False
    flexible: bool = False


def _console() -> Console:
    # Into a pipe or file, nothing is cut off: the reader there is grep, or an editor that scrolls.
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=100_000)


def _print(screen: Console, table: Table) -> None:
    with screen.capture() as capture:
        screen.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    screen = _console()
    shown = [index for index, column in enumerate(columns) if screen.width >= column.from_width]
    rows = [[cell.translate(_CONTROLS) for cell in row] for row in rows]
    wanted = {index: max(map(cell_len, [columns[index].title, *(row[index] for row in rows)])) for index in shown}
    room = screen.width - sum(2 + wanted[index] * (not columns[index].flexible) for index in shown)
    # The narrowest first: what it leaves is for the others.
    flexible = sorted((index for index in shown if columns[index].flexible), key=lambda index: wanted[index])
    for position, index in enumerate(flexible):
        wanted[index] = max(1, min(wanted[index], room // (len(flexible) - position)))
        room -= wanted[index]

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index in shown:
        column = columns[index]
        justify: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(column.title, justify=justify, no_wrap=True, overflow="ellipsis", width=wanted[index])
    for row in rows:
        table.add_row(*(Text(row[index], style=_STYLES.get(row[index], "")) for index in shown))
    _print(screen, table)


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line; a value of several lines stays in its column."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(name, Text(value.translate(_CONTROLS | {ord("\n"): "\n"}), style=_STYLES.get(value, "")))
    _print(_console(), table)


def print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document))


def say(output: str, text: str, document: dict[str, Any]) -> None:
    """What a command has done: the sentence, or the document for ``-o json``."""
    if output == "json":
        print_json(document)
    else:
        click.echo(text)


def one_line(text: str) -> str:
    return " ".join(text.split())


def preview(text: str | None) -> str:
    if text is None:
        return ""
    return text if len(text) <= PREVIEW else f"{text[:PREVIEW]}… (all of it with -o json)"


def duration(length: timedelta | None) -> str:
    """A length of time in its two largest units at most."""
    if length is None:
        return ""
    total = length.total_seconds()
    if total < 1:
        return f"{total * 1000:.0f} ms"
    if total < 60:
        return f"{total:.1f} s"
    minutes, seconds = divmod(int(total), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s"


def moment(time: datetime | None, now: datetime) -> str:
    """A time of the database with its distance from the present, which is the database's as well."""
    if time is None:
        return ""
    distance = f"in {duration(time - now)}" if time > now else f"{duration(now - time)} ago"
    return f"{time.astimezone().isoformat(sep=' ', timespec='milliseconds')} ({distance})"
