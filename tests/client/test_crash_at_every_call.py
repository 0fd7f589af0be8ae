"""Workers and clients that are killed before and after every call that they make.

Each path of ``client.paths`` is run once undisturbed, through a proxy that lists the calls. Then it is run once more for
each side of each call: whoever makes the call is killed there, by SIGKILL, and another process takes over.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest
from durable_client._client import calls

from client import paths
from client.lanes import READS, Lanes
from clusters import Cluster

pytestmark = pytest.mark.pg(15)

# What the client says that is no function of durable, or is the test's own.
STATEMENTS = {"BEGIN", "COMMIT", "INSERT", "LISTEN"}
# Item 31, in test_schedules.py; what they start are workflows like others.
SCHEDULES = {
    "schedule", "unschedule", "pause_schedule", "resume_schedule", "trigger_schedule", "backfill_schedule",
}  # fmt: skip
# Whether a worker says that it is idle is a matter of milliseconds, and every few seconds a beat is due.
BY_THE_CLOCK = {"idle", "heartbeat", "attach"}


@pytest.fixture(scope="module")
def lanes(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lanes]:
    with contextlib.closing(Lanes(cluster, tmp_path_factory.mktemp("lanes"))) as lanes:
        yield lanes


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", paths.PATHS)
def test_a_crash_before_or_after_any_call_of_a_path_loses_and_repeats_nothing(lanes: Lanes, name: str) -> None:
    crashed = lanes.crash(name)
    # When calls of several workflows coalesce otherwise than in the undisturbed run, there may be fewer of one function,
    # but there is one of each.
    assert crashed
    assert not [
        crash for crash, came in crashed.items() if not came and crash.turn == 1 and crash.call not in BY_THE_CLOCK
    ]


def test_the_paths_come_to_every_function_that_the_client_calls(lanes: Lanes) -> None:
    texts = [text for text in vars(calls).values() if isinstance(text, str)]
    functions = {function for text in texts for function in re.findall(r"durable\.(\w+)\(", text)} - {"build"}
    called = {each for run in lanes.record(*paths.PATHS).values() for each in run.calls}
    assert called | READS - {"SELECT"} | SCHEDULES == functions | STATEMENTS
