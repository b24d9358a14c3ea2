"""The codec: what goes in comes out, and nothing else ever comes out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.base.errors import RemoteError
from pccl.transport.codec import INT_MAX, Codec, message, struct


class Colour(IntEnum):
    RED = 1
    BLUE = 7


@struct
@dataclass(frozen=True, slots=True)
class Point:
    x: int
    label: str = "none"


@message(5)
@dataclass(frozen=True, slots=True)
class Shape:
    count: int
    weight: float
    name: str
    key: bytes
    closed: bool
    colour: Colour
    points: tuple[Point, ...]
    maybe: int | None
    rows: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.count == 13:
            raise ValueError("count must not be 13")


@message(6)
@dataclass(frozen=True, slots=True)
class Nothing:
    pass


@message(7)
@dataclass(frozen=True, slots=True)
class Unregistered:
    pass


codec: Codec[Shape | Nothing] = Codec(Shape, Nothing)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
points = st.builds(Point, st.integers(0, INT_MAX), texts)
shapes = st.builds(
    Shape,
    count=st.integers(0, INT_MAX).filter(lambda n: n != 13),
    weight=st.floats(allow_nan=False, allow_infinity=False),
    name=texts,
    key=st.binary(max_size=50),
    closed=st.booleans(),
    colour=st.sampled_from(Colour),
    points=st.lists(points, max_size=5).map(tuple),
    maybe=st.none() | st.integers(0, INT_MAX),
    rows=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=3).map(tuple),
)
SHAPE = Shape(1, 0.5, "a", b"k", True, Colour.BLUE, (Point(2, "b"),), None, ((1, 2), ()))
WIRE = [5, 1, 0.5, "a", b"k", True, 7, [[2, "b"]], None, [[1, 2], []]]
json_like = st.recursive(
    st.none() | st.booleans() | st.integers(0, INT_MAX) | st.floats() | texts | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=20,
)


@given(shapes)
def test_a_message_comes_back_as_it_was_sent(shape: Shape) -> None:
    assert codec.decode(codec.encode(shape)) == shape


def test_the_bytes_are_an_array_with_the_tag_in_front() -> None:
    assert msgpack.unpackb(codec.encode(SHAPE)) == WIRE
    assert codec.encode(Nothing()) == b"\x91\x06"


@given(st.binary(max_size=300))
def test_garbage_is_a_remote_error_and_nothing_else(data: bytes) -> None:
    try:
        codec.decode(data)
    except RemoteError:
        return
    assert data == b"\x91\x06" or data[1] == 5


@given(st.lists(json_like, max_size=11))
def test_any_document_is_a_message_or_a_remote_error(items: list[object]) -> None:
    for tag in (5, 6):
        try:
            decoded = codec.decode(msgpack.packb([tag, *items]))
        except RemoteError:
            continue
        assert codec.decode(codec.encode(decoded)) == decoded


@given(shapes, st.data())
def test_a_cut_message_is_a_remote_error(shape: Shape, data: st.DataObject) -> None:
    body = codec.encode(shape)
    cut = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(RemoteError):
        codec.decode(body[:cut])


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        (1, -1, "count is not within"),
        (1, True, "count is bool, not an int"),
        (1, 1.0, "count is float"),
        (1, "1", "count is str"),
        (1, None, "count is NoneType"),
        (1, 13, "must not be 13"),
        (2, float("nan"), "weight is not finite"),
        (2, float("inf"), "weight is not finite"),
        (2, False, "weight is bool"),
        (3, b"a", "name is bytes"),
        (3, "x" * 4097, "max_str_len"),
        (4, "k", "key is str"),
        (5, 1, "closed is int"),
        (6, 2, "colour is no Colour"),
        (6, True, "colour is no Colour"),
        (7, 3, "points is int, not an array"),
        (7, [3], "points expected the fields of Point"),
        (7, [[]], "Point has 0 fields, expected 1 to 2"),
        (7, [[1, "b", 2]], "Point has 3 fields"),
        (7, [[-1]], "points x is not within"),
        (8, "x", "maybe is str"),
        (9, [[1, [2]]], "rows is list"),
        (9, {}, "rows is dict"),
    ],
)
def test_a_field_of_the_wrong_type_or_range_names_itself(
    field: int, value: object, complaint: str
) -> None:
    wire = [*WIRE[:field], value, *WIRE[field + 1 :]]
    with pytest.raises(RemoteError, match=complaint):
        codec.decode(msgpack.packb(wire))


def test_an_integer_serves_as_a_float() -> None:
    decoded = codec.decode(msgpack.packb([*WIRE[:2], 3, *WIRE[3:]]))
    assert isinstance(decoded, Shape)
    assert (decoded.weight, type(decoded.weight)) == (3.0, float)


def test_an_integer_too_large_for_a_float_is_a_remote_error_or_its_nearest_float() -> None:
    decoded = codec.decode(msgpack.packb([*WIRE[:2], INT_MAX, *WIRE[3:]]))
    assert isinstance(decoded, Shape)
    assert decoded.weight == float(INT_MAX)


def test_a_trailing_field_with_a_default_may_be_missing_and_no_other() -> None:
    decoded = codec.decode(msgpack.packb(WIRE[:9]))
    assert isinstance(decoded, Shape)
    assert decoded.rows == ()
    with pytest.raises(RemoteError, match="7 fields"):
        codec.decode(msgpack.packb(WIRE[:8]))
    with pytest.raises(RemoteError, match="10 fields"):
        codec.decode(msgpack.packb([*WIRE, 1]))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x90",
        b"\x05",
        msgpack.packb([7]),
        msgpack.packb([True]),
        msgpack.packb(["5"]),
        msgpack.packb([[5]]),
        msgpack.packb({5: 1}),
        b"\x91\x06\x00",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",  # an array of 4 G items
        b"\xc6\xff\xff\xff\xff",  # bytes of 4 GB
        b"\x91" * 5000,
        b"\xd4\x05\x00",  # an extension type
        b"\x91\x06" + b"\x00" * (1 << 20),
    ],
)
def test_what_is_no_known_message_is_a_remote_error(body: bytes) -> None:
    with pytest.raises(RemoteError):
        codec.decode(body)


def test_our_own_mistakes_are_not_blamed_on_a_peer() -> None:
    with pytest.raises(TypeError, match="not a message of this codec"):
        codec.encode(Unregistered())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Shape\.name has 4097 bytes"):
        codec.encode(Shape(1, 1.0, "x" * 4097, b"", True, Colour.RED, (), None))
    with pytest.raises(ValueError, match=r"Point\.x is not within"):
        codec.encode(Shape(1, 1.0, "", b"", True, Colour.RED, (Point(-1),), None))


def test_a_schema_that_cannot_be_checked_is_refused_when_the_codec_is_made() -> None:
    @message(1)
    @dataclass(frozen=True, slots=True)
    class Loose:
        anything: dict[str, int]

    @message(5)
    @dataclass(frozen=True, slots=True)
    class SameTag:
        pass

    with pytest.raises(TypeError, match="cannot be of type"):
        Codec(Loose)
    with pytest.raises(TypeError, match="belongs to both"):
        Codec(Shape, SameTag)
    with pytest.raises(TypeError, match="not marked"):
        Codec(Point)
    with pytest.raises(TypeError, match="frozen"):
        message(9)(dataclass(type("Mutable", (), {})))
