"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from . import _values

Command = TypeVar("Command", bound=Callable[..., Any])


def dsn_option(command: Command) -> Command:
    return click.option(
        "--dsn",
        envvar="DURABLE_DSN",
        show_envvar=True,
        metavar="DSN",
        help="The database, for example postgresql://user:password@host:5432/database.",
    )(command)


def output_option(command: Command) -> Command:
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="For people, or one JSON document for programs.",
    )(command)


def queues_option(command: Command) -> Command:
    return click.option(
        "--queues",
        callback=_values.names,
        metavar="A,B",
        help="The queues to work on.  [default: all that workflows of APP name]",
    )(command)


def concurrency_option(command: Command) -> Command:
    return click.option(
        "--concurrency",
        type=click.IntRange(1),
        default=200,
        show_default=True,
        help="Workflows at a time, in each process.",
    )(command)
