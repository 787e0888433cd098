"""What sessions are protected by: keys derived from the store keys, equal in every process that shares these.

A change of the store key (`kbs rekey`) goes on while instances serve: the file holds the new key and the old one, then the
new one alone. Ids are made under the oldest key that is there, and read under all: so an instance that has looked and one
that has not yet still understand each other. What was derived from a key that went is kept for a session's life.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence

from enclave_cc.crypto.kdf import hkdf_sha256
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnclaveCcError
from enclave_cc.record import record

# As long as other users of the store key take to notice a change.
LOOK_SECONDS = 1.0


@record
class Derived:
    """Of one store key: what ids are authenticated by, what nonces are computed by, what tokens are sealed by; what cookies of
    the owner's page are sealed by, what its forms are authenticated by."""

    id: Secret
    nonce: Secret
    token: Secret
    page: Secret
    form: Secret


class SessionKeys:
    """`read` gives the store keys, the newest first. Safe for many threads."""

    def __init__(
        self, read: Callable[[], Sequence[Secret]], *, lifetime: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._lifetime = lifetime
        self._clock = clock
        self._lock = threading.Lock()
        self._derived: dict[bytes, tuple[Derived, float]] = {}  # of each store key; until when, unless it is there still
        self._all: tuple[Derived, ...] = ()
        self._looked = float("-inf")
        self._look()

    def all(self) -> tuple[Derived, ...]:
        """The one to make ids under first."""
        if self._clock() - self._looked >= LOOK_SECONDS:
            self._look()
        return self._all

    def _look(self) -> None:
        with self._lock:
            now = self._clock()
            try:
                present = self._read()
            except EnclaveCcError:
                if not self._all:
                    raise
                self._looked = now  # a file that is gone for a moment: what was known goes on
                return
            for key in present:
                name = _name(key)
                known = self._derived.get(name)
                self._derived[name] = (known[0] if known else _derive(key), now + self._lifetime)
            self._derived = {name: (derived, until) for name, (derived, until) in self._derived.items() if until > now}
            oldest_first = [self._derived[_name(key)][0] for key in reversed(present)]
            gone = [derived for derived, _ in self._derived.values() if derived not in oldest_first]
            self._all, self._looked = (*oldest_first, *gone), now


def _derive(store_key: Secret) -> Derived:
    infos = [b"enclave-cc/kbs-session/1 " + name for name in (b"id", b"nonce", b"token", b"page", b"form")]
    return Derived(*(hkdf_sha256(store_key, salt=b"", info=info, size=32) for info in infos))


def _name(store_key: Secret) -> bytes:
    return hashlib.sha256(store_key.reveal()).digest()
