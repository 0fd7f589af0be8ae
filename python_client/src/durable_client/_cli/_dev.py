from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import click

from .._embedded import EmbeddedPostgres
from .._errors import DurableError
from . import _values
from ._database import connect
from ._install import install_schema
from ._options import concurrency_option, queues_option
from ._processes import describe_end, spawn, worker_command

# What a reload waits for before it kills: a workflow under way survives that.
_PATIENCE = 5.0


@click.command()
@click.argument("app", callback=_values.app_name)
@queues_option
@concurrency_option
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the database is kept.  [default: ~/.local/share/durable; /var/lib/durable for root]",
)
def dev(app: str, queues: list[str] | None, concurrency: int, data_dir: Path | None) -> None:
    """Run APP with a Postgres of its own: nothing to install, nothing to configure.

    Starts an embedded Postgres, installs the schema, prints the DSN, and runs a worker that starts anew whenever a
    Python file changes. Needs pip install 'durable-client[dev]'. What is stored survives; the database stops with the
    last process that uses it.

    \b
    Examples:
      durable dev shop:app
      durable dev shop:app --data-dir ./.durable
    """
    try:
        import watchfiles  # noqa: F401
    except ModuleNotFoundError as error:
        raise DurableError(
            "`durable dev` needs the distribution watchfiles", hint="Run: pip install 'durable-client[dev]'"
        ) from error
    source = _source_directory(app)
    with EmbeddedPostgres(data_dir) as server:
        with connect(server.dsn) as conn:
            installed = install_schema(conn)
        click.echo(f"Postgres runs, with durable {installed.version}, in {server.directory}. In other terminals:")
        click.echo(f"  export DURABLE_DSN={server.dsn}")
        click.echo(f"Watching {source}. Ctrl-C ends it.", err=True)
        environment = {**os.environ, "DURABLE_DSN": server.dsn}
        _run_reloading(source, worker_command(app, queues, concurrency), environment)


def _source_directory(app: str) -> Path:
    """The directory of the package or module that holds the application."""
    package = app.partition(":")[0].partition(".")[0]
    sys.path.insert(0, os.getcwd())
    spec = importlib.util.find_spec(package)
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        raise DurableError(
            f"there is no module {package!r}",
            detail=f"It was looked for in {os.getcwd()} and on the path of this Python.",
            hint="Run the command in the directory that holds the module, or set PYTHONPATH.",
        )
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(str(spec.origin)).parent


def _run_reloading(source: Path, command: list[str], environment: dict[str, str]) -> None:
    import watchfiles

    stop = threading.Event()
    with _setting(stop):
        process: subprocess.Popen[bytes] | None = spawn(command, environment)
        changes = watchfiles.watch(
            source,
            watch_filter=watchfiles.PythonFilter(),
            stop_event=stop,
            rust_timeout=200,
            yield_on_timeout=True,
            raise_interrupt=False,
        )
        for changed in changes:
            if changed:
                names = ", ".join(sorted(os.path.relpath(path, source) for _, path in changed))
                click.echo(f"Changed: {names}. The worker starts anew.", err=True)
                _end(process)
                process = spawn(command, environment)
            elif process is not None and process.poll() is not None:
                end = describe_end(process.returncode)
                click.echo(f"The worker {end}. It starts anew when a file changes.", err=True)
                _end(process)
                process = None
        _end(process)


@contextlib.contextmanager
def _setting(stop: threading.Event) -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is None:
        return
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdin is not None
    process.stdin.close()
