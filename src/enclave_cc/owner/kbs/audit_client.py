"""The audit log over the KBS's HTTP interface: a `LogSource`."""

from __future__ import annotations

from enclave_cc.errors import PeerError
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.record import record
from enclave_cc.wire.audit.export import CheckpointLine, EntryLine, Line, parse_hashes, parse_line
from enclave_cc.wire.rcar import canonical


@record
class RemoteLog:
    """Raises what `AdminClient` does, and `PeerError("kbs-protocol")` for answers that are none."""

    client: AdminClient

    def checkpoint(self) -> bytes:
        """A signed note of the log as it is now; unverified."""
        return self.client.fetch("admin/audit/checkpoint")

    def read_log(self, size: int, begin: int) -> list[Line]:
        lines = _parse(self.client.fetch("admin/audit/log", {"size": size, "begin": begin}))
        if not all(isinstance(line, EntryLine | CheckpointLine) for line in lines):
            raise PeerError("kbs-protocol", "the KBS's page of the audit log is not of entries and checkpoints")
        return lines

    def read_excerpt(self, prefix: str, size: int, after: int) -> list[EntryLine]:
        path = "admin/audit/resources" + (f"/{prefix}" if prefix else "")
        return _take_entries(_parse(self.client.fetch(path, {"size": size, "begin": after + 1})))

    def read_entry(self, index: int, size: int) -> EntryLine:
        entries = _take_entries(_parse(self.client.fetch(f"admin/audit/entries/{index}", {"size": size})))
        if len(entries) != 1:
            raise PeerError("kbs-protocol", "the KBS did not answer with one entry")
        return entries[0]

    def prove_consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        body = self.client.fetch("admin/audit/consistency", {"old": old, "new": new})
        return parse_hashes(canonical.parse_object(body, "the proof").get("hashes"))


def _parse(body: bytes) -> list[Line]:
    return [parse_line(line) for line in body.splitlines()]


def _take_entries(lines: list[Line]) -> list[EntryLine]:
    entries = [line for line in lines if isinstance(line, EntryLine)]
    if len(entries) != len(lines):
        raise PeerError("kbs-protocol", "the KBS's page of the audit log is not of entries")
    return entries
