"""Restate: a server of its own, with its own storage, that calls workers over HTTP/2."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any

import restate
import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from benchmarks.cluster import free_port
from benchmarks.processes import IN_FLIGHT, WorkerOptions, WorkerProcess, cpu_seconds_of
from benchmarks.systems import _node
from benchmarks.systems._protocol import Drain, Load, Shape
from benchmarks.workload import ONE_STEP, ORDER, STEPS, TEN_STEPS, charge

SERVERS = _node.MODULES / "@restatedev"
START_LIMIT = 60.0
RUN_LIMIT = 600.0
SENDERS = 8


class _Restate:
    name = "restate"

    def throughput_settings(self, in_flight: int = IN_FLIGHT) -> dict[str, Any]:
        return {"concurrent-invocations-limit": in_flight, "server of the worker": "granian, uvloop"}

    def run_load(self, workflow: str, count: int, shape: Shape) -> Load:
        with ExitStack() as stack:
            server = stack.enter_context(_server(shape.in_flight * shape.processes))
            services = [f"orders{n}" for n in range(shape.processes)]
            addresses = [f"127.0.0.1:{free_port()}/{service}" for service in services]
            workers = [
                stack.enter_context(WorkerProcess(self.name, "throughput", address, in_flight=shape.in_flight))
                for address in addresses
            ]
            for address in addresses:
                server.register(address.partition("/")[0])
            # Invocations begin at once, so the first of them wait for the signal, and the others behind them.
            server.send([f"/{services[n % len(services)]}/{workflow}/send" for n in range(count)])
            cpu_before = cpu_seconds_of(server.pid)
            began_at = time.time()
            for worker in workers:
                os.kill(worker.pid, signal.SIGUSR1)
            deadline = time.monotonic() + RUN_LIMIT
            completed, ended_at = 0, began_at
            while completed < count:
                for worker in workers:
                    worker.require_alive()
                if time.monotonic() > deadline:
                    raise SystemExit(f"restate: {completed} of {count} × {workflow} ended within {RUN_LIMIT} s.")
                time.sleep(0.5)
                completed, ended_at = server.completed()
            load = Load(
                Drain(completed, completed, server.steps(), ended_at - began_at),
                worker_cpu=sum(worker.cpu_seconds() for worker in workers),
                server_cpu=cpu_seconds_of(server.pid) - cpu_before,
            )
            for worker in workers:
                # The SDK takes SIGTERM for itself, and the worker would wait for the server's connections.
                worker.kill()
            return load

    def serve(self, options: WorkerOptions) -> None:
        uvloop.run(self._serve(options))

    async def _serve(self, options: WorkerOptions) -> None:
        address, _, service_name = options.dsn.partition("/")
        service = restate.Service(service_name)
        began = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, began.set)

        async def step(order: dict[str, Any]) -> dict[str, Any]:
            return charge(order)

        async def workflow(ctx: restate.Context, order: dict[str, Any], steps: int) -> dict[str, Any]:
            if not began.is_set():
                await began.wait()
            for _ in range(steps):
                result = await ctx.run_typed("charge", step, order=order)
            return result

        @service.handler(ONE_STEP)
        async def one_step(ctx: restate.Context, order: dict[str, Any]) -> dict[str, Any]:
            return await workflow(ctx, order, STEPS[ONE_STEP])

        @service.handler(TEN_STEPS)
        async def ten_steps(ctx: restate.Context, order: dict[str, Any]) -> dict[str, Any]:
            return await workflow(ctx, order, STEPS[TEN_STEPS])

        host, _, port = address.partition(":")
        app: Any = restate.app([service])
        server = Server(app, address=host, port=int(port), interface=Interfaces.ASGI, http=HTTPModes.http2)
        await server.serve()


class _Server:
    def __init__(self, pid: int, admin_port: int, ingress_port: int) -> None:
        self.pid = pid
        self._admin_port = admin_port
        self._ingress_port = ingress_port

    def register(self, address: str) -> None:
        """Makes a worker known, as soon as it answers."""
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                self._admin("/deployments", {"uri": f"http://{address}"})
                return
            except (OSError, http.client.HTTPException, _Refused):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def send(self, paths: list[str]) -> None:
        body = json.dumps(ORDER)

        def send_some(first: int) -> None:
            conn = http.client.HTTPConnection("127.0.0.1", self._ingress_port, timeout=60)
            for path in paths[first::SENDERS]:
                _request(conn, path, body)
            conn.close()

        with ThreadPoolExecutor(SENDERS) as senders:
            list(senders.map(send_some, range(SENDERS)))

    def completed(self) -> tuple[int, float]:
        """How many ended well, and when the last one did, by the server's clock."""
        row = self._query(
            "select count(*) as n, max(completed_at) as at from sys_invocation where completion_result = 'success'"
        )
        if not row["n"]:
            return 0, 0.0
        return row["n"], datetime.fromisoformat(row["at"].replace("Z", "+00:00")).timestamp()

    def steps(self) -> int:
        return int(self._query("select count(*) as n from sys_journal where entry_type = 'Command: Run'")["n"])

    def _query(self, sql: str) -> dict[str, Any]:
        row: dict[str, Any] = self._admin("/query", {"query": sql})["rows"][0]
        return row

    def _admin(self, path: str, body: dict[str, Any]) -> Any:
        conn = http.client.HTTPConnection("127.0.0.1", self._admin_port, timeout=60)
        try:
            return json.loads(_request(conn, path, json.dumps(body)))
        finally:
            conn.close()


class _Refused(Exception):
    pass


def _request(conn: http.client.HTTPConnection, path: str, body: str) -> bytes:
    conn.request("POST", path, body, {"content-type": "application/json", "accept": "application/json"})
    answer = conn.getresponse()
    content = answer.read()
    if answer.status >= 300:
        raise _Refused(f"{path}: {answer.status} {content.decode(errors='replace')}")
    return content


@contextmanager
def _server(in_flight: int) -> Iterator[_Server]:
    """A server on the loopback interface, with a data directory that is gone at the end."""
    (binary,) = SERVERS.glob("restate-server-*/bin/restate-server")
    admin, ingress, node = free_port(), free_port(), free_port()
    settings = {
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
        "RESTATE_BIND_ADDRESS": f"127.0.0.1:{node}",
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_LOG_FILTER": "error",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_WORKER__INVOKER__CONCURRENT_INVOCATIONS_LIMIT": str(in_flight),
    }
    with tempfile.TemporaryDirectory(prefix="durable-bench-restate-") as data, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [binary, "--base-dir", data, "--no-logo", "--node-name", "benchmark"],
            env={**os.environ, **settings}, stdout=log, stderr=log, cwd=data,
        )  # fmt: skip
        try:
            yield _Server(process.pid, admin, ingress)
        finally:
            process.kill()
            process.wait()


SYSTEM = _Restate()
