"""Every sql, python and sh snippet of the documentation is executed, file by file and in order.

sql     through psycopg, with the schema not on the search path. ``\\gset`` works as in psql: the columns of the last row
        become variables, used as ``:'name'``. A snippet that ends with ``-- ERROR: WF003`` must fail with that SQLSTATE;
        one that begins with ``-- in the database postgres`` runs there.
python  in one namespace for each file. A snippet that begins with ``# name.py`` is saved as that file and imported.
sh      line by line with bash, where the Python files are. ``durable worker`` goes on beside the snippets that follow and
        must drain at the end of the file. Of ``make`` only it is checked that the target can be made.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

from clusters import ROOT, Database

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "python_client/README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"sql", "python", "sh"}
# What the documents may hold beside them, not executed: output, commands with a prompt, and nothing else.
OTHERS = {"text", "console", "toml"}


@dataclass(frozen=True)
class Snippet:
    language: str
    text: str
    place: str


def find_snippets(document: Path) -> list[Snippet]:
    source = document.read_text()
    return [
        Snippet(fence[1], fence[2], f"{document.relative_to(ROOT)}:{source.count(chr(10), 0, fence.start()) + 1}")
        for fence in FENCE.finditer(source)
    ]


class Runner:
    """Runs the snippets of one document against one database, in a directory of its own."""

    def __init__(self, db: Database, directory: Path, stack: ExitStack) -> None:
        self._db = db
        self._directory = directory
        self._stack = stack
        self._conn = db.connect()
        self._variables: dict[str, str] = {}
        self._module = types.ModuleType("snippets")

    def run(self, snippet: Snippet) -> None:
        {"sql": self._sql, "python": self._python, "sh": self._sh}[snippet.language](snippet)

    def _sql(self, snippet: Snippet) -> None:
        elsewhere = re.match(r"-- in the database (\w+)\n", snippet.text)
        conn = self._stack.enter_context(self._db.cluster.connect(elsewhere[1])) if elsewhere else self._conn
        expected = re.search(r"^-- ERROR: (\w+)\s*\Z", snippet.text, re.MULTILINE)
        if expected is None:
            self._execute(conn, snippet.text)
            return
        with pytest.raises(psycopg.Error) as info:
            self._execute(conn, snippet.text)
        assert info.value.sqlstate == expected[1], info.value
        conn.rollback()

    def _execute(self, conn: psycopg.Connection[TupleRow], text: str) -> None:
        *stored, rest = text.split("\\gset")
        for part in stored:
            cursor = conn.execute(self._substitute(conn, part))
            while cursor.nextset():
                pass
            assert cursor.rowcount == 1, f"\\gset needs one row, not {cursor.rowcount}"
            result = cursor.pgresult
            assert result is not None
            for number, column in enumerate(cursor.description or []):
                item = result.get_value(0, number)
                if item is not None:
                    self._variables[column.name] = item.decode()
        if re.sub(r"--.*", "", rest).strip():
            conn.execute(self._substitute(conn, rest))

    def _substitute(self, conn: psycopg.Connection[TupleRow], text: str) -> bytes:
        return re.sub(r":'(\w+)'", lambda match: sql.Literal(self._variables[match[1]]).as_string(conn), text).encode()

    def _python(self, snippet: Snippet) -> None:
        file = re.match(r"# (\w+)\.py\n", snippet.text)
        if file:
            (self._directory / f"{file[1]}.py").write_text(snippet.text)
            importlib.invalidate_caches()
            self._stack.callback(sys.modules.pop, file[1])
            importlib.import_module(file[1])
            return
        sys.modules["snippets"] = self._module
        self._stack.callback(sys.modules.pop, "snippets", None)
        exec(compile(snippet.text, snippet.place, "exec"), self._module.__dict__)  # noqa: S102

    def _sh(self, snippet: Snippet) -> None:
        for line in re.sub(r"\\\n\s*", "", snippet.text).splitlines():
            if line.startswith("durable worker"):
                self._stack.enter_context(self._worker(line))
            elif line.startswith("make "):
                environment = {
                    name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
                }
                _run(["bash", "-c", f"{line} --dry-run"], ROOT, environment)
            elif line and not line.startswith("#"):
                _run(["bash", "-e", "-o", "pipefail", "-c", line], self._directory, dict(os.environ))

    @contextmanager
    def _worker(self, line: str) -> Iterator[None]:
        with (self._directory / "worker.log").open("w+") as log:
            process = subprocess.Popen(["bash", "-c", f"exec {line}"], cwd=self._directory, stdout=log, stderr=log)
            try:
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                code = process.wait(60)
            log.seek(0)
            assert code == 0, f"{line} ended with {code}:\n{log.read()}"


def _run(command: list[str], directory: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command[-1]} ended with {done.returncode}:\n{done.stdout}"


# One version suffices: that the others behave alike is for the other tests to show.
@pytest.mark.pg(15)
@pytest.mark.parametrize(
    "document",
    [document for document in DOCUMENTS if LANGUAGES & {snippet.language for snippet in find_snippets(document)}],
    ids=lambda document: str(document.relative_to(ROOT)),
)
def test_every_snippet_runs(document: Path, db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = [Path(sys.executable).parent, Path(db.cluster.installation.tool("psql")).parent]
    monkeypatch.setenv("PATH", os.pathsep.join([*map(str, tools), os.environ["PATH"]]))
    monkeypatch.setenv("DURABLE_DSN", db.dsn)
    for name, value in (
        ("PGHOST", str(db.cluster.sockets)),
        ("PGPORT", "5432"),
        ("PGUSER", "postgres"),
        ("PGDATABASE", db.name),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with ExitStack() as stack:
        runner = Runner(db, tmp_path, stack)
        for snippet in find_snippets(document):
            if snippet.language in LANGUAGES:
                try:
                    runner.run(snippet)
                except BaseException as error:
                    error.args = (f"{snippet.place}: {error}",)
                    raise


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_every_fence_names_its_language(document: Path) -> None:
    unknown = [snippet.place for snippet in find_snippets(document) if snippet.language not in LANGUAGES | OTHERS]
    assert not unknown
    assert document.read_text().count("\n```") == 2 * len(find_snippets(document))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", document.read_text())
    assert not [target for target in targets if not (document.parent / target).exists()]
