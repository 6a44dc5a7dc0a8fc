"""What Flight SQL clients ask about the database: its tables, keys, types and abilities."""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from hyprstream import __version__
from hyprstream.flight.protobuf import Message
from hyprstream.flight.schemas import Mask, fixed_schema, sql_info_table, xdbc_types
from hyprstream.runtime.warehouse.database import CATALOG, LIVE
from hyprstream.runtime.warehouse.execution import Transaction
from hyprstream.runtime.warehouse.warehouse import Warehouse

_OURS = f"('{CATALOG}', '{LIVE}')"
_CATALOGS = f"""SELECT database_name AS catalog_name FROM duckdb_databases()
    WHERE database_name IN {_OURS} ORDER BY 1"""  # noqa: S608 - constants
_SCHEMAS = f"""SELECT database_name AS catalog_name, schema_name AS db_schema_name
    FROM duckdb_schemas()
    WHERE database_name IN {_OURS} AND schema_name NOT IN ('information_schema', 'pg_catalog')
      AND ($catalog IS NULL OR database_name = $catalog)
      AND ($schema IS NULL OR schema_name LIKE $schema ESCAPE '\\')
    ORDER BY 1, 2"""  # noqa: S608
_TABLES = f"""SELECT table_catalog AS catalog_name, table_schema AS db_schema_name, table_name,
      table_type FROM information_schema.tables
    WHERE (table_catalog IN {_OURS} OR table_type = 'LOCAL TEMPORARY')
      AND ($catalog IS NULL OR table_catalog = $catalog)
      AND ($schema IS NULL OR table_schema LIKE $schema ESCAPE '\\')
      AND ($table IS NULL OR table_name LIKE $table ESCAPE '\\')
      AND (len($types) = 0 OR list_contains($types, table_type))
    ORDER BY 4, 1, 2, 3"""  # noqa: S608
_COLUMNS = """SELECT column_name, data_type, is_nullable, comment, numeric_precision, numeric_scale
    FROM duckdb_columns()
    WHERE database_name = $catalog AND schema_name = $schema AND table_name = $table"""
_PRIMARY_KEYS = f"""SELECT database_name AS catalog_name, schema_name AS db_schema_name, table_name,
      unnest(constraint_column_names) AS column_name,
      unnest(range(1, len(constraint_column_names) + 1))::INT AS key_sequence,
      constraint_name AS key_name
    FROM duckdb_constraints()
    WHERE constraint_type = 'PRIMARY KEY' AND database_name IN {_OURS}
      AND ($catalog IS NULL OR database_name = $catalog)
      AND ($schema IS NULL OR schema_name = $schema) AND table_name = $table
    ORDER BY 4"""  # noqa: S608
_KEYS = f"""SELECT database_name AS pk_catalog_name, schema_name AS pk_db_schema_name,
      referenced_table AS pk_table_name, unnest(referenced_column_names) AS pk_column_name,
      database_name AS fk_catalog_name, schema_name AS fk_db_schema_name,
      table_name AS fk_table_name, unnest(constraint_column_names) AS fk_column_name,
      unnest(range(1, len(constraint_column_names) + 1))::INT AS key_sequence,
      constraint_name AS fk_key_name, NULL::VARCHAR AS pk_key_name,
      3::UTINYINT AS update_rule, 3::UTINYINT AS delete_rule
    FROM duckdb_constraints()
    WHERE constraint_type = 'FOREIGN KEY' AND database_name IN {_OURS}
      AND ($of IS NULL OR referenced_table = $of) AND ($by IS NULL OR table_name = $by)
      AND ($catalog IS NULL OR database_name = $catalog)
      AND ($schema IS NULL OR schema_name = $schema)
    ORDER BY 1, 2, 3, 5, 6, 7, 9"""  # noqa: S608


