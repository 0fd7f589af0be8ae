"""The model: an HTTP server that streams tokens, and bills each token that it generates.

It prints the URL it listens on, and stops on SIGTERM. What it says follows from the conversation, word by word, so that two
runs can be compared. To everybody else it is any model of any provider.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from psycopg_pool import ConnectionPool

SECONDS_PER_TOKEN = 0.03


def reply_to(conversation: list[dict[str, str]]) -> str:
    """What the model says next. A reply that ends in a line with a tool and its arguments asks for that tool."""
    ticket, results = conversation[0]["content"], [each["content"] for each in conversation if each["role"] == "tool"]
    order_id, count, price = re.findall(r"A-\d+|\d+\.\d+|\d+", ticket)[:3]
    if not results:
        return (
            "The customer says that the goods arrived broken, and wants the money back. I look up what our rules say "
            f"about that before I promise anything.\n{_call('search', query='refund for goods that arrive broken')}"
        )
    if len(results) == 1:
        postage = re.findall(r"\d+\.\d+", results[0])[0]
        return (
            f"The rules are clear: a full refund, and {postage} for postage. The order was for {count} at {price} each, "
            f"which I add up.\n{_call('calculate', expression=f'{count} * {price} + {postage}')}"
        )
    amount = results[1]
    if len(results) == 2:
        return (
            f"The refund comes to {amount}. Money that is sent back does not return, so a person has to agree.\n"
            + _call("refund", order_id=order_id, amount=amount)
        )
    if results[2].startswith("refunded"):
        return (
            f"I am sorry that order {order_id} arrived broken. We have sent {amount} back to the card that you paid "
            "with, postage included; you will see it within three days. You need not send anything back to us. Thank "
            "you for writing, and I hope that the next parcel arrives in one piece."
        )
    return f"I am sorry, but we cannot send the money for order {order_id} back: {results[2]}."


def _call(tool: str, **arguments: str) -> str:
    return f"{tool} {json.dumps(arguments)}"


class Model(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, pool: ConnectionPool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self._pool = pool
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def generate(self, request_id: str, conversation: list[dict[str, str]]) -> Generator[str, None, None]:
        """The tokens of a reply: those that were generated for this request before, then new ones, which are billed."""
        # A client that is gone is noticed at the next token; whoever asks again meanwhile waits for that.
        with self._locks[request_id], self._pool.connection() as conn:
            conn.autocommit = True
            known = conn.execute(
                "select token from demo_model.meter where request_id = %s order by place", [request_id]
            ).fetchall()
            conn.execute(
                "insert into demo_model.requests (request_id, sent_again) values (%s, %s)", [request_id, len(known)]
            )
            for (token,) in known:
                yield token
            tokens = re.findall(r"\s*\S+", reply_to(conversation))
            for place in range(len(known), len(tokens)):
                time.sleep(SECONDS_PER_TOKEN)
                conn.execute(
                    "insert into demo_model.meter (request_id, place, token) values (%s, %s, %s)",
                    [request_id, place, tokens[place]],
                )
                yield tokens[place]


class Handler(BaseHTTPRequestHandler):
    server: Model

    def do_POST(self) -> None:
        # Whoever asks may be killed at any moment, before the request has arrived or amid the answer.
        with contextlib.suppress(ConnectionError):
            body = self.rfile.read(length := int(self.headers["Content-Length"]))
            if len(body) == length:
                self._stream(self.server.generate(self.headers["Idempotency-Key"], json.loads(body)["conversation"]))

    def _stream(self, tokens: Generator[str, None, None]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        with contextlib.closing(tokens):
            for token in tokens:
                self._send(token=token)
            self._send(done=True)

    def _send(self, **line: Any) -> None:
        self.wfile.write(json.dumps(line).encode() + b"\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    with ConnectionPool(os.environ["DURABLE_DSN"], min_size=1, max_size=8) as pool:
        model = Model(pool)
        print(f"http://127.0.0.1:{model.server_port}/generate", flush=True)
        model.serve_forever()


if __name__ == "__main__":
    main()
