"""Session ids that carry their own session, so that a challenge costs the KBS no storage.

    id    = base64url(body || HMAC-SHA-256(id key, body))       the cookie; opaque to clients, 78 to 119 characters
    body  = version 1 (1 byte) || random (16) || expiry (8, big-endian Unix seconds) || TEE (1 to 32, ASCII)
    nonce = HMAC-SHA-256(nonce key, body)                       what the evidence must bind

Every KBS process that knows the store keys makes and reads them (`session_keys`). (RCAR leaves both values to the server;
upstream's id is a UUID that it looks up in its memory.)
"""

from __future__ import annotations

import base64
import hmac
import os

from enclave_cc.crypto import base64url
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.owner.kbs.session_keys import Derived, SessionKeys
from enclave_cc.record import record

_VERSION = 1
_RANDOM, _EXPIRY, _TEE, _MAC = 16, 8, 32, 32
_HEAD = 1 + _RANDOM + _EXPIRY
_SHORTEST, _LONGEST = 78, 119  # characters


@record
class SessionId:
    """An id that this KBS made. `nonce`: base64, as the challenge gives it; `expires`: Unix seconds."""

    text: str
    tee: str
    nonce: str
    expires: int


class SessionIds:
    """Makes and reads ids. Safe for many threads, equal in all processes with the same store keys."""

    def __init__(self, keys: SessionKeys) -> None:
        self._keys = keys

    def make(self, tee: str, expires: int) -> SessionId:
        """A new one; `tee` has 1 to 32 characters of ASCII."""
        name = tee.encode("ascii")
        if not 0 < len(name) <= _TEE:
            raise ValueError("a TEE's name has 1 to 32 characters")
        body = bytes([_VERSION]) + os.urandom(_RANDOM) + expires.to_bytes(_EXPIRY) + name
        keys = self._keys.all()[0]
        return _complete(keys, body, _mac(keys.id, body))

    def read(self, text: str, now: float) -> SessionId:
        """What a client sent back.

        1. It has the form of an id, in its one spelling.
        2. Its MAC is by one of our keys.
        3. It has not expired.

        Raises `PeerError("unauthenticated")`, always with the same words.
        """
        # 1
        if not _SHORTEST <= len(text) <= _LONGEST:
            raise _unknown()
        try:
            raw = base64url.decode(text, "the session id")
        except PeerError:
            raise _unknown() from None
        body, mac = raw[:-_MAC], raw[-_MAC:]
        # 2
        keys = next((each for each in self._keys.all() if hmac.compare_digest(mac, _mac(each.id, body))), None)
        if keys is None:
            raise _unknown()
        # 3
        made = _complete(keys, body, mac)
        if made.expires <= now:
            raise _unknown()
        return made


def _complete(keys: Derived, body: bytes, mac: bytes) -> SessionId:
    text = base64url.encode(body + mac)
    nonce = base64.b64encode(_mac(keys.nonce, body)).decode()
    return SessionId(text, body[_HEAD:].decode("ascii"), nonce, int.from_bytes(body[1 + _RANDOM : _HEAD]))


def _mac(key: Secret, body: bytes) -> bytes:
    return hmac.digest(key.reveal(), body, "sha256")


def _unknown() -> PeerError:
    return PeerError("unauthenticated", "there is no such session, or it has expired")
