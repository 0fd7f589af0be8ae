"""A database that refuses, for as long as a test wants it to: functions of the engine with something before them."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from engine import Connection, rows


class Replaced:
    """A function of durable that first runs other statements; the original is called when they are through.

    The statements see the arguments by their names; what they return ends the call.
    """

    def __init__(self, conn: Connection, function: str, statements: str) -> None:
        self._conn = conn
        self._function = function
        (found,) = rows(
            conn,
            """select pg_get_function_arguments(oid) as arguments, pg_get_function_result(oid) as result, proretset,
                 proargtypes::oid[] as types, pg_get_function_identity_arguments(oid) as identity
               from pg_proc where pronamespace = 'durable'::regnamespace and proname = %s""",
            function,
        )
        self._identity = found.identity
        call = f"original.{function}({', '.join(f'${n}' for n in range(1, len(found.types) + 1))})"
        if found.proretset:
            through = f"return query select * from {call}"
        else:
            through = f"perform {call}" if found.result == "void" else f"return {call}"
        with conn.transaction():
            # By its own name, which its body may use.
            conn.execute("create schema if not exists original")
            conn.execute(f"alter function durable.{function}({self._identity}) set schema original".encode())
            conn.execute(
                f"""create function durable.{function}({found.arguments}) returns {found.result} language plpgsql
                    security definer as $$
                    #variable_conflict use_column
                    begin {statements}; {through}; end $$""".encode()
            )

    def put_back(self) -> None:
        with self._conn.transaction():
            self._conn.execute(f"drop function durable.{self._function}({self._identity})".encode())
            self._conn.execute(
                f"alter function original.{self._function}({self._identity}) set schema durable".encode()
            )


def refusing(conn: Connection, function: str, states: Sequence[str], passes: int = 3) -> Replaced:
    """The function refuses with each of the SQLSTATEs in turn, but for every third call, which passes.

    ``trouble_<function>`` is the sequence that counts its calls.
    """
    conn.execute(sql.SQL("create sequence {}").format(sql.Identifier(f"trouble_{function}")))
    listed = ", ".join(f"'{state}'" for state in states)
    return Replaced(
        conn,
        function,
        f"""declare
              v_call bigint := nextval('public.trouble_{function}');
            begin
              if v_call % {passes} <> 0 then
                raise exception 'in the way' using errcode = (array[{listed}])
                  [(v_call - v_call / {passes} - 1) % {len(states)} + 1];
              end if;
            end""",
    )


def refusals(conn: Connection, function: str, passes: int = 3) -> int:
    """How often the function has refused."""
    (found,) = rows(conn, f"select last_value, is_called from trouble_{function}")
    calls = found.last_value if found.is_called else 0
    return int(calls - calls // passes)
