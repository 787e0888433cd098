"""Messages of the simulated CPU's socket."""

from __future__ import annotations

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx import cpu_socket
from enclave_cc.wire.sgx.cpu_socket import EreportRequest, Op
from enclave_cc.wire.sgx.report import Attributes, KeyRequest, Report, ReportBody, TargetInfo

BODY = ReportBody(attributes=Attributes(5, 3), mr_enclave=bytes(32), mr_signer=bytes(32))
REQUESTS: list[tuple[Op, cpu_socket.Request]] = [
    (Op.SELF, None),
    (Op.EREPORT, EreportRequest(TargetInfo.of(BODY), b"d" * 64)),
    (Op.EGETKEY, KeyRequest(key_name=4)),
    (Op.QUOTE, Report(body=BODY, key_id=bytes(32), mac=bytes(16))),
    (Op.QE_TARGET, None),
]


@pytest.mark.parametrize(("op", "request_"), REQUESTS, ids=[op.name for op, _ in REQUESTS])
def test_requests_round_trip(op: Op, request_: cpu_socket.Request) -> None:
    data = cpu_socket.encode_request(op, request_)
    assert cpu_socket.parse_request_header(data[:5]) == (op, len(data) - 5)
    assert cpu_socket.parse_request_body(op, data[5:]) == request_
    with pytest.raises(PeerError):
        cpu_socket.parse_request_body(op, data[5:] + b"\0")


@pytest.mark.parametrize("header", [b"", b"\1\0\0\0", b"\0\0\0\0\0", b"\x06\0\0\0\0", b"\1\1\0\0\0", b"\2\0\0\0\xff"])
def test_broken_request_headers(header: bytes) -> None:
    with pytest.raises(PeerError):
        cpu_socket.parse_request_header(header)


def test_answers() -> None:
    data = cpu_socket.encode_answer(bytes(16))
    assert cpu_socket.parse_answer_header(data[:5]) == (True, 16)
    assert cpu_socket.parse_answer_body(Op.EGETKEY, True, data[5:]) == bytes(16)
    with pytest.raises(PeerError):
        cpu_socket.parse_answer_body(Op.EGETKEY, True, bytes(15))


def test_a_refusal_keeps_its_code() -> None:
    data = cpu_socket.encode_refusal("report-refused", "no\nenclave" + "x" * 1000)
    done, _ = cpu_socket.parse_answer_header(data[:5])
    with pytest.raises(PeerError) as caught:
        cpu_socket.parse_answer_body(Op.SELF, done, data[5:])
    assert caught.value.code == "report-refused"
    assert "\n" not in caught.value.what
    assert len(caught.value.what) < 300


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"\xff", b'{"code":"no-such-code","what":""}', b'{"code":[],"what":""}', b"[" * 9999]
)
def test_broken_refusals(body: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        cpu_socket.parse_answer_body(Op.SELF, False, body)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize("header", [b"\2\0\0\0\0", b"\0\xff\xff\xff\xff", b"\0"])
def test_broken_answer_headers(header: bytes) -> None:
    with pytest.raises(PeerError):
        cpu_socket.parse_answer_header(header)
