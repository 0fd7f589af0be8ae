"""Writes the plain modules of the client from the asynchronous ones.

Run it after a change to an asynchronous module; ``--check`` only says whether one is out of date, and exits with 1.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "durable_client"
MODULES = {
    "_client/client_async.py": "_client/client.py",
    "_context/approval_async.py": "_context/approval.py",
    "_context/child_async.py": "_context/child.py",
    "_context/context_async.py": "_context/context.py",
    "_context/transaction_async.py": "_context/transaction.py",
}

# In this order, on whole words.
REPLACEMENTS = [
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait contained\(step\.function\(conn, \*args, \*\*kwargs\)\)",
     "contained_call(lambda: step.function(conn, *args, **kwargs))"),
    (r"^(from \.invoke import .*)\bcontained\b", r"\1contained_call"),
    (r"\bawait ", ""),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"^import asyncio\n", "import concurrent.futures\nimport threading\n"),
    (r"\basyncio\.Lock\b", "threading.Lock"),
    (r"\basyncio\.Future\b", "concurrent.futures.Future"),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\bAwaitable\[(.+)\](?=:)", r"\1"),
    (r"\bAwaitable\[(\w+)\]", r"\1"),
    (r"\bAsyncEngine\b", "ThreadEngine"),
    (r"\bAsync(ApprovalRequest|Child|Client|Handle|Context|Connection|ConnectionPool|Cursor|BinaryCursor)\b", r"\1"),
    (r"\b(approval|child|invoke|transaction|client|context)_async\b", r"\1"),
    (r"\b(invoke|configure)_async\b", r"\1"),
    (r"\brun_transaction_async\b", "run_transaction"),
    # The last, for it names an asynchronous module.
    (r"Written by hand; the plain twin, ``(\w+)\.py``, is generated from it by ``tools/async_to_sync\.py``\.",
     r"Generated from ``\1_async.py`` by ``tools/async_to_sync.py``; do not edit."),
]  # fmt: skip


def to_sync(source: str) -> str:
    for pattern, replacement in REPLACEMENTS:
        source = re.sub(pattern, replacement, source, flags=re.MULTILINE)
    run = [sys.executable, "-m", "ruff"]
    options = ["--config", str(PACKAGE.parent.parent / "pyproject.toml"), "--stdin-filename", "generated.py", "-"]
    source = subprocess.run([*run, "check", "--quiet", "--fix", "--select", "I,F401,SIM117", *options],
                            input=source, capture_output=True, text=True).stdout  # fmt: skip
    return subprocess.run(
        [*run, "format", "--quiet", *options], input=source, capture_output=True, text=True, check=True
    ).stdout


def main() -> int:
    stale = []
    for written, generated in MODULES.items():
        target = PACKAGE / generated
        text = to_sync((PACKAGE / written).read_text())
        if not target.exists() or target.read_text() != text:
            stale.append(generated)
            if "--check" not in sys.argv:
                target.write_text(text)
    for name in stale:
        print(f"{name} is out of date" if "--check" in sys.argv else f"wrote {name}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
