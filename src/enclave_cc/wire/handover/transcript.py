"""What each REPORT covers, and the keys that come of the whole (docs/formats/handover.md, "What the REPORTs and keys cover")."""

from __future__ import annotations

import hashlib

from enclave_cc.crypto.aead import NONCE_SIZE, Aead
from enclave_cc.crypto.exchange import KeyShare
from enclave_cc.crypto.kdf import hkdf_sha256
from enclave_cc.record import record
from enclave_cc.wire.sgx.report import REPORT_DATA_SIZE

KEY_SIZE = 32
# Each direction's key encrypts exactly one message.
ONLY_NONCE = bytes(NONCE_SIZE)


def _label(text: str) -> bytes:
    return f"enclave-cc/handover/1 {text}".encode().ljust(48, b"\0")


def offer_report_data(hello: bytes, offer_opening: bytes) -> bytes:
    """64 bytes: what the agent's REPORT asserts."""
    return hashlib.sha256(_label("offer") + hello + offer_opening).digest().ljust(REPORT_DATA_SIZE, b"\0")


def proof_report_data(hello: bytes, offer: bytes, proof_opening: bytes) -> bytes:
    """64 bytes: what the app's REPORT asserts."""
    return hashlib.sha256(_label("proof") + hello + offer + proof_opening).digest().ljust(REPORT_DATA_SIZE, b"\0")


@record
class Keys:
    """One cipher for each direction."""

    app_to_agent: Aead
    agent_to_app: Aead


def derive_keys(own: KeyShare, peer_share: bytes, hello: bytes, offer: bytes, proof_reported: bytes) -> Keys:
    """Raises `PeerError("handover-refused")` for a share of low order."""
    secret = own.agree(peer_share)
    salt = hashlib.sha256(_label("keys") + hello + offer + proof_reported).digest()
    return Keys(
        app_to_agent=Aead(hkdf_sha256(secret, salt=salt, info=_label("app to agent"), size=KEY_SIZE)),
        agent_to_app=Aead(hkdf_sha256(secret, salt=salt, info=_label("agent to app"), size=KEY_SIZE)),
    )
