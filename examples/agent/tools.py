"""What the agent can do besides talking: look up the rules, calculate, and send money back."""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg

RULES = Path(__file__).with_name("rules.md")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def tool_call(reply: str) -> tuple[str, dict[str, str]] | None:
    """The tool that the last line of a reply asks for, with its arguments in JSON."""
    found = re.fullmatch(r"(\w+) (\{.*\})", reply.rpartition("\n")[2])
    return None if found is None else (found[1], json.loads(found[2]))


def search(query: str) -> str:
    """The rule that has the most words in common with the query."""
    wanted = set(re.findall(r"\w+", query.lower()))
    rules = [" ".join(rule.split()) for rule in RULES.read_text().split("\n\n")]
    return max(rules, key=lambda rule: len(wanted & set(re.findall(r"\w+", rule.lower()))))


def calculate(expression: str) -> str:
    """Sums, differences and products of amounts, to the cent."""

    def value(node: ast.expr) -> Decimal:
        match node:
            case ast.Constant(value=int() | float() as number):
                return Decimal(str(number))
            case ast.BinOp(left, kind, right) if type(kind) in OPERATORS:
                result: Decimal = OPERATORS[type(kind)](value(left), value(right))
                return result
            case _:
                raise ValueError(f"cannot calculate {ast.unparse(node)}")

    return f"{value(ast.parse(expression, mode='eval').body):.2f}"


HARMLESS: dict[str, Callable[..., str]] = {"search": search, "calculate": calculate}


def refund(conn: psycopg.Connection[Any], workflow_id: str, order_id: str, amount: str) -> str:
    """Sends money back: this must not happen twice, nor without a person who agrees."""
    conn.execute(
        "insert into demo_support.refunds (workflow_id, order_id, amount) values (%s, %s, %s)",
        [workflow_id, order_id, amount],
    )
    return f"refunded {amount} for {order_id}"
