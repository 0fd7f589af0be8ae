"""The command ``durable``. Reads the views and calls the public functions of the schema, as any program could."""

from __future__ import annotations

import io
import sys

import click

from .._version import __version__
from ._approvals import approvals, decide
from ._dev import dev
from ._doctor import doctor
from ._enqueue import enqueue
from ._errors import ReportingGroup
from ._install import install
from ._list import list_workflows
from ._schedule import schedule
from ._show import show
from ._signal import emit, send
from ._steer import cancel, fork, pause, resume, retry
from ._worker import worker


@click.group(cls=ReportingGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="durable")
def cli() -> None:
    """Durable workflows in Postgres.

    Every command but dev works on the database of --dsn, or of the environment variable DURABLE_DSN.

    \b
    Try it, with nothing but Python:
      pip install 'durable-client[dev]'
      durable dev shop:app
    On a database of your own:
      export DURABLE_DSN=postgresql://user@host/database
      durable install
      durable worker shop:app --queues orders
      durable list --status failed --since 1h
    """


for _command in (
    install,
    worker,
    dev,
    enqueue,
    list_workflows,
    show,
    cancel,
    pause,
    resume,
    retry,
    fork,
    send,
    emit,
    approvals,
    decide,
    schedule,
    doctor,
):
    cli.add_command(_command)


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What is stored may have characters that the encoding of a terminal lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    cli(prog_name="durable")
