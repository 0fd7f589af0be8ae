"""Where the examples run: the database of DURABLE_DSN, or an embedded Postgres that is thrown away afterwards."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from durable_client import EmbeddedPostgres

DURABLE = str(Path(sys.executable).with_name("durable"))


@contextlib.contextmanager
def database(name: str) -> Iterator[tuple[str, Path]]:
    """Gives the DSN of a database with the schema of durable in it, which then is DURABLE_DSN, too, and a directory for
    the files of the example ``name``, which is removed at the end."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"durable-{name}-")))
        dsn = os.environ.get("DURABLE_DSN") or stack.enter_context(EmbeddedPostgres(directory)).dsn
        os.environ["DURABLE_DSN"] = dsn
        subprocess.run([DURABLE, "install"], check=True)
        yield dsn, directory
