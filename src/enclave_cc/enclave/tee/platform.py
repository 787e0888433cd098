"""The interface that every platform back-end implements."""

from __future__ import annotations

from typing import Protocol

from enclave_cc.crypto.secret import Secret
from enclave_cc.wire.sgx.report import Report, ReportBody, TargetInfo


class Platform(Protocol):
    """What an enclave can ask of the hardware below it. Safe to use from many threads."""

    @property
    def name(self) -> str:
        """The name by which the configuration chooses it."""

    @property
    def simulated(self) -> bool:
        """Whether the hardware is software, which protects nothing from root."""

    @property
    def identity(self) -> ReportBody:
        """The enclave's own identity, with zero report data."""

    def target_info(self) -> TargetInfo:
        """Where others address REPORTs for this enclave."""

    def report(self, target: TargetInfo, data: bytes) -> Report:
        """A REPORT for `target` over up to 64 bytes of data, zero-padded. Raises `UsageError` for more."""

    def verify(self, report: Report) -> ReportBody:
        """The body of a REPORT made for this enclave on this platform. Raises `PeerError("report-refused")`."""

    def quote(self, data: bytes) -> bytes:
        """A DCAP quote over up to 64 bytes of data, zero-padded. Raises `UsageError` for more."""

    def seal_key(self, policy: int, key_id: bytes) -> Secret:
        """16 bytes that only this enclave (or, by `KeyPolicy`, its signer's) gets again on this platform."""
