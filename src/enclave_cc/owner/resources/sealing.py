"""Encryption at rest: each value AES-256-GCM under a store key.

A value's additional data are its path and version: a value moved to another path, or an old version put in place of a
new one, does not open. What this cannot see is a whole path set back to an earlier state. Nonces are random; a store
key serves 2^32 writes (NIST SP 800-38D 8.3).

While keys are changed there are several: the first seals, all open. A key is known by an id derived from it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

from enclave_cc.crypto import aead, kdf
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.record import record

KEY_SIZE = 32
KEY_ID_SIZE = 8
FRESH_SECONDS = 1.0
_FORMAT = b"\x01"
OVERHEAD = len(_FORMAT) + KEY_ID_SIZE + aead.NONCE_SIZE + aead.TAG_SIZE


@record
class Sealed:
    """A value under a store key. `key_id` is empty on what was sealed when there was one key only."""

    key_id: bytes
    nonce: bytes
    ciphertext: bytes  # with the tag

    def encode(self) -> bytes:
        """format 1 (1 byte), key id (8), nonce (12), ciphertext and tag."""
        return b"".join((_FORMAT, self.key_id, self.nonce, self.ciphertext))

    @classmethod
    def parse(cls, data: bytes) -> Sealed:
        """Raises `PeerError("seal-broken")`."""
        if len(data) < OVERHEAD or data[:1] != _FORMAT:
            raise PeerError("seal-broken", "the sealed value is cut or of another format")
        nonce = 1 + KEY_ID_SIZE
        body = nonce + aead.NONCE_SIZE
        return cls(data[1:nonce], data[nonce:body], data[body:])


def compute_key_id(key: Secret) -> bytes:
    return kdf.hkdf_sha256(key, salt=b"", info=b"enclave-cc/kbs-store-key-id/1", size=KEY_ID_SIZE).reveal()


class Keyring:
    """The store keys of one KBS. Safe for many threads."""

    def __init__(self, keys: Sequence[Secret], *, read_again: Callable[[], Sequence[Secret]] | None = None) -> None:
        """`read_again` gives the keys as they are now, so that a serving KBS follows a change of keys: it is asked when a
        value names a key that is not here, and before sealing when the last time was `FRESH_SECONDS` ago."""
        self._read_again = read_again
        self._lock = threading.Lock()
        self._use(keys)

    def _use(self, keys: Sequence[Secret]) -> None:
        ciphers = {compute_key_id(key): aead.Aead(key) for key in keys}
        self._ciphers, self._active, self._read_at = ciphers, next(iter(ciphers)), time.monotonic()

    def _follow(self, read_again: Callable[[], Sequence[Secret]]) -> None:
        """A source that cannot be read now is this machine's trouble, not the caller's: sealing under keys that may be on
        their way out would lose what is sealed, and a missing file must not look like a missing resource."""
        try:
            self._use(read_again())
        except UsageError as error:
            raise EnvironmentFault("environment", f"the store key cannot be read: {error.what}", error.fix) from error

    @property
    def active_id(self) -> bytes:
        return self._active

    def seal(self, name: str, version: int, value: Secret) -> Sealed:
        with self._lock:
            if self._read_again is not None and time.monotonic() - self._read_at > FRESH_SECONDS:
                self._follow(self._read_again)
            key_id, cipher = self._active, self._ciphers[self._active]
        nonce = os.urandom(aead.NONCE_SIZE)
        return Sealed(key_id, nonce, cipher.encrypt(nonce, value.reveal(), _aad(name, version)))

    def open(self, name: str, version: int, sealed: Sealed) -> Secret:
        """Raises `EnvironmentFault("environment")` for a value of another key, path or version, or a changed one."""
        for cipher in self._find(sealed.key_id):
            try:
                return Secret(cipher.decrypt(sealed.nonce, sealed.ciphertext, _aad(name, version)))
            except PeerError:
                continue
        raise does_not_open(name)

    def _find(self, key_id: bytes) -> list[aead.Aead]:
        if not key_id:
            return list(self._ciphers.values())
        with self._lock:
            if key_id not in self._ciphers and self._read_again is not None:
                self._follow(self._read_again)
            return [self._ciphers[key_id]] if key_id in self._ciphers else []


def does_not_open(name: str) -> EnvironmentFault:
    return EnvironmentFault("environment", f"resource {name} does not open with this store key")


def _aad(name: str, version: int) -> bytes:
    return b"enclave-cc/kbs-resource/1\0" + name.encode() + b"\0" + version.to_bytes(8)
