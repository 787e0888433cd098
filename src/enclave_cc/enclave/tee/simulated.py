"""The simulated SGX platform, as an enclave sees it: a unix socket to the supervisor's software CPU.

Development only. All checks on reports and keys are those of hardware; what is missing is that anything keeps root
of the machine out.
"""

from __future__ import annotations

import socket
import time
from hmac import compare_digest

from enclave_cc.crypto.kdf import aes_cmac
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.record import replace
from enclave_cc.wire.sgx import cpu_socket
from enclave_cc.wire.sgx.cpu_socket import EreportRequest, Op
from enclave_cc.wire.sgx.report import REPORT_DATA_SIZE, KeyName, KeyRequest, Report, ReportBody, TargetInfo


class SimulatedPlatform:
    """`tee.Platform` over the simulated CPU's socket; one connection per call, so threads and forks share nothing."""

    name = "simulated"
    simulated = True

    def __init__(self, cpu_socket_path: str, *, deadline: float = 10.0) -> None:
        """Asks the CPU who we are. Raises `EnvironmentFault("environment")` without CPU, `PeerError` when refused."""
        self._path = cpu_socket_path
        self._deadline = deadline
        self._identity = replace(cpu_socket.parse_self(self._call(Op.SELF)), report_data=bytes(REPORT_DATA_SIZE))

    @property
    def identity(self) -> ReportBody:
        return self._identity

    def target_info(self) -> TargetInfo:
        return TargetInfo.of(self._identity)

    def report(self, target: TargetInfo, data: bytes) -> Report:
        return Report.parse(self._call(Op.EREPORT, EreportRequest(target, _pad(data))))

    def verify(self, report: Report) -> ReportBody:
        key = Secret(self._call(Op.EGETKEY, KeyRequest(key_name=KeyName.REPORT, key_id=report.key_id)))
        if not compare_digest(aes_cmac(key, report.body.encode()), report.mac):
            raise PeerError("report-refused", "the REPORT was not made for this enclave on this platform")
        return report.body

    def quote(self, data: bytes) -> bytes:
        padded = _pad(data)
        target = TargetInfo.parse(self._call(Op.QE_TARGET))
        return self._call(Op.QUOTE, self.report(target, padded))

    def seal_key(self, policy: int, key_id: bytes) -> Secret:
        request = KeyRequest(
            key_name=KeyName.SEAL,
            key_policy=policy,
            key_id=key_id,
            isv_svn=self._identity.isv_svn,
            cpu_svn=self._identity.cpu_svn,
            config_svn=self._identity.config_svn,
        )
        return Secret(self._call(Op.EGETKEY, request))

    def _call(self, op: Op, request: cpu_socket.Request = None) -> bytes:
        end = time.monotonic() + self._deadline
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self._deadline)
                connection.connect(self._path)
                connection.sendall(cpu_socket.encode_request(op, request))
                done, size = cpu_socket.parse_answer_header(_receive(connection, cpu_socket.HEADER_SIZE, end))
                return cpu_socket.parse_answer_body(op, done, _receive(connection, size, end))
        except TimeoutError as error:
            raise EnvironmentFault("deadline", "the simulated CPU does not answer") from error
        except OSError as error:
            raise EnvironmentFault("environment", f"the simulated CPU cannot be reached at {self._path}: {error}") from error


def _pad(data: bytes) -> bytes:
    if len(data) > REPORT_DATA_SIZE:
        raise UsageError("usage", f"report data has at most {REPORT_DATA_SIZE} bytes")
    return data.ljust(REPORT_DATA_SIZE, b"\0")


def _receive(connection: socket.socket, size: int, end: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        connection.settimeout(max(end - time.monotonic(), 0.001))
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("closed within an answer")
        data += part
    return bytes(data)
