"""Python values to JSON text and back, by the annotations of the functions that take and return them.

Both directions are worked out once for each annotation. What a workflow sees is always a value that went through JSON,
on the first run as on a replay, so that the two cannot differ.
"""

from __future__ import annotations

import base64
import collections.abc
import dataclasses
import enum
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Union
from uuid import UUID

from typing_extensions import NotRequired, Required, is_typeddict

from ._errors import InvalidArgument, PayloadTooLarge

Decoder = Callable[[Any], Any]

_SCALARS = (str, int, bool, type(None))
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def _plain(value: Any) -> Any:
    """A JSON value for a Python value that JSON does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID | Decimal):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return list(value)
    if inspect.isawaitable(value):
        raise TypeError("it is not awaited; write `await` before the call")
    raise TypeError(f"a value of type {type(value).__qualname__} cannot be stored as JSON")


def _with_plain_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key if isinstance(key, str | int | float | bool | None) else _plain(key): _with_plain_keys(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_with_plain_keys(item) for item in value]
    if isinstance(value, (*_SCALARS, float)):
        return value
    return _with_plain_keys(_plain(value))


# No value of jsonb is larger, and Postgres ends the connection of whoever sends a message of 1 GB.
_MOST_BYTES = 268_435_455

_encoder = json.JSONEncoder(default=_plain, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode


def encode(value: Any, subject: str) -> str:
    """JSON text that Postgres accepts as jsonb. ``subject`` begins the message of the error when there is none."""
    try:
        try:
            text = _encoder(value)
        except TypeError:
            # The one thing that the encoder does not ask for help with: keys that are not text.
            text = _encoder(_with_plain_keys(value))
        size = len(text) if text.isascii() else len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(
            f"{subject} cannot be stored as JSON: {error}",
            hint="Use JSON values, dataclasses, pydantic models, datetime, UUID, Decimal, bytes; not NaN or infinity.",
        ) from error
    if "\\u0000" in text and _NUL.search(text):
        raise InvalidArgument(
            f"{subject} cannot be stored as JSON: it has a NUL character, which Postgres does not store in text",
            hint="Remove it, or pass the data as bytes.",
        )
    if size > _MOST_BYTES:
        raise PayloadTooLarge(
            f"{subject} cannot be stored as JSON: it has {size} bytes, and Postgres takes at most {_MOST_BYTES}",
            hint="Store the data elsewhere and pass a reference.",
        )
    return text


class Unreadable:
    """Stands for a stored value that Python cannot take in. It prints as the reason; any use raises InvalidArgument."""

    __slots__ = ("error",)

    def __init__(self, error: InvalidArgument) -> None:
        self.error = error

    def __repr__(self) -> str:
        return f"<{self.error.message}>"

    def _refuse(self, *_: Any) -> Any:
        raise self.error

    __getattr__ = __getitem__ = __iter__ = __len__ = __contains__ = __call__ = _refuse
    __bool__ = __int__ = __float__ = __index__ = _refuse


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(text)
    return number


_parse = json.JSONDecoder(parse_float=_finite).decode


def parse(text: str, subject: str) -> Any:
    """The value of JSON text from the database.

    Postgres stores what Python cannot take in. For that it raises InvalidArgument, whose message ``subject`` begins.
    """
    try:
        return _parse(text)
    except (ValueError, RecursionError, MemoryError) as error:
        why = {
            RecursionError: "it is nested too deep",
            MemoryError: "there is not enough memory for it",
        }.get(type(error), "it has a number that is too large, see sys.set_int_max_str_digits()")
        raise InvalidArgument(
            f"{subject} cannot be read in Python: {why}", hint="Store another value, or read it in another language."
        ) from None


def parse_or_mark(text: str | None, subject: str) -> Any:
    """The value of JSON text from the database, or an Unreadable in its place; for lists of values."""
    try:
        return None if text is None else parse(text, subject)
    except InvalidArgument as error:
        return Unreadable(error)


def parse_error(text: str, subject: str) -> dict[str, Any]:
    """A stored error. Workers in other languages may have stored anything as one."""
    return as_error(parse_or_mark(text, subject))


def as_error(value: Any) -> dict[str, Any]:
    """A stored error in the form in which this client stores them, which has a message."""
    if isinstance(value, Unreadable):
        return {"message": value.error.message}
    if not isinstance(value, dict):
        return {"message": value if isinstance(value, str) else text_of(value)}
    error = {name: field for name, field in value.items() if field is not None}
    return error if "message" in error else {**error, "message": text_of(value)}


# What separates the parts of JSON text, and the texts in it, which may contain the same characters.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]+|[\]}]+|[,:]')


def parts(text: str) -> Iterator[str]:
    """The elements of a JSON array, or the keys and values of an object in turn, each as JSON text.

    It takes apart what ``parse`` refuses because of one of its parts.
    """
    depth, start = 0, 1
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark[0] in "[{":
            depth += len(mark)
        elif mark[0] in "]}":
            depth -= len(mark)
        if depth == 0 or (depth == 1 and mark in ",:"):
            part = text[start : token.end() - 1].strip()
            if part:
                yield part
            start = token.end()


def parse_fields(text: str, subject: Callable[[str], str]) -> dict[str, Any]:
    """A JSON object, with an Unreadable in place of each value that Python cannot take in.

    ``subject`` turns the name of such a field into the beginning of its message.
    """
    value = parse_or_mark(text, "")
    if isinstance(value, Unreadable):
        each = parts(text)
        fields = ((_parse(key), field) for key, field in zip(each, each, strict=True))
        value = {key: parse_or_mark(field, subject(key)) for key, field in fields}
    found: dict[str, Any] = value
    return found


def _decode_fields(hints: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    """Decodes the annotated fields of an object; worked out at the first use, for types can be recursive."""
    of: dict[str, Decoder | None] | None = None

    def decode(value: Any) -> dict[str, Any]:
        nonlocal of
        if of is None:
            of = {name: decoder(hint) for name, hint in hints.items()}
        if not isinstance(value, dict):
            raise TypeError(f"a JSON object is needed, not {type(value).__name__}")
        return {name: item if (each := of.get(name)) is None else each(item) for name, item in value.items()}

    return decode


def _decode_dataclass(cls: type) -> Decoder:
    names = {field.name for field in dataclasses.fields(cls) if field.init}
    fields = _decode_fields(_hints(cls))
    return lambda value: cls(**{name: item for name, item in fields(value).items() if name in names})


def _decode_named_tuple(cls: Any) -> Decoder:
    hints = _hints(cls)

    def decode(value: Any) -> Any:
        of = [decoder(hints.get(name, Any)) for name in cls._fields]
        return cls(*(item if each is None else each(item) for each, item in zip(of, value, strict=False)))

    return decode


def _decode_sequence(make: Callable[[list[Any]], Any], item: Decoder | None) -> Decoder:
    return lambda value: make(value if item is None else [item(each) for each in value])


def _decode_mapping(key: Any, item: Decoder | None) -> Decoder:
    converters: dict[Any, Decoder] = {int: int, float: float, bool: lambda text: text == "true"}
    of_key = converters.get(key) or decoder(key)
    return lambda value: {
        name if of_key is None else of_key(name): each if item is None else item(each) for name, each in value.items()
    }


def _decode_union(members: tuple[Any, ...]) -> Decoder | None:
    decoders = [(member, decoder(member)) for member in members if member is not type(None)]
    fields = {member: set(_hints(member)) for member, _ in decoders if dataclasses.is_dataclass(member)}
    if all(of is None for _, of in decoders):
        return None

    def decode(value: Any) -> Any:
        if value is None and type(None) in members:
            return None
        errors = []
        # Of several dataclasses, the one that has just these fields.
        exact = [pair for pair in decoders if isinstance(value, dict) and fields.get(pair[0]) == set(value)]
        for member, of in exact or decoders:
            try:
                if of is not None:
                    return of(value)
                if member is Any or isinstance(value, typing.get_origin(member) or member):
                    return value
            except (TypeError, ValueError, KeyError, ArithmeticError) as error:
                errors.append(str(error))
        raise TypeError("; ".join(errors) or f"{value!r} is none of {members}")

    return decode


def _decode_float(value: Any) -> Any:
    # jsonb keeps numbers, not types: 1e20 comes back as an integer.
    return float(value) if type(value) is int else value


_EXACT: dict[Any, Decoder] = {
    float: _decode_float,
    datetime: datetime.fromisoformat,
    date: date.fromisoformat,
    time: time.fromisoformat,
    timedelta: lambda value: timedelta(seconds=value),
    UUID: UUID,
    Decimal: Decimal,
    bytes: base64.b64decode,
    bytearray: lambda value: bytearray(base64.b64decode(value)),
}


@lru_cache(maxsize=4096)
def decoder(annotation: Any) -> Decoder | None:
    """What turns a parsed JSON value into the annotated type; None where the value is that already."""
    if annotation in _EXACT:
        return _EXACT[annotation]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated or origin in (Required, NotRequired):
        return decoder(args[0])
    if hasattr(annotation, "__supertype__"):
        return decoder(annotation.__supertype__)
    if origin in (Union, types.UnionType):
        return _decode_union(args)
    if origin in (list, collections.abc.Sequence, collections.abc.Iterable):
        item = decoder(args[0])
        return None if item is None else _decode_sequence(list, item)
    if origin in (set, frozenset):
        return _decode_sequence(origin, decoder(args[0]))
    if annotation in (set, frozenset, tuple):
        return _decode_sequence(annotation, None)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return _decode_sequence(tuple, decoder(args[0]))
        parts = [decoder(arg) for arg in args]
        return lambda value: tuple(each if of is None else of(each) for of, each in zip(parts, value, strict=True))
    if origin in (dict, collections.abc.Mapping):
        item = decoder(args[1])
        return None if item is None and args[0] is str else _decode_mapping(args[0], item)
    if inspect.isclass(annotation):
        if issubclass(annotation, enum.Enum):
            return annotation
        if hasattr(annotation, "model_validate"):
            validate: Decoder = annotation.model_validate
            return validate
        if dataclasses.is_dataclass(annotation):
            return _decode_dataclass(annotation)
        if issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
            return _decode_named_tuple(annotation)
        if is_typeddict(annotation):
            return _decode_fields(_hints(annotation))
    return None


def decode(value: Any, of: Decoder | None, subject: str) -> Any:
    """Applies a decoder. Raises InvalidArgument when a stored value does not fit the annotation."""
    if of is None:
        return value
    try:
        return of(value)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InvalidArgument(
            f"{subject} does not fit its annotation: {error}",
            hint="The code and the stored value differ; accept both shapes, or correct the value.",
        ) from error


def text_of(value: Any) -> str:
    """A stored value as JSON, to be shown."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        return f"(it cannot be shown: {error})"
    return text if len(text) <= 1000 else text[:999] + "…"


