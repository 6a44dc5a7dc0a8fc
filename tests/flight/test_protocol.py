"""Messages: declared as the descriptors inside the ADBC driver declare them; bytes to and fro."""

import re
from pathlib import Path

import adbc_driver_flightsql
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.errors import HyprstreamError, InvalidRequestError, UnsupportedError
from hyprstream.flight.protobuf import declare, decode, encode
from hyprstream.flight.protocol import FLIGHT_MESSAGES, SQL_MESSAGES, pack, plain, read, unpack

# descriptor.proto, as far as is needed to read what protoc wrote into the driver.
_DESCRIPTORS = declare("""
File{! string name 1; ! string package 2; * Type message_type 4}
Type{! string name 1; * Member field 2; * Type nested_type 3}
Member{! string name 1; ! int32 number 3; ! int32 label 4; ! int32 type 5; ! string type_name 6;
  ? int32 oneof_index 9; ! bool proto3_optional 17}
""")
_OUR_NAMES = {"Error": "SessionError"}  # nested there, where its name is not taken
_FILE_TAGS = {number << 3 | 2 for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12)}
_KINDS = {1: "double", 3: "int64", 5: "int32", 8: "bool", 9: "string", 12: "bytes", 13: "uint32",
          14: "int32", 16: "sfixed64"}  # fmt: skip


def _descriptors(name: bytes):
    """Dig the serialized description of a .proto file out of the driver's binary."""
    library = next(Path(adbc_driver_flightsql.__file__).parent.glob("*.so*")).read_bytes()
    for match in re.finditer(re.escape(b"\n" + bytes([len(name)]) + name), library):
        end = match.start()
        while library[end] in _FILE_TAGS:  # it ends where no field of it begins
            length, after = _varint(library, end + 1)
            end = after + length
        file = decode(_DESCRIPTORS, "File", library[match.start() : end])
        if file["message_type"]:
            return file
    raise AssertionError(f"{name!r} is not in the driver")


def _varint(data, position):
    number = shift = 0
    while True:
        number |= (data[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if data[position - 1] < 0x80:
            return number, position


def _all(messages):
    for message in messages:
        yield message
        yield from _all(message["nested_type"])


def _theirs(file):
    found = {}
    for message in _all(file["message_type"]):
        entries = {n["name"]: n for n in message["nested_type"] if n["name"].endswith("Entry")}
        for field in message["field"]:
            kind = field["type_name"].rpartition(".")[2]
            label = "optional" if field["proto3_optional"] else "plain"
            if field["label"] == 3:
                label = "repeated"
            elif field["oneof_index"] is not None and label == "plain":
                label = "choice"
            if kind in entries:
                value, label = entries[kind]["field"][1], "map"
                kind = value["type_name"].rpartition(".")[2] or _KINDS.get(value["type"])
            elif field["type"] != 11:
                kind = _KINDS.get(field["type"])
            owner = _OUR_NAMES.get(message["name"], message["name"])
            found[owner, field["name"]] = (field["number"], _OUR_NAMES.get(kind, kind), label)
    return found


@pytest.mark.parametrize(
    ("file", "declared", "least"),
    [(b"FlightSql.proto", SQL_MESSAGES, 60), (b"Flight.proto", FLIGHT_MESSAGES, 30)],
)
def test_every_field_is_declared_as_in_the_driver(file, declared, least):
    theirs = _theirs(_descriptors(file))
    compared = 0
    for name, fields in declared.items():
        if name in {"Any", "Timestamp"}:
            continue  # of protobuf itself
        for field in fields:
            number, kind, label = theirs[name, field.name]
            ours = (field.number, field.kind, field.label)
            assert ours == (number, kind, label), f"{name}.{field.name}"
            compared += 1
    assert compared >= least


_KIND = {
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint32": st.integers(0, 2**32 - 1),
    "sfixed64": st.integers(-(2**63), 2**63 - 1),
    "bool": st.booleans(),
    "double": st.floats(allow_nan=False),
    "string": st.text(),
    "bytes": st.binary(),
}


def _messages(declared, name):
    def values(field):
        scalar = _KIND.get(field.kind)
        one = _messages(declared, field.kind) if scalar is None else scalar
        if field.label == "repeated":
            return st.lists(one, max_size=4)
        if field.label == "map":
            return st.dictionaries(st.text(), one, max_size=3)
        may_lack = field.label in {"optional", "choice"} or field.kind not in _KIND
        return st.none() | one if may_lack else one

    return st.fixed_dictionaries({field.name: values(field) for field in declared[name]})


@given(data=st.data())
def test_what_is_written_is_read_again(data):
    declared = data.draw(st.sampled_from([SQL_MESSAGES, FLIGHT_MESSAGES]))
    name = data.draw(st.sampled_from(sorted(declared)))
    message = data.draw(_messages(declared, name))
    assert decode(declared, name, encode(declared, name, message)) == message


@given(data=st.binary(max_size=200), name=st.sampled_from(sorted(FLIGHT_MESSAGES)))
def test_bytes_that_are_no_message_are_refused_or_read(data, name):
    try:
        read(name, data)
    except InvalidRequestError:
        return


def test_a_known_encoding():
    """From the documentation of protobuf: field 1 of 150, and field 2 "testing"."""
    declared = declare("Test1{! int32 a 1; ! string b 2; * int32 c 4}")
    assert encode(declared, "Test1", {"a": 150, "b": "testing", "c": [3, 270, 86942]}) == (
        bytes.fromhex("089601120774657374696e672206038e029ea705")
    )


def test_a_message_says_what_it_is():
    data = pack("CommandStatementQuery", query="SELECT 1")
    assert unpack(data) == ("CommandStatementQuery", {"query": "SELECT 1", "transaction_id": None})
    assert unpack(b'{"Embed": {}}') is None
    with pytest.raises(UnsupportedError):
        unpack(data.replace(b"CommandStatementQuery", b"CommandStatementXuery"))
    with pytest.raises(HyprstreamError):
        unpack(data[:-3])
    assert plain("CloseSessionResult", status=1) == b"\x08\x01"
