"""Turns the messages of one room into bytes and back; knows no message itself.

Body: a MessagePack array [tag, field, field, ...]; `framing` puts its length in front.  A message
is a frozen, slotted dataclass with a wire number:

    @message(3)
    @dataclass(frozen=True, slots=True)
    class LinksUp:
        epoch: int

Fields are int (0 to 2^64-1), float (finite), str, bytes, bool, an IntEnum, tuple[T, ...], T | None
or a nested dataclass marked `@struct` (an array without a tag).  The type hints are the schema.

Rules of compatibility: a tag is never reused, fields are appended and never moved, every new field
has a default.  A message that ends early is filled up from defaults; one that is too long is wrong.

Invariant: decode(encode(m)) == m, and whatever bytes come in, decode returns a message whose every
field has its declared type and range, or raises RemoteError.  Nothing else escapes.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, Generic, TypeVar, Union

import msgpack

from pccl.base.errors import RemoteError

BODY_BYTES_MAX: Final = 1 << 20  # a view of 1024 members takes about 100 kB
STRING_BYTES_MAX: Final = 4096
BINARY_BYTES_MAX: Final = 262_144
ARRAY_LENGTH_MAX: Final = 65_536
MAP_LENGTH_MAX: Final = 256
INT_MAX: Final = (1 << 64) - 1

C = TypeVar("C", bound=type)
M = TypeVar("M")
Convert = Callable[[Any], Any]


class _Mismatch(ValueError):
    """A value does not fit its field; the text says which and why."""


def struct(cls: C) -> C:
    """Marks a frozen, slotted dataclass as usable inside messages."""
    _require_frozen_dataclass(cls)
    setattr(cls, "__wire_struct__", cls)  # noqa: B010  the class declares no such name
    return cls


def message(tag: int) -> Callable[[C], C]:
    """Gives a frozen, slotted dataclass its wire number, 0 to 127 (one byte)."""
    if not 0 <= tag <= 127:
        raise TypeError(f"message tag {tag} is not within 0 to 127")

    def mark(cls: C) -> C:
        _require_frozen_dataclass(cls)
        setattr(cls, "__wire_tag__", tag)  # noqa: B010
        setattr(cls, "__wire_message__", cls)  # noqa: B010
        return cls

    return mark


class Codec(Generic[M]):
    """Encodes and decodes the given message classes, and only them.

    Cost: one msgpack call and one Python call per field; about 2 us for a heartbeat-sized message.
    """

    def __init__(self, *message_types: type[Any]) -> None:
        self._by_tag: dict[int, tuple[type[Any], _Fields]] = {}
        self._by_type: dict[type[Any], tuple[int, _Fields]] = {}
        for cls in message_types:
            if cls.__dict__.get("__wire_message__") is not cls:
                raise TypeError(f"{cls.__name__} is not marked with @message(tag)")
            tag: int = cls.__dict__["__wire_tag__"]
            if tag in self._by_tag:
                other = self._by_tag[tag][0].__name__
                raise TypeError(f"tag {tag} belongs to both {other} and {cls.__name__}")
            fields = _Fields(cls)
            self._by_tag[tag] = (cls, fields)
            self._by_type[cls] = (tag, fields)

    def encode(self, value: M) -> bytes:
        """Returns the body of `value`.

        Raises:
            TypeError: `value` is none of this codec's messages.
            ValueError: a field does not fit its declared type, or the body would be too long.
                These are mistakes of this process, not of the other end.
        """
        entry = self._by_type.get(type(value))
        if entry is None:
            raise TypeError(f"{type(value).__name__} is not a message of this codec")
        tag, fields = entry
        body: bytes = msgpack.packb([tag, *fields.to_wire(value)], use_bin_type=True)
        if len(body) > BODY_BYTES_MAX:
            raise ValueError(f"{type(value).__name__} of {len(body)} bytes exceeds the limit")
        return body

    def decode(self, body: bytes | bytearray | memoryview) -> M:
        """Returns the message in `body`, or raises RemoteError whatever is wrong with it."""
        name = "message"
        try:
            items = _unpack(body)
            if type(items) is not list or not items:
                raise _Mismatch("is not an array with a tag")
            tag = items[0]
            if type(tag) is not int or tag not in self._by_tag:
                raise _Mismatch(f"has the unknown tag {str(tag)[:40]!r}")
            cls, fields = self._by_tag[tag]
            name = cls.__name__
            del items[0]
            result: M = fields.from_wire(items)
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as e:
            raise RemoteError(f"bad control message: {name}: {e}") from e
        return result


class _Fields:
    """The wire form of one dataclass: its fields in order, each with its two conversions."""

    def __init__(self, cls: type[Any], inside: tuple[type[Any], ...] = ()) -> None:
        if cls in inside:
            raise TypeError(f"{cls.__name__} contains itself")
        hints = typing.get_type_hints(cls)
        self.cls = cls
        self.names: list[str] = []
        self.required = 0
        self.encoders: list[Convert] = []
        self.decoders: list[Convert] = []
        for field in dataclasses.fields(cls):
            has_default = (
                field.default is not dataclasses.MISSING
                or field.default_factory is not dataclasses.MISSING
            )
            if not has_default:
                self.required += 1
            encoder, decoder = _conversions(hints[field.name], (*inside, cls))
            self.names.append(field.name)
            self.encoders.append(encoder)
            self.decoders.append(decoder)

    def to_wire(self, value: Any) -> list[Any]:
        items = []
        for name, encoder in zip(self.names, self.encoders, strict=True):
            try:
                items.append(encoder(getattr(value, name)))
            except _Mismatch as error:
                raise ValueError(f"{self.cls.__name__}.{name} {error}") from error
        return items

    def from_wire(self, items: Any) -> Any:
        if type(items) is not list:
            raise _Mismatch(f"expected the fields of {self.cls.__name__}")
        if not self.required <= len(items) <= len(self.names):
            raise _Mismatch(
                f"{self.cls.__name__} has {len(items)} fields, "
                f"expected {self.required} to {len(self.names)}"
            )
        values = []
        for name, decoder, item in zip(self.names, self.decoders, items, strict=False):
            try:
                values.append(decoder(item))
            except _Mismatch as error:
                raise _Mismatch(f"{name} {error}") from error
        return self.cls(*values)  # __post_init__ may add a ValueError of its own


def _require_frozen_dataclass(cls: type[Any]) -> None:
    params = getattr(cls, "__dataclass_params__", None)
    if params is None or not params.frozen or "__slots__" not in cls.__dict__:
        raise TypeError(f"{cls.__name__} must be @dataclass(frozen=True, slots=True), innermost")


def _conversions(hint: Any, inside: tuple[type[Any], ...]) -> tuple[Convert, Convert]:
    """Returns (to wire, from wire) for one type hint; both raise _Mismatch."""
    if hint in _SCALARS:
        check = _SCALARS[hint]
        return check, check
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return _enum_conversions(hint)
    if isinstance(hint, type) and hint.__dict__.get("__wire_struct__") is hint:
        fields = _Fields(typing.cast(type[Any], hint), inside)
        return _nested_encoder(fields), fields.from_wire
    if hasattr(hint, "__supertype__"):  # a NewType is its base on the wire
        return _conversions(hint.__supertype__, inside)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _tuple_conversions(*_conversions(arguments[0], inside))
    if origin in (Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return tuple(map(_or_none, _conversions(inner, inside)))  # type: ignore[return-value]
    raise TypeError(f"{inside[-1].__name__}: a field cannot be of type {hint!r}")


def _check_int(value: Any) -> int:
    if type(value) is not int:
        raise _Mismatch(f"is {type(value).__name__}, not an int")
    if not 0 <= value <= INT_MAX:
        raise _Mismatch("is not within 0 to 2^64-1")
    return value


def _check_float(value: Any) -> float:
    if type(value) is not float and type(value) is not int:
        raise _Mismatch(f"is {type(value).__name__}, not a float")
    if not math.isfinite(value):
        raise _Mismatch("is not finite")
    return float(value)


def _check_str(value: Any) -> str:
    if type(value) is not str:
        raise _Mismatch(f"is {type(value).__name__}, not a str")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise _Mismatch("is not valid Unicode") from error
    if size > STRING_BYTES_MAX:
        raise _Mismatch(f"has {size} bytes, more than {STRING_BYTES_MAX}")
    return value


def _check_bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise _Mismatch(f"is {type(value).__name__}, not bytes")
    if len(value) > BINARY_BYTES_MAX:
        raise _Mismatch(f"has {len(value)} bytes, more than {BINARY_BYTES_MAX}")
    return value


def _check_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _Mismatch(f"is {type(value).__name__}, not a bool")
    return value


_SCALARS: Final[dict[Any, Convert]] = {
    int: _check_int,
    float: _check_float,
    str: _check_str,
    bytes: _check_bytes,
    bool: _check_bool,
}


def _enum_conversions(enum: type[IntEnum]) -> tuple[Convert, Convert]:
    members = {int(member): member for member in enum}
    if any(not 0 <= value <= INT_MAX for value in members):
        raise TypeError(f"{enum.__name__} has a value outside 0 to 2^64-1")

    def encode(value: Any) -> int:
        if type(value) is not enum:
            raise _Mismatch(f"is {type(value).__name__}, not {enum.__name__}")
        return int(value)

    def decode(value: Any) -> IntEnum:
        if type(value) is not int or value not in members:
            raise _Mismatch(f"is no {enum.__name__}")
        return members[value]

    return encode, decode


def _nested_encoder(fields: _Fields) -> Convert:
    def encode(value: Any) -> list[Any]:
        if type(value) is not fields.cls:
            raise _Mismatch(f"is {type(value).__name__}, not {fields.cls.__name__}")
        return fields.to_wire(value)

    return encode


def _tuple_conversions(encode_item: Convert, decode_item: Convert) -> tuple[Convert, Convert]:
    def encode(value: Any) -> list[Any]:
        if type(value) is not tuple:
            raise _Mismatch(f"is {type(value).__name__}, not a tuple")
        if len(value) > ARRAY_LENGTH_MAX:
            raise _Mismatch(f"has {len(value)} items, more than {ARRAY_LENGTH_MAX}")
        return [encode_item(item) for item in value]

    def decode(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _Mismatch(f"is {type(value).__name__}, not an array")
        return tuple([decode_item(item) for item in value])

    return encode, decode


def _or_none(convert: Convert) -> Convert:
    return lambda value: None if value is None else convert(value)


def _unpack(body: bytes | bytearray | memoryview) -> Any:
    if len(body) > BODY_BYTES_MAX:
        raise _Mismatch(f"has {len(body)} bytes, more than {BODY_BYTES_MAX}")
    return msgpack.unpackb(
        body,
        raw=False,
        strict_map_key=True,
        max_str_len=STRING_BYTES_MAX,
        max_bin_len=BINARY_BYTES_MAX,
        # An array needs a byte per item at least, so a short body cannot ask for a long list.
        max_array_len=min(ARRAY_LENGTH_MAX, len(body)),
        max_map_len=MAP_LENGTH_MAX,
        max_ext_len=0,
    )
