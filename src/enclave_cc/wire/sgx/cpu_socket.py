"""Messages between an enclave and the simulated CPU, over a unix socket. Simulation only.

    request:   op u8, size u32, body        answer:   status u8 (0 done, 1 refused), size u32, body

One request and one answer per connection, little-endian. The body of a refusal is JSON {"code", "what"}. The
operations are those of the CPU and of the quoting enclave; the CPU learns who asks from the kernel, never from
the message.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum

from enclave_cc.errors import TABLE, PeerError, foreign
from enclave_cc.record import record
from enclave_cc.wire.sgx.report import (
    KEY_REQUEST_SIZE,
    REPORT_BODY_SIZE,
    REPORT_DATA_SIZE,
    REPORT_SIZE,
    TARGET_INFO_SIZE,
    KeyRequest,
    Report,
    ReportBody,
    TargetInfo,
)

HEADER_SIZE = 5
BODY_LIMIT = 128 << 10
_HEADER = struct.Struct("<BI")


class Op(IntEnum):
    """What an enclave can ask for; sizes of request and answer body in bytes."""

    SELF = 1  # 0 -> report body 384
    EREPORT = 2  # TARGETINFO 512, report data 64 -> REPORT 432
    EGETKEY = 3  # KEYREQUEST 512 -> key 16
    QUOTE = 4  # REPORT 432, made for the quoting enclave -> quote
    QE_TARGET = 5  # 0 -> TARGETINFO 512 of the quoting enclave


_REQUEST_SIZE = {
    Op.SELF: 0,
    Op.EREPORT: TARGET_INFO_SIZE + REPORT_DATA_SIZE,
    Op.EGETKEY: KEY_REQUEST_SIZE,
    Op.QUOTE: REPORT_SIZE,
    Op.QE_TARGET: 0,
}
_ANSWER_SIZE = {Op.SELF: REPORT_BODY_SIZE, Op.EREPORT: REPORT_SIZE, Op.EGETKEY: 16, Op.QE_TARGET: TARGET_INFO_SIZE}


@record
class EreportRequest:
    target: TargetInfo
    report_data: bytes


Request = EreportRequest | KeyRequest | Report | None


def parse_request_header(data: bytes) -> tuple[Op, int]:
    """Operation and size of the body that follows. Raises `PeerError("malformed")`."""
    number, size = _unpack_header(data)
    try:
        op = Op(number)
    except ValueError as error:
        raise PeerError("malformed", f"the simulated CPU knows no operation {number}") from error
    if size != _REQUEST_SIZE[op]:
        raise PeerError("malformed", f"a request for {op.name} has a body of {_REQUEST_SIZE[op]} bytes")
    return op, size


def parse_request_body(op: Op, body: bytes) -> Request:
    """The request's operand. Raises `PeerError("malformed")`."""
    if len(body) != _REQUEST_SIZE[op]:
        raise PeerError("malformed", f"a request for {op.name} has a body of {_REQUEST_SIZE[op]} bytes")
    match op:
        case Op.EREPORT:
            return EreportRequest(TargetInfo.parse(body[:TARGET_INFO_SIZE]), body[TARGET_INFO_SIZE:])
        case Op.EGETKEY:
            return KeyRequest.parse(body)
        case Op.QUOTE:
            return Report.parse(body)
        case _:
            return None


def encode_request(op: Op, request: Request = None) -> bytes:
    match request:
        case EreportRequest(target, report_data):
            body = target.encode() + report_data
        case None:
            body = b""
        case _:
            body = request.encode()
    return _HEADER.pack(op, len(body)) + body


def parse_answer_header(data: bytes) -> tuple[bool, int]:
    """Whether the request was carried out, and the size of the body that follows. Raises `PeerError("malformed")`."""
    status, size = _unpack_header(data)
    if status > 1:
        raise PeerError("malformed", "the simulated CPU's answer has an unknown status")
    return status == 0, size


def parse_answer_body(op: Op, done: bool, body: bytes) -> bytes:
    """The answer to `op`. Raises the CPU's refusal under its own code, or `PeerError("malformed")`."""
    if not done:
        raise _parse_refusal(body)
    if len(body) != _ANSWER_SIZE.get(op, len(body)):
        raise PeerError("malformed", f"the simulated CPU's answer to {op.name} has the wrong size")
    return body


def encode_answer(body: bytes) -> bytes:
    return _HEADER.pack(0, len(body)) + body


def encode_refusal(code: str, what: str) -> bytes:
    body = json.dumps({"code": code, "what": foreign(what)}).encode("ascii")
    return _HEADER.pack(1, len(body)) + body


def parse_self(body: bytes) -> ReportBody:
    """The answer to SELF. Raises `PeerError("malformed")`."""
    return ReportBody.parse(body)


def _unpack_header(data: bytes) -> tuple[int, int]:
    if len(data) != HEADER_SIZE:
        raise PeerError("malformed", "a message of the simulated CPU's socket is cut off")
    number, size = _HEADER.unpack(data)
    if size > BODY_LIMIT:
        raise PeerError("malformed", f"a message of the simulated CPU's socket has at most {BODY_LIMIT} bytes")
    return number, size


def _parse_refusal(body: bytes) -> PeerError:
    try:
        document = json.loads(body)
        code, what = document["code"], document["what"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return PeerError("malformed", "the simulated CPU's refusal cannot be read")
    if not isinstance(code, str) or code not in TABLE:
        return PeerError("malformed", "the simulated CPU's refusal has an unknown code")
    return PeerError(code, foreign(what))
