"""What evidence binds: REPORTDATA and the init-data digest.

    report data = SHA-384( JCS({"additional-evidence", "nonce", "tee-pubkey"}) )   for the primary TEE
                  SHA-384( JCS({"nonce", "tee-pubkey"}) )                          for devices

Both are shorter than SGX's 64-byte fields and are padded with zeros on the right.
"""

from __future__ import annotations

import hashlib

from enclave_cc.crypto.jwk import PublicJwk
from enclave_cc.errors import UsageError
from enclave_cc.wire.rcar import canonical

FIELD_SIZE = 64


def compute_report_data(nonce: str, key: PublicJwk, additional_evidence: str) -> bytes:
    """48 bytes for the primary TEE's evidence."""
    value = {"additional-evidence": additional_evidence, "nonce": nonce, "tee-pubkey": dict(key.members)}
    return hashlib.sha384(canonical.encode(value)).digest()


def compute_device_report_data(nonce: str, key: PublicJwk) -> bytes:
    """48 bytes for a device's evidence."""
    return hashlib.sha384(canonical.encode({"nonce": nonce, "tee-pubkey": dict(key.members)})).digest()


def pad(digest: bytes) -> bytes:
    """`digest` in a 64-byte SGX field (REPORTDATA, CONFIGID)."""
    if len(digest) > FIELD_SIZE:
        raise UsageError("usage", f"a digest of {len(digest)} bytes does not fit a field of {FIELD_SIZE}")
    return digest.ljust(FIELD_SIZE, b"\0")
