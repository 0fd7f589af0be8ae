from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys

import click
import psycopg

from .._client.link import wait_until_up
from . import _values
from ._app import load_app
from ._database import connect_to_schema
from ._options import concurrency_option, dsn_option, queues_option
from ._processes import Supervisor, follow_parent, worker_command


def configure_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")


@click.command()
@click.argument("app", callback=_values.app_name)
@queues_option
@concurrency_option
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Each with that concurrency.")
@click.option("--supervised", is_flag=True, hidden=True)
@dsn_option
def worker(
    app: str, queues: list[str] | None, concurrency: int, processes: int, supervised: bool, dsn: str | None
) -> None:
    """Run the workflows of APP, which is module:attribute, until SIGTERM or SIGINT.

    Both signals drain: no more workflows are claimed, those under way are finished or given back, and the command
    ends with 0. With --processes, a process that dies is replaced. Killing any of them at any time is safe.

    APP is imported with the current directory on the path. --dsn is for a Durable() that names no database itself.

    \b
    Examples:
      durable worker shop:app
      durable worker shop.orders:app --queues orders,mail --concurrency 50 --processes 4
    """
    configure_logging()
    if dsn:
        os.environ["DURABLE_DSN"] = dsn
    if supervised:
        follow_parent()
    application = load_app(app)
    if processes == 1:
        application.run_worker(queues=queues, concurrency=concurrency)
        return
    # Here once, rather than in each process again and again.
    with contextlib.suppress(psycopg.Error):
        asyncio.run(wait_until_up(application.dsn))
    with connect_to_schema(application.dsn):
        pass
    sys.exit(Supervisor(worker_command(app, queues, concurrency), processes).run())
