"""Values of many types through input, step output and output, on the first run and in a replay."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple, NewType, Optional, TypedDict, Union
from uuid import UUID

import pydantic
import pytest
from durable_client import AsyncContext, Durable, InvalidArgument, WorkflowFailed

from client.workers import OnceMore, replayed, working

pytestmark = pytest.mark.pg(18)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: float
    at: datetime


class Row(TypedDict):
    id: UUID
    amount: Decimal


@dataclass(frozen=True)
class Item:
    sku: str
    price: Decimal
    bought: date | None = None


@dataclass
class Order:
    id: UUID
    items: list[Item]
    placed: datetime
    by_colour: dict[str, Colour] = field(default_factory=dict)
    note: str | None = None
    total: Decimal = field(init=False, default=Decimal(0))


@dataclass
class Tree:
    value: int
    children: list[Tree] = field(default_factory=list)


@dataclass
class Circle:
    radius: float


@dataclass
class Ring:
    radius: float
    width: float


class Address(pydantic.BaseModel):
    street: str
    since: date


class Person(pydantic.BaseModel):
    id: UUID
    address: Address
    born: datetime = pydantic.Field(alias="bornAt")
    tags: set[str] = set()


UserId = NewType("UserId", UUID)
ID = UUID("018f0000-0000-7000-8000-000000000001")
NOW = datetime(2024, 5, 17, 12, 30, 15, 123456, tzinfo=timezone.utc)
ITEM = Item("a", Decimal("9.90"), date(2024, 5, 17))

CASES: dict[str, tuple[Any, Any]] = {
    "dataclass": (Item, ITEM),
    "dataclasses in dataclasses": (Order, Order(ID, [ITEM, Item("b", Decimal("1E+2"))], NOW, {"x": Colour.RED})),
    "a dataclass that has itself": (Tree, Tree(1, [Tree(2), Tree(3, [Tree(4)])])),
    "pydantic model": (Person, Person(id=ID, address=Address(street="s", since=date(2020, 1, 1)), bornAt=NOW, tags={"a"})),
    "list of pydantic models": (list[Address], [Address(street="s", since=date(2020, 1, 1))]),
    "aware datetime": (datetime, NOW),
    "naive datetime": (datetime, NOW.replace(tzinfo=None)),
    "date": (date, date(2024, 2, 29)),
    "time": (time, time(23, 59, 59, 999999)),
    "timedelta": (timedelta, timedelta(days=-1, seconds=5, microseconds=7)),
    "UUID": (UUID, ID),
    "Decimal": (Decimal, Decimal("0.10000000000000000000000000001")),
    "bytes": (bytes, bytes(range(256))),
    "bytearray": (bytearray, bytearray(b"\x00\xff")),
    "Enum": (Colour, Colour.BLUE),
    "IntEnum": (Level, Level.HIGH),
    "optional, there": (Optional[datetime], NOW),  # noqa: UP045 - both spellings must work
    "optional, not there": (datetime | None, None),
    "union": (Union[int, datetime, list[UUID]], NOW),  # noqa: UP007
    "union, second": (int | list[UUID], [ID]),
    "union of dataclasses": (Circle | Ring, Ring(2.0, 0.5)),
    "union of dataclasses, the smaller": (Ring | Circle, Circle(2.0)),
    "list": (list[datetime], [NOW]),
    "dict": (dict[str, list[Decimal]], {"a": [Decimal(1)]}),
    "dict with numbers for keys": (dict[int, str], {1: "a", 2: "b"}),
    "dict with enums for keys": (dict[Colour, int], {Colour.RED: 1}),
    "dict with UUIDs for keys": (dict[UUID, int], {ID: 1}),
    "dict with dates for keys": (dict[date, Item], {date(2024, 1, 1): ITEM}),
    "tuple": (tuple[int, UUID], (1, ID)),
    "tuple of any length": (tuple[UUID, ...], (ID, ID)),
    "tuple without types": (tuple, (1, "a")),
    "set": (set[UUID], {ID}),
    "frozenset": (frozenset[str], frozenset({"a", "b"})),
    "TypedDict": (Row, {"id": ID, "amount": Decimal("1.5")}),
    "NamedTuple": (Point, Point(1.0, NOW)),
    "NewType": (UserId, UserId(ID)),
    "large float": (float, 1e20),
    "float without fraction": (list[float], [1.0, 1e16, -0.0]),
    "Any": (Any, {"a": [1, 2.5, None, True, "x"]}),
    "None": (None, None),
}  # fmt: skip


def typed(function: Callable[..., Any], annotation: Any, *parameters: str) -> Any:
    """The function with this annotation for the parameters and for what it returns."""
    function.__annotations__ = dict.fromkeys((*parameters, "return"), annotation)
    return function


def plain_repr(value: Any) -> str:
    """jsonb knows no negative zero, pydantic has a time zone class of its own, and equal sets may show their members in another order."""
    if isinstance(value, set | frozenset):
        return repr(sorted(value))
    return repr(value).replace("-0.0", "0.0").replace("TzInfo(0)", "datetime.timezone.utc")


@pytest.mark.parametrize("case", CASES)
def test_values_come_back_as_annotated(app: Durable, case: str) -> None:
    annotation, given = CASES[case]
    seen: list[Any] = []

    async def echo(value):  # type: ignore[no-untyped-def]
        seen.append(value)
        return value

    async def echo_in_transaction(conn, value):  # type: ignore[no-untyped-def]
        return value

    step = app.step(typed(echo, annotation, "value"))
    transaction = app.step(typed(echo_in_transaction, annotation, "value"))

    async def run(ctx: AsyncContext, value):  # type: ignore[no-untyped-def]
        seen.append(value)
        made = await ctx.step(step, value)
        booked = await ctx.transaction(transaction, made)
        seen.extend([made, booked])
        if ctx.attempt == 1:
            raise OnceMore
        return booked

    workflow = app.workflow(typed(run, annotation, "value"))
    with working(app):
        seen.append(replayed(app.enqueue(workflow, given)))
    for value in seen:
        assert (type(value), plain_repr(value)) == (type(given), plain_repr(given))


def test_an_input_that_does_not_fit_its_annotation_fails_the_workflow_at_once(app: Durable) -> None:
    ran: list[Any] = []

    @app.workflow(max_attempts=5)
    async def run(ctx: AsyncContext, order: Order) -> None:
        ran.append(order)

    with working(app):
        for bad in ({"id": "not a uuid", "items": [], "placed": str(NOW)}, {"id": str(ID)}, 7, None):
            with pytest.raises(WorkflowFailed, match="does not fit its annotation") as info:
                app.enqueue("run", bad).result(timeout=30)
            assert "run" in info.value.error["message"]
            assert info.value.error["hint"]
    assert ran == []


def test_annotations_that_cannot_be_resolved_are_refused_where_they_are_declared(app: Durable) -> None:
    async def run(ctx, order):  # type: ignore[no-untyped-def]
        return order

    run.__annotations__ = {"order": "NoSuchType"}
    with pytest.raises(InvalidArgument, match="NoSuchType"):
        app.workflow(run)

    @dataclass
    class Parcel:
        of: Any

    Parcel.__annotations__ = {"of": "NoSuchType"}
    run.__annotations__ = {"order": Parcel}
    with pytest.raises(InvalidArgument, match="NoSuchType"):
        app.workflow(run)


def test_a_handle_by_id_converts_only_when_it_knows_the_workflow(app: Durable) -> None:
    @app.workflow
    async def run(ctx: AsyncContext) -> Item:
        return ITEM

    with working(app):
        workflow_id = app.enqueue(run).workflow_id
        assert app.handle(workflow_id, run).result(timeout=30) == ITEM
        assert app.handle(UUID(workflow_id)).result() == {"sku": "a", "price": "9.90", "bought": "2024-05-17"}
