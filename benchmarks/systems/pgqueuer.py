"""PgQueuer: a job queue for Python. A worker fetches and logs its jobs in batches."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import timedelta
from typing import Any

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from psycopg import Connection

from benchmarks.processes import IN_FLIGHT, WorkerOptions
from benchmarks.systems._protocol import Drain
from benchmarks.workload import NO_STEP, ORDER, charge

BACKLOG_BATCH = 1000
POOL = 10


class _PgQueuer:
    name = "pgqueuer"

    def throughput_settings(self, in_flight: int = IN_FLIGHT) -> dict[str, Any]:
        return {"batch_size": in_flight, "pool": POOL, "driver": "asyncpg"}

    def install(self, dsn: str) -> None:
        asyncio.run(self._install(dsn))

    async def _install(self, dsn: str) -> None:
        conn = await asyncpg.connect(dsn)
        await Queries(AsyncpgDriver(conn)).install()
        await conn.close()

    def enqueue_backlog(self, dsn: str, workflow: str, count: int) -> None:
        asyncio.run(self._enqueue(dsn, workflow, count))

    async def _enqueue(self, dsn: str, workflow: str, count: int) -> None:
        conn = await asyncpg.connect(dsn)
        queries = Queries(AsyncpgDriver(conn))
        order = json.dumps(ORDER).encode()
        for start in range(0, count, BACKLOG_BATCH):
            size = min(BACKLOG_BATCH, count - start)
            payloads: list[bytes | None] = [order] * size
            await queries.enqueue([workflow] * size, payloads, [0] * size)
        await conn.close()

    def serve(self, options: WorkerOptions) -> None:
        uvloop.run(self._serve(options))

    async def _serve(self, options: WorkerOptions) -> None:
        async with asyncpg.create_pool(options.dsn, min_size=POOL, max_size=POOL) as pool:
            queuer = PgQueuer(AsyncpgPoolDriver(pool))

            @queuer.entrypoint(NO_STEP)
            async def no_step(job: Job) -> None:
                assert job.payload is not None
                charge(json.loads(job.payload))

            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, queuer.shutdown.set)
            await queuer.run(dequeue_timeout=timedelta(seconds=1), batch_size=options.in_flight)

    def unfinished(self, conn: Connection[Any]) -> bool:
        return bool(conn.execute("select exists(select from pgqueuer)").fetchall()[0][0])

    def drained(self, conn: Connection[Any]) -> Drain:
        sql = """
          select count(*) filter (where status = 'successful'), null::int, 0,
            extract(epoch from max(created) filter (where status = 'successful')
              - min(created) filter (where status = 'picked'))::float8
          from pgqueuer_log"""
        return Drain(*conn.execute(sql).fetchall()[0])


SYSTEM = _PgQueuer()
