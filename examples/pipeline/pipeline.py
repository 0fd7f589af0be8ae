"""The pipeline: a child workflow for each file, a step for each chunk of it, and one transaction that adds it up.

Run it with `durable worker examples.pipeline.pipeline:app`.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from durable_client import ChildFailed, Context, Durable, Retry, current_step

app = Durable()

CHUNK_BYTES = 4096


@dataclass(frozen=True)
class Chunk:
    path: str
    start: int
    end: int


@dataclass(frozen=True)
class Sales:
    lines: int
    # Of each article the quantity, and cents.
    articles: dict[str, tuple[int, int]]


class Damaged(Exception):
    """A line that cannot be read, however often one tries."""


@app.step
def split(path: str) -> list[Chunk]:
    """Chunks of whole lines, without the first line, which has the names of the columns."""
    with Path(path).open("rb") as file:
        file.readline()
        chunks = []
        start = file.tell()
        while file.read(CHUNK_BYTES):
            file.readline()
            chunks.append(Chunk(path, start, file.tell()))
            start = file.tell()
    return chunks


@app.step(retry=Retry(max_attempts=5, initial="50ms", max_delay="1s", non_retryable=(Damaged,)))
def read_chunk(chunk: Chunk) -> Sales:
    lines = read_from_share(chunk).decode().splitlines()
    articles: dict[str, tuple[int, int]] = {}
    for line in lines:
        article, quantity, cents = line.split(",")
        if not (quantity.isdigit() and cents.isdigit()):
            raise Damaged(f"{Path(chunk.path).name}: {line!r}")
        before = articles.get(article, (0, 0))
        articles[article] = (before[0] + int(quantity), before[1] + int(cents))
    return Sales(len(lines), articles)


def read_from_share(chunk: Chunk) -> bytes:
    """A file share takes its time, and now and then does not answer at all."""
    time.sleep(0.05)
    if current_step().attempt == 1 and zlib.crc32(f"{Path(chunk.path).name} {chunk.start}".encode()) % 8 == 0:
        raise TimeoutError("the file share does not answer")
    with Path(chunk.path).open("rb") as file:
        file.seek(chunk.start)
        return file.read(chunk.end - chunk.start)


def merge(conn: psycopg.Connection[Any], path: str, parts: list[Sales]) -> int:
    """Adds a file to the totals: done twice, they would be wrong."""
    lines = sum(part.lines for part in parts)
    conn.execute("insert into demo_sales.imports (file, lines) values (%s, %s)", [Path(path).name, lines])
    sold = [(article, *amounts) for part in parts for article, amounts in part.articles.items()]
    with conn.cursor() as cursor:
        # In a fixed order, for others add to the same rows.
        cursor.executemany(
            "update demo_sales.totals set quantity = quantity + %s, cents = cents + %s where article = %s",
            [(quantity, cents, article) for article, quantity, cents in sorted(sold)],
        )
    return lines


def reject(conn: psycopg.Connection[Any], path: str, reason: str) -> None:
    conn.execute("insert into demo_sales.rejected (file, reason) values (%s, %s)", [Path(path).name, reason])


@app.workflow(queue="pipeline")
def import_file(ctx: Context, path: str) -> int:
    chunks = ctx.step(split, path)
    parts = ctx.map(read_chunk, chunks, max_parallel=3)
    return ctx.transaction(merge, path, parts)


@app.workflow(queue="pipeline")
def import_all(ctx: Context, paths: list[str]) -> int:
    """Returns how many lines were imported."""
    lines = 0
    results = ctx.map(import_file, paths, max_parallel=6, return_failures=True)
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, ChildFailed):
            ctx.transaction(reject, path, result.error["message"])
        else:
            lines += result
    return lines