def difference(value: Any, expected: Any) -> str:
    """Two lines for a reader: the value that is stored, and the type that it is to be of."""
    stored = text_of(value)
    shape = expected.__name__ if inspect.isclass(expected) else str(expected)
    if dataclasses.is_dataclass(expected):
        fields = (
            f"{field.name}: {getattr(field.type, '__name__', field.type)}" for field in dataclasses.fields(expected)
        )
        shape += f"({', '.join(fields)})"
    return f"stored:   {stored}\nexpected: {shape[:1000]}"


def _as_jsonb_keeps_objects(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(sorted(pairs, key=lambda pair: (len(pair[0].encode()), pair[0].encode())))


def _as_jsonb_keeps_numbers(text: str) -> float | int:
    if "e" not in text and not text.startswith("-0"):
        return float(text)
    digits = format(Decimal(text) + 0, "f")
    return float(digits) if "." in digits else int(digits)


_parse_like_jsonb = json.JSONDecoder(
    object_pairs_hook=_as_jsonb_keeps_objects, parse_float=_as_jsonb_keeps_numbers
).decode


def round_trip(value: Any, text: str, of: Decoder | None) -> Any:
    """What a replay will make of a value that was encoded as ``text``: jsonb orders the keys of objects by length and
    bytes, and knows numbers, not their types. Without the work where the two are the same."""
    if of is None and type(value) in _SCALARS:
        return value
    parsed = _parse_like_jsonb(text)
    return parsed if of is None else of(parsed)


def return_type(function: Callable[..., Any]) -> Any:
    """The return annotation of a function."""
    return _hints(function).get("return", Any)


def return_decoder(function: Callable[..., Any]) -> Decoder | None:
    """The decoder for the return annotation of a function; None where it has none."""
    return decoder(return_type(function))


def input_decoder(function: Callable[..., Any], name: str) -> tuple[bool, bool, Decoder | None]:
    """Whether a workflow function takes an input beside its context, whether that has a default, and its decoder."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not 1 <= len(parameters) <= 2 or any(parameter.kind not in positional for parameter in parameters):
        raise InvalidArgument(
            f"workflow {name!r} must take the context and at most one input, by position, "
            f"not ({', '.join(map(str, parameters))})",
            hint="Put several inputs into one dict, dataclass or pydantic model.",
        )
    if len(parameters) == 1:
        return False, False, None
    has_default = parameters[1].default is not inspect.Parameter.empty
    return True, has_default, decoder(_hints(function).get(parameters[1].name, Any))


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=False)
    except NameError as error:
        raise InvalidArgument(
            f"the annotations of {getattr(function, '__qualname__', function)} cannot be resolved: {error}",
            hint="Import the names at module level, outside of TYPE_CHECKING, so that values can be converted.",
        ) from error
