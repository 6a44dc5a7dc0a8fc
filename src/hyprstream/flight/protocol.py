"""The messages of Flight SQL, and those of Flight that travel inside bodies of actions.

`test_protocol.py` compares every field with the descriptors inside the ADBC driver.
"""

from hyprstream.errors import UnsupportedError
from hyprstream.flight.protobuf import Message, declare, decode, encode

SQL = "arrow.flight.protocol.sql"
FLIGHT = "arrow.flight.protocol"
_TYPE_URL = f"type.googleapis.com/{SQL}."

# ! plain, ? may be absent, * repeated, @ map from texts, + one of these
_SQL_MESSAGES = """
CommandGetSqlInfo{* uint32 info 1}
CommandGetXdbcTypeInfo{? int32 data_type 1}
CommandGetCatalogs{}
CommandGetDbSchemas{? string catalog 1; ? string db_schema_filter_pattern 2}
CommandGetTables{? string catalog 1; ? string db_schema_filter_pattern 2;
  ? string table_name_filter_pattern 3; * string table_types 4; ! bool include_schema 5}
CommandGetTableTypes{}
CommandGetPrimaryKeys{? string catalog 1; ? string db_schema 2; ! string table 3}
CommandGetExportedKeys{? string catalog 1; ? string db_schema 2; ! string table 3}
CommandGetImportedKeys{? string catalog 1; ? string db_schema 2; ! string table 3}
CommandGetCrossReference{? string pk_catalog 1; ? string pk_db_schema 2; ! string pk_table 3;
  ? string fk_catalog 4; ? string fk_db_schema 5; ! string fk_table 6}
SubstraitPlan{! bytes plan 1; ! string version 2}
ActionCreatePreparedStatementRequest{! string query 1; ? bytes transaction_id 2}
ActionCreatePreparedSubstraitPlanRequest{! SubstraitPlan plan 1; ? bytes transaction_id 2}
ActionCreatePreparedStatementResult{! bytes prepared_statement_handle 1;
  ! bytes dataset_schema 2; ! bytes parameter_schema 3; ? bool is_update 4}
ActionClosePreparedStatementRequest{! bytes prepared_statement_handle 1}
ActionBeginTransactionRequest{}
ActionBeginSavepointRequest{! bytes transaction_id 1; ! string name 2}
ActionBeginTransactionResult{! bytes transaction_id 1}
ActionBeginSavepointResult{! bytes savepoint_id 1}
ActionEndTransactionRequest{! bytes transaction_id 1; ! int32 action 2}
ActionEndSavepointRequest{! bytes savepoint_id 1; ! int32 action 2}
CommandStatementQuery{! string query 1; ? bytes transaction_id 2}
CommandStatementSubstraitPlan{! SubstraitPlan plan 1; ? bytes transaction_id 2}
TicketStatementQuery{! bytes statement_handle 1}
CommandPreparedStatementQuery{! bytes prepared_statement_handle 1}
CommandStatementUpdate{! string query 1; ? bytes transaction_id 2}
CommandPreparedStatementUpdate{! bytes prepared_statement_handle 1}
TableDefinitionOptions{! int32 if_not_exist 1; ! int32 if_exists 2}
CommandStatementIngest{! TableDefinitionOptions table_definition_options 1; ! string table 2;
  ? string schema 3; ? string catalog 4; ! bool temporary 5; ? bytes transaction_id 6;
  @ string options 1000}
DoPutUpdateResult{! int64 record_count 1}
DoPutPreparedStatementResult{? bytes prepared_statement_handle 1}
ActionCancelQueryRequest{! bytes info 1}
ActionCancelQueryResult{! int32 result 1}
"""
_FLIGHT_MESSAGES = """
Any{! string type_url 1; ! bytes value 2}
Timestamp{! int64 seconds 1; ! int32 nanos 2}
Ticket{! bytes ticket 1}
Location{! string uri 1}
FlightDescriptor{! int32 type 1; ! bytes cmd 2; * string path 3}
FlightEndpoint{! Ticket ticket 1; * Location location 2; ! Timestamp expiration_time 3;
  ! bytes app_metadata 4}
FlightInfo{! bytes schema 1; ! FlightDescriptor flight_descriptor 2;
  * FlightEndpoint endpoint 3; ! int64 total_records 4; ! int64 total_bytes 5;
  ! bool ordered 6; ! bytes app_metadata 7}
CancelFlightInfoRequest{! FlightInfo info 1}
CancelFlightInfoResult{! int32 status 1}
RenewFlightEndpointRequest{! FlightEndpoint endpoint 1}
StringListValue{* string values 1}
SessionOptionValue{+ string string_value 1; + bool bool_value 2; + sfixed64 int64_value 3;
  + double double_value 4; + StringListValue string_list_value 5}
SetSessionOptionsRequest{@ SessionOptionValue session_options 1}
SessionError{! int32 value 1}
SetSessionOptionsResult{@ SessionError errors 1}
GetSessionOptionsRequest{}
GetSessionOptionsResult{@ SessionOptionValue session_options 1}
CloseSessionRequest{}
CloseSessionResult{! int32 status 1}
"""
SQL_MESSAGES = declare(_SQL_MESSAGES)
FLIGHT_MESSAGES = declare(_FLIGHT_MESSAGES)


def pack(name: str, **values: object) -> bytes:
    """Write a Flight SQL message as commands, tickets and bodies carry it: with its name."""
    content = encode(SQL_MESSAGES, name, values)
    return encode(FLIGHT_MESSAGES, "Any", {"type_url": _TYPE_URL + name, "value": content})


def unpack(data: bytes) -> tuple[str, Message] | None:
    """Read what `pack` wrote; None if it is no message of Flight SQL.

    Raises:
        InvalidRequestError: It says that it is one and is not, or one that nobody knows.
    """
    if _TYPE_URL.encode() not in data[: len(_TYPE_URL) + 12]:
        return None
    box = decode(FLIGHT_MESSAGES, "Any", data)
    name = box["type_url"].removeprefix(_TYPE_URL)
    if name not in SQL_MESSAGES:
        raise UnsupportedError(f"Flight SQL has no message {name[:80]!r} here")
    return name, decode(SQL_MESSAGES, name, box["value"])


def plain(name: str, **values: object) -> bytes:
    """Write a message as bodies of actions of Flight and answers to `DoPut` carry it."""
    declared = FLIGHT_MESSAGES if name in FLIGHT_MESSAGES else SQL_MESSAGES
    return encode(declared, name, values)


def read(name: str, data: bytes) -> Message:
    """Read what `plain` wrote.

    Raises:
        InvalidRequestError: The bytes are no such message.
    """
    declared = FLIGHT_MESSAGES if name in FLIGHT_MESSAGES else SQL_MESSAGES
    return decode(declared, name, data)
