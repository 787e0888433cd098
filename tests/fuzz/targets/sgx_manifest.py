"""Enclave manifests, their measurement, and enclave identities."""

from __future__ import annotations

from contextlib import suppress

from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx.identity import EnclaveIdentity
from enclave_cc.wire.sgx.manifest import File, Manifest, measure

FILES = (File("a", "l", 0o777, "b"), File("b", "f", 0o644, "0" * 64), File("c", "d", 0o755), File("d", "c", 0o600, "1:3"))
SEEDS = [
    Manifest(role="app", entrypoint=("/x", "y"), environment={"A": "b"}, files=FILES).encode(),
    EnclaveIdentity(mr_signer=bytes(32), isv_prod_id=1, min_isv_svn=2, allow_debug=True).encode(),
]


def target(data: bytes) -> None:
    with suppress(PeerError):
        manifest = Manifest.parse(data)
        assert manifest.encode() == data
        assert len(measure(data)) == 32
    with suppress(PeerError):
        EnclaveIdentity.parse(data)
