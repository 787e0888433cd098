"""The messages of ttrpc.proto."""

from __future__ import annotations

from enclave_cc.record import record
from enclave_cc.wire.pb import codec

ERROR_DETAIL_URL = "type.googleapis.com/enclavecc.ttrpc.v1.ErrorDetail"


@record
class KeyValue:
    key: str = codec.string(1)
    value: str = codec.string(2)


@record
class Request:
    """`timeout_nano` is 0 for no limit, else what is left of the caller's deadline in nanoseconds."""

    service: str = codec.string(1)
    method: str = codec.string(2)
    payload: bytes = codec.bytestring(3)
    timeout_nano: int = codec.int64(4)
    metadata: tuple[KeyValue, ...] = codec.message(5, KeyValue, repeated=True)


@record
class Any:
    type_url: str = codec.string(1)
    value: bytes = codec.bytestring(2)


@record
class Status:
    """google.rpc.Status; `code` is a google.rpc.Code (`errors.Status`)."""

    code: int = codec.int32(1)
    message: str = codec.string(2)
    details: tuple[Any, ...] = codec.message(3, Any, repeated=True)


@record
class Response:
    status: Status | None = codec.message(1, Status)
    payload: bytes = codec.bytestring(2)


@record
class ErrorDetail:
    code: str = codec.string(1)
    what: str = codec.string(2)
    fix: str = codec.string(3)
