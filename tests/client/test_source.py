"""The source of the client: typed, clean, generated where it says so, and with one public face."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import durable_client
import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "python_client"
# One for each run of mypy, for two may run at once.
CACHE = ROOT / ".mypy_cache"


def run(*command: str, cwd: Path = CLIENT) -> None:
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_plain_modules_are_those_that_the_asynchronous_ones_generate() -> None:
    run("tools/async_to_sync.py", "--check")


def test_mypy_finds_nothing() -> None:
    run("-m", "mypy", "--cache-dir", f"{CACHE}/client")


def test_the_public_api_types_as_documented() -> None:
    run("-m", "mypy", "--strict", "--cache-dir", f"{CACHE}/api", "client/typing_api.py", cwd=ROOT / "tests")


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=["check", "format"])
@pytest.mark.parametrize("folder", ["python_client", "tests", "benchmarks", "examples", "docs"])
def test_ruff_finds_nothing(folder: str, arguments: list[str]) -> None:
    run("-m", "ruff", *arguments, ".", cwd=ROOT / folder)


def test_every_public_name_is_exported_documented_and_of_this_package() -> None:
    public = {
        name
        for name, member in vars(durable_client).items()
        if not name.startswith("_") and not inspect.ismodule(member)
    }
    assert public | {"__version__"} == set(durable_client.__all__)
    assert sorted(durable_client.__all__) == durable_client.__all__
    for name in durable_client.__all__:
        member = getattr(durable_client, name)
        assert name == "__version__" or inspect.getdoc(member), f"{name} has no docstring"
        if inspect.isclass(member) or inspect.isfunction(member):
            assert member.__module__.startswith("durable_client."), name


def test_the_errors_are_those_of_the_table() -> None:
    codes = {
        member.code: name
        for name, member in vars(durable_client).items()
        if inspect.isclass(member) and issubclass(member, durable_client.DurableError) and member.code
        and name != "StepFailed"
    }  # fmt: skip
    assert codes == {
        "WF001": "WorkflowNotFound", "WF002": "LeaseLost", "WF003": "KeyConflict", "WF004": "WorkflowCancelled",
        "WF005": "InvalidArgument", "WF006": "PayloadTooLarge", "WF007": "WorkflowFailed", "WF008": "StepInterrupted",
        "WF009": "RecoveryLimitExceeded", "WF010": "WorkflowTimedOut", "WF011": "SchemaMismatch", "WF012": "StepTimedOut",
        "WF013": "WorkflowEnded", "WF014": "WaitTimedOut", "WF015": "ApprovalClosed",
    }  # fmt: skip
    assert durable_client.StepFailed.code == "WF007"
