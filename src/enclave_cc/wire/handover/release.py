"""What is handed over: the launch statement and the root file system's keys."""

from __future__ import annotations

import json
from typing import Any

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.handover.messages import MAX_RELEASE_SIZE
from enclave_cc.wire.launch.statement import LaunchStatement
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor

VERSION = 1


@record
class Release:
    """Carries keys: exists in enclaves only, and travels only encrypted."""

    launch: LaunchStatement
    rootfs: RootfsDescriptor

    def encode(self) -> bytes:
        """The document in plain. Encrypt it at once."""
        document = {"version": VERSION, "launch": self.launch.to_json(), "rootfs": self.rootfs.to_json()}
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def parse(cls, data: bytes) -> Release:
        """Raises `PeerError("malformed")`, without a word of the content: it holds keys."""
        if len(data) > MAX_RELEASE_SIZE:
            raise PeerError("malformed", "the release document is too large")
        try:
            document: Any = json.loads(data)
        except (ValueError, RecursionError):
            raise PeerError("malformed", "the release document is not JSON") from None
        if not isinstance(document, dict) or set(document) != {"version", "launch", "rootfs"} or document["version"] != VERSION:
            raise PeerError("malformed", "the release document lacks members, has unknown ones, or has another version")
        return cls(LaunchStatement.from_json(document["launch"]), RootfsDescriptor.from_json(document["rootfs"]))
