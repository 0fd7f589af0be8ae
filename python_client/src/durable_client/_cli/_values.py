"""What values on the command line may look like: callbacks of click's options and arguments."""

from __future__ import annotations

import re
import uuid
from datetime import datetime

import click

from .._durations import seconds
from .._errors import InvalidArgument

_NUMBER = re.compile(r"\d+(\.\d+)?")


def workflow_id(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not the id of a workflow, which is a UUID.") from None


def approval_id(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not the id of an approval, which is a UUID.") from None


def duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A length of time in seconds."""
    if value is None:
        return None
    try:
        return seconds(float(value) if _NUMBER.fullmatch(value) else value)
    except InvalidArgument:
        raise click.BadParameter(f"{value!r} is not a duration. Write for example 30s, 5m, 1h30m or 3d.") from None


def moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """A time; one without an offset is local."""
    if value is None:
        return None
    try:
        return datetime.fromisoformat(re.sub("Z$", "+00:00", value)).astimezone()
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a time. Write for example 2030-12-24T18:00 or 2030-12-24T18:00Z."
        ) from None


def since(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | float | None:
    """A time, or a length of time before the present of the database."""
    try:
        return duration(ctx, param, value)
    except click.BadParameter:
        return moment(ctx, param, value)


def tags(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for item in value:
        key, separator, text = item.partition("=")
        if not key or not separator:
            raise click.BadParameter(f"{item!r} is not of the form KEY=VALUE.")
        pairs[key] = text
    return pairs


def names(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    """A list of names with commas between them."""
    if value is None:
        return None
    items = [item.strip() for item in value.split(",")]
    if not all(items):
        raise click.BadParameter(f"{value!r} is not a list of names. Write for example orders,mail.")
    return items


def app_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """``module:attribute``; nothing is imported yet."""
    module, _, attribute = value.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise click.BadParameter(f"{value!r} is not of the form module:attribute. Write for example shop.orders:app.")
    return value
