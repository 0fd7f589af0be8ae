"""A worker in Node, and its crash: python -m examples.node"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

from psycopg.conninfo import conninfo_to_dict

from ..database import database

HERE = Path(__file__).parent


def main() -> None:
    """Runs story.js with the Node that `make` has put beside this Python, or else with the one of this machine."""
    if not (HERE / "node_modules").exists():
        sys.exit("The package pg is not installed: run `make demo-node`, or `npm ci` in examples/node.")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with database("node") as (dsn, _):
        os.environ["DURABLE_DSN"] = as_url(dsn)
        sys.exit(subprocess.run(["node", HERE / "story.js"], check=False).returncode)


def as_url(dsn: str) -> str:
    """A DSN of libpq in the form that pg understands."""
    parameters = conninfo_to_dict(dsn)
    name = parameters.pop("dbname", "")
    return f"postgresql:///{name}?{urlencode(parameters)}"


if __name__ == "__main__":
    main()
