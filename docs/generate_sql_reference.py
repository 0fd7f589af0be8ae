"""Writes docs/reference/sql.md from the comments in a database that has the schema: DURABLE_DSN names it."""

from __future__ import annotations

import os
import re
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from _reference import cell, publish

AUDIENCES = ["client", "worker", "approver", "observer", "admin"]
TITLES = {
    "client": "For clients",
    "worker": "For workers",
    "approver": "For approvers",
    "observer": "For observers",
    "admin": "For administrators",
    "owner": "For the owner of the schema",
}

FUNCTIONS = """
  select p.proname as name, pg_get_function_arguments(p.oid) as arguments, pg_get_function_result(p.oid) as result,
    obj_description(p.oid, 'pg_proc') as comment,
    array(select a from unnest(%s::text[]) with ordinality as x(a, n)
          where p.oid::regprocedure in (select durable._functions_of(a)) order by n) as audiences
  from pg_proc p where p.pronamespace = 'durable'::regnamespace and p.proname !~ '^_'
  order by p.proname, p.oid"""
RELATIONS = """
  select c.relname as name, c.relkind::text as kind, obj_description(c.oid, 'pg_class') as comment,
    array(select row(a.attname, format_type(a.atttypid, a.atttypmod), col_description(c.oid, a.attnum))
          from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum) as columns
  from pg_class c
  where c.relnamespace = 'durable'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
  order by c.relname"""
SETTINGS = "select name, default_value, type::text, description from durable.settings order by name"


def signature(name: str, arguments: str, result: str) -> str:
    arguments, result = readable(arguments), readable(result)
    whole = f"durable.{name}({arguments}) returns {result}"
    if len(whole) <= 110:
        return whole
    # Commas within a parameter's type do not occur; those between parameters are followed by a space.
    return f"durable.{name}(\n  " + ",\n  ".join(arguments.split(", ")) + f"\n)\nreturns {result}"


def readable(text: str) -> str:
    """Types by their short names, and defaults without the casts that Postgres adds."""
    text = text.replace("timestamp with time zone", "timestamptz").replace("double precision", "float8")
    text = re.sub(r"(NULL|'[^']*')::\w+(\[\])?", r"\1", text)
    return re.sub(r"\b(DEFAULT|NULL|SETOF|TABLE)\b", lambda word: word[0].lower(), text)


def describe_function(function: Any) -> list[str]:
    lines = [
        f"### {function.name}",
        "",
        "```text",
        signature(function.name, function.arguments, function.result),
        "```",
        "",
    ]
    lines += [commented(function), ""]
    if function.audiences:
        lines += ["Granted by: " + ", ".join(f"`grant_{audience}`" for audience in function.audiences) + ".", ""]
    return lines


def commented(thing: Any) -> str:
    if not thing.comment:
        raise SystemExit(f"durable.{thing.name} has no comment")
    return str(thing.comment)


def describe_relation(relation: Any) -> list[str]:
    lines = [f"### {relation.name}", "", commented(relation), "", "| column | type | |", "|---|---|---|"]
    lines += [f"| `{name}` | {type_} | {cell(comment)} |" for name, type_, comment in relation.columns]
    return [*lines, ""]


def main() -> None:
    with psycopg.connect(os.environ["DURABLE_DSN"]) as conn, conn.cursor(row_factory=namedtuple_row) as cursor:
        functions: list[Any] = cursor.execute(FUNCTIONS, [AUDIENCES]).fetchall()
        relations: list[Any] = cursor.execute(RELATIONS).fetchall()
        settings: list[Any] = cursor.execute(SETTINGS).fetchall()

    lines = [
        "# SQL reference",
        "",
        "Generated from the comments in the schema by `docs/generate_sql_reference.py`; do not edit. The guide is",
        "[sql.md](../sql.md), the errors are in [errors.md](../errors.md).",
        "",
    ]
    groups: dict[str, list[Any]] = {title: [] for title in TITLES}
    for function in functions:
        groups[function.audiences[0] if function.audiences else "owner"].append(function)
    for audience, members in groups.items():
        if members:
            lines += [f"## {TITLES[audience]}", ""]
            for function in members:
                lines += describe_function(function)
    lines += ["## Views", ""]
    for relation in relations:
        if relation.kind == "v":
            lines += describe_relation(relation)
    lines += ["## Settings", "", "Changed with `durable.configure()`.", ""]
    lines += ["| setting | default | type | |", "|---|---|---|---|"]
    lines += [f"| `{row.name}` | {row.default_value} | {row.type} | {cell(row.description)} |" for row in settings]
    lines += [
        "",
        "## Tables",
        "",
        "They may change with any version. Nobody but the owner has rights on them, save that observers read queues and workers.",
        "",
    ]
    for relation in relations:
        if relation.kind != "v":
            lines += describe_relation(relation)
    publish("sql.md", "\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
