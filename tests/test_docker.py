"""The plain SQL file on the official image of Postgres, from testcontainers. Needs Docker; everything else does not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest
from testcontainers.community.postgres import PostgresContainer

from clusters import ROOT


def docker_is_here() -> bool:
    return (
        shutil.which("docker") is not None
        and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not docker_is_here(), reason="there is no Docker daemon")
@pytest.mark.parametrize("image", ["postgres:15", "postgres:17", "postgres:18"])
def test_the_plain_file_makes_an_official_image_run_workflows(image: str) -> None:
    parts = [line for line in (ROOT / "sql/INSTALL_ORDER").read_text().splitlines() if not line.startswith("#")]
    schema = "".join(Path(ROOT, "sql", part).read_text() for part in ["plain_header.sql", *parts])
    with (
        PostgresContainer(image, driver=None) as server,
        psycopg.connect(server.get_connection_url(), autocommit=True) as conn,
    ):
        conn.execute(schema.encode())
        workflow_id = conn.execute("select durable.enqueue('greet')").fetchone()
        conn.execute("select durable.complete(workflow_id, lease, '1') from durable.claim('worker')")
        assert workflow_id is not None
        assert conn.execute("select durable.status(%s)", workflow_id).fetchone() == ("completed",)
