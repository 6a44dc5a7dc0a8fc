"""Columns of the answers that Flight SQL fixes; clients compare names, types and nullability."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from hyprstream.flight.protobuf import Message

_TEXT, _SMALL, _FLAG = pa.utf8(), pa.int32(), pa.bool_()


def _columns(*columns: tuple[str, pa.DataType, bool]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=maybe) for name, kind, maybe in columns])


CATALOGS = _columns(("catalog_name", _TEXT, False))
DB_SCHEMAS = _columns(("catalog_name", _TEXT, True), ("db_schema_name", _TEXT, False))
TABLES = _columns(
    ("catalog_name", _TEXT, True),
    ("db_schema_name", _TEXT, True),
    ("table_name", _TEXT, False),
    ("table_type", _TEXT, False),
)
TABLES_WITH_SCHEMA = TABLES.append(pa.field("table_schema", pa.binary(), nullable=False))
TABLE_TYPES = _columns(("table_type", _TEXT, False))
PRIMARY_KEYS = _columns(  # in the order of the implementations, which is not that of the .proto
    ("catalog_name", _TEXT, True),
    ("db_schema_name", _TEXT, True),
    ("table_name", _TEXT, False),
    ("column_name", _TEXT, False),
    ("key_sequence", _SMALL, False),
    ("key_name", _TEXT, True),
)
KEYS = _columns(
    *(("pk_catalog_name", _TEXT, True), ("pk_db_schema_name", _TEXT, True)),
    *(("pk_table_name", _TEXT, False), ("pk_column_name", _TEXT, False)),
    *(("fk_catalog_name", _TEXT, True), ("fk_db_schema_name", _TEXT, True)),
    *(("fk_table_name", _TEXT, False), ("fk_column_name", _TEXT, False)),
    *(("key_sequence", _SMALL, False), ("fk_key_name", _TEXT, True), ("pk_key_name", _TEXT, True)),
    *(("update_rule", pa.uint8(), False), ("delete_rule", pa.uint8(), False)),
)
XDBC_TYPES = _columns(
    *(("type_name", _TEXT, False), ("data_type", _SMALL, False), ("column_size", _SMALL, True)),
    *(("literal_prefix", _TEXT, True), ("literal_suffix", _TEXT, True)),
    ("create_params", pa.list_(pa.field("item", _TEXT, nullable=False)), True),
    *(("nullable", _SMALL, False), ("case_sensitive", _FLAG, False), ("searchable", _SMALL, False)),
    *(("unsigned_attribute", _FLAG, True), ("fixed_prec_scale", _FLAG, False)),
    *(("auto_increment", _FLAG, True), ("local_type_name", _TEXT, True)),
    *(("minimum_scale", _SMALL, True), ("maximum_scale", _SMALL, True)),
    *(("sql_data_type", _SMALL, False), ("datetime_subcode", _SMALL, True)),
    *(("num_prec_radix", _SMALL, True), ("interval_precision", _SMALL, True)),
)
_CHILDREN = (
    ("string_value", _TEXT),
    ("bool_value", _FLAG),
    ("bigint_value", pa.int64()),
    ("int32_bitmask", _SMALL),
    ("string_list", pa.list_(_TEXT)),
    ("int32_to_int32_list_map", pa.map_(_SMALL, pa.list_(_SMALL))),
)
_UNION = pa.dense_union([pa.field(name, kind, nullable=False) for name, kind in _CHILDREN])
SQL_INFO = _columns(("info_name", pa.uint32(), False), ("value", _UNION, False))

_FIXED: Mapping[str, pa.Schema] = {
    "CommandGetCatalogs": CATALOGS,
    "CommandGetDbSchemas": DB_SCHEMAS,
    "CommandGetTables": TABLES,
    "CommandGetTableTypes": TABLE_TYPES,
    "CommandGetPrimaryKeys": PRIMARY_KEYS,
    "CommandGetExportedKeys": KEYS,
    "CommandGetImportedKeys": KEYS,
    "CommandGetCrossReference": KEYS,
    "CommandGetSqlInfo": SQL_INFO,
    "CommandGetXdbcTypeInfo": XDBC_TYPES,
}


def fixed_schema(name: str, command: Message) -> pa.Schema | None:
    """Return the columns of the answer to a command about the database; None for others."""
    if name == "CommandGetTables" and command["include_schema"]:
        return TABLES_WITH_SCHEMA
    return _FIXED.get(name)


class Mask(int):
    """A number that travels as 32 bits: a mask, or one of a list."""


def sql_info_table(values: Mapping[int, Any]) -> pa.Table:
    """Return facts about the server, each in the form that its kind demands.

    Args:
        values: Code -> text, truth, number, `Mask`, list of texts, or map of number lists.
    """
    children: list[list[Any]] = [[] for _ in _CHILDREN]
    codes, kinds, offsets = [], [], []
    for code, value in sorted(values.items()):
        kind = _child(value)
        codes.append(code)
        kinds.append(kind)
        offsets.append(len(children[kind]))
        children[kind].append(list(value.items()) if kind == 5 else value)
    arrays = [pa.array(child, kind) for child, (_, kind) in zip(children, _CHILDREN, strict=True)]
    buffers = [
        None,
        pa.array(kinds, pa.int8()).buffers()[1],
        pa.array(offsets, _SMALL).buffers()[1],
    ]
    union = pa.Array.from_buffers(_UNION, len(codes), buffers, children=arrays)
    return pa.Table.from_arrays([pa.array(codes, pa.uint32()), union], schema=SQL_INFO)


def _child(value: Any) -> int:
    kinds = (str, bool, Mask, int, list)
    places = (0, 1, 3, 2, 4)
    for kind, place in zip(kinds, places, strict=True):
        if isinstance(value, kind):
            return place
    return 5


# Name, JDBC's number, size, what surrounds a literal, what a type takes, LIKE, sign, radix.
_TYPES = (
    ("BOOLEAN", -7, 1, None, None, None, 2, None, None),
    ("BIGINT", -5, 19, None, None, None, 2, False, 10),
    ("TINYINT", -6, 3, None, None, None, 2, False, 10),
    ("BLOB", -3, 2147483647, "'", "'::BLOB", None, 2, None, None),
    ("DECIMAL", 3, 38, None, None, ["precision", "scale"], 2, False, 10),
    ("INTEGER", 4, 10, None, None, None, 2, False, 10),
    ("SMALLINT", 5, 5, None, None, None, 2, False, 10),
    ("FLOAT", 7, 24, None, None, None, 2, False, 2),
    ("DOUBLE", 8, 53, None, None, None, 2, False, 2),
    ("VARCHAR", 12, 2147483647, "'", "'", None, 3, None, None),
    ("DATE", 91, 10, "DATE '", "'", None, 2, None, None),
    ("TIME", 92, 15, "TIME '", "'", None, 2, None, None),
    ("TIMESTAMP", 93, 26, "TIMESTAMP '", "'", None, 2, None, None),
)
_DATETIME = {91: 1, 92: 2, 93: 3}


def xdbc_types(data_type: int | None) -> pa.Table:
    """Return what is told of types; of all if `data_type` is None."""
    rows = [
        {
            "type_name": name,
            "data_type": number,
            "column_size": size,
            "literal_prefix": prefix,
            "literal_suffix": suffix,
            "create_params": params,
            "nullable": 1,
            "case_sensitive": name == "VARCHAR",
            "searchable": searchable,
            "unsigned_attribute": unsigned,
            "fixed_prec_scale": False,
            "auto_increment": False,
            "local_type_name": name,
            "sql_data_type": 9 if number in _DATETIME else number,
            "datetime_subcode": _DATETIME.get(number),
            "num_prec_radix": radix,
        }
        for name, number, size, prefix, suffix, params, searchable, unsigned, radix in sorted(
            _TYPES, key=lambda row: row[1]
        )
        if data_type in {None, number}
    ]
    return pa.Table.from_pylist(rows, schema=XDBC_TYPES)
