"""The payment service: an HTTP server that charges cards, and remembers each request.

It prints the URL it listens on, and stops on SIGTERM.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from psycopg_pool import ConnectionPool


class PaymentService(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, pool: ConnectionPool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self._pool = pool

    def charge(self, key: str, reference: str, cents: int) -> str:
        """The id of the charge that belongs to the key: a new one, or that of an earlier request."""
        with self._pool.connection() as conn:
            conn.execute(
                "insert into demo_payments.charges (idempotency_key, reference, cents) values (%s, %s, %s)"
                " on conflict (idempotency_key) do nothing",
                [key, reference, cents],
            )
            row = conn.execute(
                "insert into demo_payments.requests (idempotency_key, charge_id)"
                " select idempotency_key, charge_id from demo_payments.charges where idempotency_key = %s"
                " returning charge_id",
                [key],
            ).fetchone()
            assert row is not None
            return str(row[0])


class Handler(BaseHTTPRequestHandler):
    server: PaymentService

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        # Whoever asks may be killed at any moment, before the request has arrived or the answer is sent.
        with contextlib.suppress(ConnectionError):
            body = self.rfile.read(length)
            if len(body) == length:
                self._answer(json.loads(body))

    def _answer(self, request: dict[str, Any]) -> None:
        charge_id = self.server.charge(self.headers["Idempotency-Key"], request["reference"], request["cents"])
        # The card is charged and the answer under way: a worker that dies now has paid and does not know it.
        time.sleep(random.uniform(0.005, 0.05))
        answer = json.dumps({"charge_id": charge_id}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    with ConnectionPool(os.environ["DURABLE_DSN"], min_size=2, max_size=8) as pool:
        service = PaymentService(pool)
        print(f"http://127.0.0.1:{service.server_port}/charges", flush=True)
        service.serve_forever()


if __name__ == "__main__":
    main()