class Metadata:
    """Answers the commands of `fixed_schema`."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse
        self._answers: Mapping[str, Callable[[Message, Transaction | None], pa.Table]] = {
            "CommandGetCatalogs": lambda _, t: self._look(_CATALOGS, None, t),
            "CommandGetDbSchemas": lambda c, t: self._look(_SCHEMAS, _schema_filter(c), t),
            "CommandGetTables": self._tables,
            "CommandGetPrimaryKeys": lambda c, t: self._look(
                _PRIMARY_KEYS,
                {"catalog": c["catalog"], "schema": c["db_schema"], "table": c["table"]},
                t,
            ),
            "CommandGetExportedKeys": lambda c, t: self._keys(c, c["table"], None, t),
            "CommandGetImportedKeys": lambda c, t: self._keys(c, None, c["table"], t),
            "CommandGetCrossReference": lambda c, t: self._look(
                _KEYS,
                {
                    "of": c["pk_table"],
                    "by": c["fk_table"],
                    "catalog": c["pk_catalog"],
                    "schema": c["pk_db_schema"],
                },
                t,
            ),
        }

    def answer(
        self, name: str, command: Message, transaction: Transaction | None, *, can_write: bool
    ) -> pa.Table:
        """Answer one command, in exactly the columns that are fixed for it."""
        schema = fixed_schema(name, command)
        assert schema is not None, f"{name} is not about the database"
        if name == "CommandGetSqlInfo":
            return self._sql_info(command["info"], can_write=can_write)
        if name == "CommandGetXdbcTypeInfo":
            return xdbc_types(command["data_type"])
        if name == "CommandGetTableTypes":
            return pa.table([["BASE TABLE", "LOCAL TEMPORARY", "VIEW"]], schema=schema)
        self._warehouse.refresh(None)
        table = self._answers[name](command, transaction)
        return table.select(schema.names).cast(schema)

    def _look(
        self, query: str, values: dict[str, Any] | None, transaction: Transaction | None
    ) -> pa.Table:
        return self._warehouse.look(query, values, transaction)

    def _keys(
        self, command: Message, of: str | None, by: str | None, transaction: Transaction | None
    ) -> pa.Table:
        place = {"catalog": command["catalog"], "schema": command["db_schema"]}
        return self._look(_KEYS, {"of": of, "by": by, **place}, transaction)

    def _tables(self, command: Message, transaction: Transaction | None) -> pa.Table:
        values = {
            **_schema_filter(command),
            "table": command["table_name_filter_pattern"],
            "types": command["table_types"],
        }
        tables = self._look(_TABLES, values, transaction)
        if not command["include_schema"]:
            return tables
        schemas = [
            self._schema(row["catalog_name"], row["db_schema_name"], row["table_name"], transaction)
            for row in tables.to_pylist()
        ]
        content = pa.array([schema.serialize().to_pybytes() for schema in schemas], pa.binary())
        return tables.append_column("table_schema", content)

    def _schema(
        self, catalog: str, schema: str, table: str, transaction: Transaction | None
    ) -> pa.Schema:
        name = ".".join('"' + part.replace('"', '""') + '"' for part in (catalog, schema, table))
        arrow = self._look(f"SELECT * FROM {name} LIMIT 0", None, transaction).schema  # noqa: S608
        place = {"catalog": catalog, "schema": schema, "table": table}
        known = {
            row["column_name"]: row for row in self._look(_COLUMNS, place, transaction).to_pylist()
        }
        fields = []
        for field in arrow:
            row = known.get(field.name, {})
            facts = {
                "CATALOG_NAME": catalog,
                "SCHEMA_NAME": schema,
                "TABLE_NAME": table,
                "TYPE_NAME": row.get("data_type"),
                "PRECISION": row.get("numeric_precision"),
                "SCALE": row.get("numeric_scale"),
                "REMARKS": row.get("comment"),
                "IS_AUTO_INCREMENT": 0,
                "IS_CASE_SENSITIVE": int(row.get("data_type") == "VARCHAR"),
                "IS_READ_ONLY": int(catalog == LIVE),
                "IS_SEARCHABLE": 1,
            }
            told = {f"ARROW:FLIGHT:SQL:{key}": str(v) for key, v in facts.items() if v is not None}
            maybe = bool(row.get("is_nullable", True))
            fields.append(field.with_nullable(maybe).with_metadata(told))
        return pa.schema(fields)

    def _sql_info(self, codes: list[int], *, can_write: bool) -> pa.Table:
        values = {**self._facts(), 3: not can_write}
        # Clients ask for what other servers have too: what is not known is left out.
        return sql_info_table({c: values[c] for c in (codes or values) if c in values})

    def _facts(self) -> dict[int, Any]:
        """Return the facts by their codes; JDBC casts each to the type that it has here."""
        return {
            0: "hyprstream",
            1: __version__,
            2: pa.__version__,
            4: True,
            5: False,
            8: Mask(1),
            9: True,
            10: True,
            11: True,
            100: Mask(600_000),
            101: Mask(600_000),
            500: False,
            501: True,
            502: True,
            503: 1,
            504: '"',
            505: 1,
            506: True,
            507: 3,
            508: self._keywords(),
            509: self._functions("'DOUBLE', 'BIGINT', 'INTEGER', 'FLOAT', 'HUGEINT'"),
            510: self._functions("'VARCHAR'"),
            511: ["current_database", "current_schema", "version"],
            512: self._functions("'DATE', 'TIME', 'TIMESTAMP', 'INTERVAL'"),
            513: "\\",
            514: "",
            517: {},
            522: Mask(3),
            525: Mask(7),
            526: Mask(7),
            528: Mask(6),
            529: "schema",
            530: "procedure",
            531: "catalog",
            532: True,
            533: Mask(31),
            534: Mask(31),
            535: Mask(0),
            538: Mask(15),
            540: Mask(3),
            564: Mask(16),
            567: Mask(2),
            568: Mask(1),
            569: Mask(2),
            570: Mask(0),
            571: Mask(0),
            **dict.fromkeys((515, 516, 518, 519, 520, 521, 523, 524, 539, 556, 563), True),
            **dict.fromkeys((527, 536, 537, 565, 566, 572, 573, 574, 575, 576), False),
            **dict.fromkeys((code for code in range(541, 562) if code != 556), 0),
            562: 4,
        }

    def _keywords(self) -> list[str]:
        query = (
            "SELECT keyword_name AS name FROM duckdb_keywords() "
            "WHERE keyword_category = 'reserved' ORDER BY 1"
        )
        names: list[str] = self._look(query, None, None).column("name").to_pylist()
        return names

    def _functions(self, types: str) -> list[str]:
        query = (
            "SELECT DISTINCT function_name AS name FROM duckdb_functions() "  # noqa: S608
            f"WHERE function_type = 'scalar' AND return_type IN ({types}) "
            "AND function_name ~ '^[a-z_0-9]+$' ORDER BY 1"
        )
        names: list[str] = self._look(query, None, None).column("name").to_pylist()
        return names


def _schema_filter(command: Message) -> dict[str, Any]:
    return {"catalog": command["catalog"], "schema": command["db_schema_filter_pattern"]}
