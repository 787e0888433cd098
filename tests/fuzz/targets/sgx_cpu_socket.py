"""Messages of the simulated CPU's socket, as either side reads them."""

from __future__ import annotations

from contextlib import suppress

from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx import cpu_socket
from enclave_cc.wire.sgx.cpu_socket import HEADER_SIZE, EreportRequest, Op
from enclave_cc.wire.sgx.report import Attributes, KeyRequest, Report, ReportBody, TargetInfo

BODY = ReportBody(attributes=Attributes(5, 3), mr_enclave=bytes(32), mr_signer=bytes(32))
SEEDS = [
    cpu_socket.encode_request(Op.SELF),
    cpu_socket.encode_request(Op.EREPORT, EreportRequest(TargetInfo.of(BODY), bytes(64))),
    cpu_socket.encode_request(Op.EGETKEY, KeyRequest(key_name=3)),
    cpu_socket.encode_request(Op.QUOTE, Report(body=BODY, key_id=bytes(32), mac=bytes(16))),
    cpu_socket.encode_answer(bytes(16)),
    cpu_socket.encode_refusal("report-refused", "no"),
]


def target(data: bytes) -> None:
    head, body = data[:HEADER_SIZE], data[HEADER_SIZE:]
    with suppress(PeerError):
        op, _ = cpu_socket.parse_request_header(head)
        cpu_socket.parse_request_body(op, body)
    for op in Op:
        with suppress(PeerError):
            done, _ = cpu_socket.parse_answer_header(head)
            answer = cpu_socket.parse_answer_body(op, done, body)
            if op is Op.SELF:
                cpu_socket.parse_self(answer)
