"""Where the store keys are: a file, an environment variable, or a file that only a PKCS#11 token can open.

    store.key   one key a line, the first seals, all open:
                BASE64 of 32 bytes, or `pkcs11:` and BASE64 of what the token wrapped

A token wraps keys (AES-GCM under an AES-256 key that never leaves it) instead of sealing each value itself: a broker that
releases hundreds of keys a second cannot ask a token each time, and all instances derive their session keys from the store
key. So the token is needed at start and for a change of keys, and without it a copy of disk and database opens nothing.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault, UsageError, explain_os_error
from enclave_cc.owner.replacement import replace_file
from enclave_cc.owner.resources.pkcs11_token import Pkcs11Token
from enclave_cc.owner.resources.sealing import FRESH_SECONDS, KEY_SIZE

_WRAPPED = "pkcs11:"
_AAD = b"enclave-cc/kbs-store-key/1"
_NONCE, _TAG_BITS = 12, 128


class KeySource(Protocol):
    """Safe for many threads and processes. Every method raises `UsageError`: "not-found", "bad-config", and what a token
    raises."""

    def read(self) -> tuple[Secret, ...]:
        """The keys, the one that seals first."""
        ...

    def check(self) -> None:
        """Raises `UsageError("wrong-state")` where the key is not kept as the configuration wants it."""
        ...

    def begin_change(self) -> None:
        """Puts a new key first, unless a change is under way. Raises `UsageError("wrong-state")` if that is not ours to do."""
        ...

    def wait_until_known(self) -> None:
        """Returns when every server that sees this source seals under the first key."""
        ...

    def end_change(self) -> str:
        """Drops all but the first, under which everything must be sealed. Says what is left to do by hand, or ""."""
        ...


class KeyFile:
    """`store.key`; with `wrapping`, the first key must be wrapped by the token."""

    def __init__(self, path: Path, token: TokenKey | None = None, *, wrapping: bool = False) -> None:
        self._path = path
        self._token = token
        self._wrapping = wrapping
        self._known: tuple[object, tuple[Secret, ...]] = (None, ())

    def read(self) -> tuple[Secret, ...]:
        try:
            status = self._path.stat()
            signature = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._known[0] == signature:
                return self._known[1]
            lines = self._path.read_text("ascii").split()
        except FileNotFoundError as error:
            raise UsageError("not-found", f"there is no {self._path}", "It is made by `enclave-cc kbs init`.") from error
        except OSError as error:
            raise explain_os_error(error) from error
        except UnicodeDecodeError as error:
            raise UsageError("bad-config", f"{self._path} is not base64") from error
        if not lines:
            raise UsageError("bad-config", f"{self._path} is empty")
        keys = tuple(self._parse(line) for line in lines)
        self._known = (signature, keys)
        return keys

    def check(self) -> None:
        self.read()
        if self._wrapping and not self._path.read_text("ascii").startswith(_WRAPPED):
            raise UsageError(
                "wrong-state", f"{self._path} is not wrapped by the token that [resources.key] names", "Run `enclave-cc kbs rekey`."
            )

    def begin_change(self) -> None:
        with self._lock():
            self.read()  # the present key opens; else a new one would only be put before a broken one
            present = self._path.read_text("ascii").split()
            if len(present) == 1:
                self._write([self._format(Secret.random(KEY_SIZE)), *present])

    def wait_until_known(self) -> None:
        # Servers look at the file once a second before they seal.
        age = time.time() - self._path.stat().st_mtime
        time.sleep(min(max(0.0, 3 * FRESH_SECONDS - age), 3 * FRESH_SECONDS))

    def end_change(self) -> str:
        with self._lock():
            self._write(self._path.read_text("ascii").split()[:1])
        return ""

    def _parse(self, line: str) -> Secret:
        try:
            data = base64.b64decode(line.removeprefix(_WRAPPED), validate=True)
        except binascii.Error as error:
            raise UsageError("bad-config", f"{self._path} is not base64") from error
        if not line.startswith(_WRAPPED):
            key = Secret(data)
        elif self._token is None:
            raise UsageError(
                "bad-config", f"{self._path} needs a PKCS#11 token", "Name module, token and label in [resources.key]."
            )
        else:
            key = self._token.unwrap(data)
        if len(key) != KEY_SIZE:
            raise UsageError("bad-config", f"{self._path} holds a key that is not {KEY_SIZE} bytes")
        return key

    def _format(self, key: Secret) -> str:
        if self._wrapping:
            if self._token is None:
                raise UsageError("bad-config", "[resources.key] names no token")
            return _WRAPPED + base64.b64encode(self._token.wrap(key)).decode()
        return base64.b64encode(key.reveal()).decode()

    def _write(self, lines: list[str]) -> None:
        replace_file(self._path, "".join(f"{line}\n" for line in lines).encode(), mode=0o600)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise explain_os_error(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise UsageError("wrong-state", "another command changes the store key", "Wait for it.") from error
        finally:
            os.close(descriptor)


class KeyVariable:
    """An environment variable: BASE64 of 32 bytes, several with a comma between them."""

    def __init__(self, variable: str) -> None:
        self._variable = variable

    def read(self) -> tuple[Secret, ...]:
        text = os.environ.get(self._variable, "").strip()
        if not text:
            raise UsageError("not-found", f"${self._variable} is not set", "It holds the store key in base64.")
        try:
            keys = tuple(Secret(base64.b64decode(each.strip(), validate=True)) for each in text.split(","))
        except (binascii.Error, ValueError):
            raise UsageError("bad-config", f"${self._variable} is not base64") from None  # the error would quote it
        if any(len(key) != KEY_SIZE for key in keys):
            raise UsageError("bad-config", f"${self._variable} holds a key that is not {KEY_SIZE} bytes")
        return keys

    def check(self) -> None:
        self.read()

    def begin_change(self) -> None:
        if len(self.read()) == 1:
            raise UsageError(
                "wrong-state",
                f"${self._variable} holds one key",
                "Put a new key and a comma before it, for the servers and for this command: openssl rand -base64 32.",
            )

    def wait_until_known(self) -> None:
        """Who set the variables knows: a running process does not see a change."""

    def end_change(self) -> str:
        return f"take the old key out of ${self._variable}" if len(self.read()) > 1 else ""


class TokenKey:
    """An AES-256 key in a PKCS#11 token that wraps other keys."""

    def __init__(self, token: Pkcs11Token, label: str) -> None:
        self._token = token
        self._label = label

    def wrap(self, key: Secret) -> bytes:
        """nonce (12 bytes), ciphertext and tag. Makes the token's key if there is none of this label."""
        from pkcs11 import GCMParams, Mechanism

        nonce, value = os.urandom(_NONCE), key.reveal()

        def act(session: Any) -> bytes:
            parameters = GCMParams(nonce, _AAD, _TAG_BITS)
            return bytes(self._find(session, make=True).encrypt(value, mechanism=Mechanism.AES_GCM, mechanism_param=parameters))

        return nonce + self._token.run(act)

    def unwrap(self, data: bytes) -> Secret:
        """Raises `EnvironmentFault`: "store-denied" for another token's or a changed one, "store-unreachable"."""
        from pkcs11 import GCMParams, Mechanism

        def act(session: Any) -> Secret | None:
            key = self._find(session)
            parameters = GCMParams(data[:_NONCE], _AAD, _TAG_BITS)
            return (
                None if key is None else Secret(key.decrypt(data[_NONCE:], mechanism=Mechanism.AES_GCM, mechanism_param=parameters))
            )

        refused = EnvironmentFault("store-denied", f"the token's key {self._label} does not open the store key")
        try:
            found = self._token.run(act)
        except EnvironmentFault as fault:
            raise refused if fault.code == "store-failed" else fault from fault
        if found is None:
            raise EnvironmentFault("store-denied", f"the PKCS#11 token has no key {self._label}")
        return found

    def _find(self, session: Any, *, make: bool = False) -> Any:
        from pkcs11 import Attribute, KeyType, ObjectClass

        wanted = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES, Attribute.LABEL: self._label}
        found = list(session.get_objects(wanted))
        if found or not make:
            return found[0] if found else None
        template = {
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            Attribute.ENCRYPT: True,
            Attribute.DECRYPT: True,
            Attribute.WRAP: False,
            Attribute.UNWRAP: False,
        }
        return session.generate_key(KeyType.AES, 8 * KEY_SIZE, label=self._label, store=True, template=template)
