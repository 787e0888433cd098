"""The KBS's session ids, which come back as cookies."""

from __future__ import annotations

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.owner.kbs.session_ids import SessionIds
from enclave_cc.owner.kbs.session_keys import SessionKeys

_IDS = SessionIds(SessionKeys(lambda: (Secret(bytes(32)),), lifetime=300))
SEEDS = [_IDS.make(tee, 1 << 40).text.encode() for tee in ("sgx", "sample", "x" * 32)]


def target(data: bytes) -> None:
    text = data.decode("latin-1")
    try:
        read = _IDS.read(text, 0.0)
    except PeerError as error:
        assert error.code == "unauthenticated"
        return
    assert read.text == text
