"""Whose attestation tokens are accepted beside our own: `[token.trusted.NAME]` in kbs.toml.

    certificates = "other.crt"       PEM: the other's token certificates, or the authorities that issued them
    jwks = "other.jwks.json"         a key set (RFC 7517), such as the other's /.well-known/jwks.json
    issuer = "..."                   what `iss` must be
    tee_key_paths = ["/tee-pubkey"]  JSON pointers to the TEE key, looked at before the usual ones

The files are read again every few seconds, so that the other may rotate its keys. Files that cannot be read are thought to be
in the middle of a change for a minute; after that their issuer is trusted no more, as an owner who takes them away wants it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from enclave_cc.crypto.jws import VerifyKey
from enclave_cc.errors import EnclaveCcError, PeerError, UsageError
from enclave_cc.owner.kbs.settings import Section
from enclave_cc.owner.kbs.tokens import TrustedIssuer
from enclave_cc.record import record
from enclave_cc.wire.rcar import token
from enclave_cc.wire.sgx.certification import parse_pem_certificates

CHECK_SECONDS = 5.0
GRACE_SECONDS = 60.0
KEY_SET_LIMIT = 1 << 20


@record
class TrustedIssuerFiles:
    """Where one issuer's certificates and keys lie."""

    name: str
    certificates: Path | None
    jwks: Path | None
    issuer: str | None
    key_pointers: tuple[str, ...]

    @classmethod
    def read(cls, name: str, section: Section, directory: Path) -> TrustedIssuerFiles:
        """Raises `UsageError("bad-config")`."""
        certificates, jwks = section.text("certificates"), section.text("jwks")
        if certificates is None and jwks is None:
            raise section.fault("certificates", "without certificates or jwks no token can be trusted")
        pointers = section.texts("tee_key_paths")
        if not all(pointer.startswith("/") for pointer in pointers):
            raise section.fault("tee_key_paths", "a JSON pointer begins with /")
        made = cls(
            name,
            None if certificates is None else directory / certificates,
            None if jwks is None else directory / jwks,
            section.text("issuer"),
            (*pointers, *token.KEY_POINTERS),
        )
        section.finish()
        return made

    def load(self) -> TrustedIssuer:
        """Raises `UsageError("bad-config")`."""
        certificates: tuple[bytes, ...] = ()
        if self.certificates is not None:
            try:
                text = read_file(self.certificates).replace(b"\r\n", b"\n").strip() + b"\n"
                certificates = tuple(parse_pem_certificates(text))
            except PeerError as error:
                raise UsageError("bad-config", f"{self.certificates} holds something else than PEM certificates") from error
        keys = {} if self.jwks is None else read_key_set(read_file(self.jwks), str(self.jwks))
        return TrustedIssuer(self.name, certificates, keys, self.issuer, self.key_pointers)


def read_key_set(data: bytes, where: str) -> Mapping[str, VerifyKey]:
    """The keys of a JWK set by `kid`; without one, by thumbprint. Keys that verify nothing here are left out.

    Raises `UsageError("bad-config")`, also when none is left.
    """
    try:
        document = json.loads(data[:KEY_SET_LIMIT])
        items = document["keys"]
        if not isinstance(items, list):
            raise TypeError("keys")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError("bad-config", f"{where} is not a JSON key set") from error
    keys: dict[str, VerifyKey] = {}
    for item in items:
        if not isinstance(item, Mapping) or item.get("use", "sig") != "sig":
            continue
        try:
            key = VerifyKey.from_jwk(item)
        except PeerError:
            continue
        if item.get("alg", key.algorithm) == key.algorithm:
            keys[str(item.get("kid", key.kid))] = key
    if not keys:
        raise UsageError("bad-config", f"{where} has no Ed25519, P-256 or RSA key that verifies signatures")
    return keys


class TrustedIssuers:
    """All of them, as their files stand. Safe for many threads."""

    def __init__(
        self,
        files: tuple[TrustedIssuerFiles, ...],
        *,
        report: Callable[[str, str], None] = lambda _name, _why: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`report` is told of every issuer that is dropped: (name, why). Raises `UsageError("bad-config")`."""
        self._report = report
        self._now = now
        self._lock = threading.Lock()
        self._known = [_Known(each, each.load()) for each in files]
        self._trusted = tuple(each.issuer for each in self._known)
        self._checked = now()

    def __call__(self) -> tuple[TrustedIssuer, ...]:
        if self._known and self._now() >= self._checked + CHECK_SECONDS:
            with self._lock:
                self._checked = self._now()
                for each in self._known:
                    self._reload(each)
                self._trusted = tuple(each.issuer for each in self._known if not each.dropped)
        return self._trusted

    def _reload(self, known: _Known) -> None:
        try:
            known.issuer, known.failing_since, known.dropped = known.files.load(), None, False
        except EnclaveCcError as error:
            if known.failing_since is None:
                known.failing_since = self._checked
            if not known.dropped and self._checked >= known.failing_since + GRACE_SECONDS:
                known.dropped = True
                self._report(known.files.name, error.what)


class _Known:
    """An issuer as its files last said, and since when they say nothing."""

    def __init__(self, files: TrustedIssuerFiles, issuer: TrustedIssuer) -> None:
        self.files = files
        self.issuer = issuer
        self.failing_since: float | None = None
        self.dropped = False


def read_file(path: Path) -> bytes:
    """A file of the configuration. Raises `UsageError("bad-config")`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError("bad-config", f"{path} cannot be read: {error.strerror}") from error
