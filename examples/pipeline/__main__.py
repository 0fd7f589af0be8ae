"""Files, chunks and a worker that is killed; the totals match to the cent: python -m examples.pipeline"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import click
import psycopg
from durable_client import DurableError, Handle

from ..database import database
from ..worker import Worker
from .inbox import ARTICLES, write_files
from .pipeline import app, import_all

HERE = Path(__file__).parent
# When no file was added for so many seconds, something is wrong.
PATIENCE = 60.0

Connection = psycopg.Connection[tuple[Any, ...]]


@click.command()
@click.option("--files", default=24, show_default=True, type=click.IntRange(4), help="How many files.")
@click.option("--lines", default=1000, show_default=True, type=click.IntRange(2), help="Lines in each of them.")
@click.option("--seed", default=7, show_default=True, help="For what is in the files, and which one is damaged.")
def main(files: int, lines: int, seed: int) -> None:
    """Import files with two workers, one of which is killed with SIGKILL now and then, and check the totals.

    Works on the database of DURABLE_DSN, in the schema demo_sales, which it makes anew; without DURABLE_DSN, on an
    embedded Postgres that is thrown away afterwards.
    """
    with database("pipeline") as (dsn, directory), contextlib.ExitStack() as stack:
        conn = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        stack.callback(app.close)
        inbox = directory / "inbox"
        inbox.mkdir()
        damaged = write_files(inbox, files, lines, seed)
        paths = sorted(inbox.iterdir())
        prepare(conn, paths)
        print(f"{files} files of {lines} lines each. One of them is damaged: {damaged.name}.")

        workers = [
            stack.enter_context(Worker("examples.pipeline.pipeline:app", directory / "workers.log")) for _ in range(2)
        ]
        for worker in workers:
            worker.start()
        handle = app.enqueue(import_all, [str(path) for path in paths])
        try:
            watch(conn, handle, files, workers)
            imported = handle.result()
        except (DurableError, TimeoutError) as error:
            sys.exit(f"{error}\nThe last lines of the workers:\n{workers[0].last_words()}")
        for worker in workers:
            worker.drain()
        print(f"{imported:,} lines were imported.\n\nThe audit (examples/pipeline/audit.sql):")
        if not audit(conn):
            sys.exit("The audit found something wrong.")


def prepare(conn: Connection, paths: list[Path]) -> None:
    conn.execute((HERE / "schema.sql").read_bytes())
    with conn.cursor() as cursor:
        cursor.executemany("insert into demo_sales.totals (article) values (%s)", [[article] for article in ARTICLES])
        with cursor.copy("copy demo_sales.source (file, line) from stdin") as copy:
            for path in paths:
                for line in path.read_text().splitlines()[1:]:
                    copy.write_row([path.name, line])


def watch(conn: Connection, handle: Handle[int], files: int, workers: list[Worker]) -> None:
    """Returns when all has ended. Kills the workers in turn, when a quarter, and when half of the files are added."""
    added = 0
    kill_at = [files // 4, files // 2]
    last_progress = time.monotonic()
    while handle.status() not in ("completed", "failed", "cancelled"):
        time.sleep(0.05)
        before, added = added, count(conn)
        if added > before:
            last_progress = time.monotonic()
            print(f"{added} of {files} files added", flush=True)
        if kill_at and added >= kill_at[0]:
            kill_at.pop(0)
            worker = workers[len(kill_at)]
            worker.kill()
            worker.start()
            print("SIGKILL to one of the two workers; another takes its place", flush=True)
        if time.monotonic() > last_progress + PATIENCE:
            raise TimeoutError(f"No file was added in the last {PATIENCE:.0f} seconds.")


def count(conn: Connection) -> int:
    ((added,),) = conn.execute("select count(*) from demo_sales.imports").fetchall()
    return int(added)


def audit(conn: Connection) -> bool:
    """Prints what audit.sql finds; True when all of it is as promised."""
    findings = conn.execute((HERE / "audit.sql").read_bytes()).fetchall()
    width = max(len(finding) for finding, _, _ in findings)
    for finding, found, expected in findings:
        verdict = "" if expected is None else "  ok" if found == expected else f"  WRONG, expected {expected:,}"
        print(f"  {finding:<{width}}  {found:>10,}{verdict}")
    return all(expected is None or found == expected for _, found, expected in findings)


if __name__ == "__main__":
    main()
